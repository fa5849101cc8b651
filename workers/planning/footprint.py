"""How much memory and disk an experiment takes: estimates from constants that were measured on finished searches.

The trade-off: sizes of database rows and of processes are taken as proportional to what they hold, which is right to about a quarter.
"""

from __future__ import annotations

from collections.abc import Sequence

from mixopt.cost import Disk, Memory, Stage
from workers.compose import Search, record_location, tracking_uri
from workers.evaluations import EARLY_POINTS
from workers.planning.expected_corpus import Corpus, token_file_bytes

DRIVER_BYTES = 1.6e9
"""The driver of a search with MLflow (1.0 GB) and the processes of a local Ray (0.5 GB): proportional set sizes during the search of 14 domains in
`examples/shared-corpus.yaml`."""
DRIVER_IN_PROCESS_BYTES = 1.0e9

# Sizes of files after searches of 24, 42 and 54 trials with 100, 48 and 100 measurements each.
RESULT_BYTES, RESULT_BYTES_PER_MEASUREMENT = 8_000.0, 75.0
RECORD_BYTES, RECORD_BYTES_PER_TRIAL, RECORD_BYTES_PER_MEASUREMENT = 100_000.0, 2_000.0, 170.0
MLFLOW_BYTES, MLFLOW_BYTES_PER_TRIAL, MLFLOW_BYTES_PER_MEASUREMENT = 1_450_000.0, 2_000.0, 700.0
FIGURES_BYTES, REPORT_BYTES = 420_000.0, 450_000.0
WEIGHT_BYTES = 4.0
# Weights and two moments in float32.
CHECKPOINT_BYTES = 12.0


def memory(stages: Sequence[Stage], slots: int, in_process: bool) -> Memory:
    """Memory when every slot holds the largest pack of any stage."""
    pack = max(stage.pack_bytes for stage in stages)
    driver = DRIVER_IN_PROCESS_BYTES if in_process else DRIVER_BYTES
    return Memory(pack, driver, pack * slots + driver, max(stage.device_bytes for stage in stages))


def disk(search: Search, corpus: Corpus, stages: Sequence[Stage], slots: int) -> Disk:
    """Disk under the output folder."""
    mirrored = search.experiment.tracking.enabled and str(search.store) in tracking_uri(search.experiment)
    trials = record = mirror = to_come = checkpoints = 0.0
    for stage in stages:
        left = stage.trials - stage.reused
        measurements = len(search.evaluations[stage.source]) * (1 + EARLY_POINTS)
        folder = WEIGHT_BYTES * stage.total_parameters + RESULT_BYTES + RESULT_BYTES_PER_MEASUREMENT * measurements
        row = RECORD_BYTES_PER_TRIAL + RECORD_BYTES_PER_MEASUREMENT * measurements
        run = MLFLOW_BYTES_PER_TRIAL + MLFLOW_BYTES_PER_MEASUREMENT * measurements if mirrored else 0.0
        trials, record, mirror = trials + stage.trials * folder, record + stage.trials * row, mirror + stage.trials * run
        to_come += left * (folder + row + run)
        # A finished trial keeps its weights only, so the checkpoints of one stage never lie beside those of the next.
        checkpoints = max(checkpoints, min(left, slots * stage.pack_size) * CHECKPOINT_BYTES * stage.total_parameters)
    tokens = None if corpus.unknown and not corpus.prepared else token_file_bytes(corpus.manifest)
    results = (FIGURES_BYTES + REPORT_BYTES) * (2 if mirrored else 1)  # MLflow keeps them once more
    databases = RECORD_BYTES + (MLFLOW_BYTES if mirrored else 0.0)
    return Disk(
        tokens_bytes=tokens,
        trials_bytes=trials,
        checkpoints_bytes=checkpoints,
        record_bytes=record + RECORD_BYTES,
        mlflow_bytes=mirror + databases - RECORD_BYTES,
        results_bytes=results,
        needed_bytes=to_come
        + checkpoints
        + results
        + (0.0 if record_location(search.store).exists() else databases)
        + (0.0 if corpus.prepared else tokens or 0.0),
    )
