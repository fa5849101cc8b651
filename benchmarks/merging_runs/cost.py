"""Time and memory of scoring many merges at once, beside writing each as a file and loading it.

Both ways give the same scores, which a test asserts. They take turns, each in a process of its own, so that neither finds the other's memory, and a machine that
slows down slows both; each tells its seconds after imports, and its most resident memory. The trade-off: writing and loading is measured on a few merges of
every turn, and told per merge.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mixopt.runner import Evaluation
from mixopt.trial import Trial

TURNS = 4
ONE_BY_ONE = 10
"""Merges of a turn that are written and loaded."""


@dataclass(frozen=True)
class CostRow:
    """Of one way to score merges.

    Attributes:
        way: `at once` (`score_mixtures`) or `one by one` (`save_merge`, then `score_weights`).
        merges: that were measured; seconds: for each, mean over turns; low and high: the least and the largest turn.
        probe_tokens: that every merge is scored on.
        peak_bytes: the most resident memory of a process, of which `before_bytes` are there before the first merge.
        written_bytes: for each merge.
        ratio: of the seconds to those of `at once`, mean over turns.
    """

    way: str
    size: str
    components: int
    merges: int
    seconds: float
    seconds_low: float
    seconds_high: float
    probe_tokens: int
    peak_bytes: float
    before_bytes: float
    written_bytes: float
    ratio: float


@dataclass(frozen=True)
class CostJob:
    """Plain data of one turn."""

    store: Path
    base: Trial
    components: tuple[Trial, ...]
    probe: tuple[Evaluation, ...]
    window: int


@dataclass(frozen=True)
class Turn:
    """What a process tells."""

    seconds: float
    before_bytes: float
    peak_bytes: float
    written_bytes: float


def measured_costs(job: CostJob, merges: int) -> list[CostRow]:
    """Both ways in turns, `merges` at once altogether."""
    each = merges // TURNS
    context = multiprocessing.get_context("spawn")
    turns: dict[str, list[Turn]] = {"at once": [], "one by one": []}
    for turn in range(TURNS):
        for way, work, count in (("at once", at_once, each), ("one by one", one_by_one, min(ONE_BY_ONE, each))):
            with context.Pool(1) as pool:
                turns[way].append(pool.apply(work, (job, count, turn)))
    return list(_rows(job, turns, {"at once": each * TURNS, "one by one": min(ONE_BY_ONE, each) * TURNS}))


def _rows(job: CostJob, turns: dict[str, list[Turn]], merges: dict[str, int]) -> Sequence[CostRow]:
    first = turns["at once"]
    return [
        CostRow(
            way=way,
            size=job.base.source.size,
            components=len(job.components),
            merges=merges[way],
            seconds=float(np.mean([one.seconds for one in found])),
            seconds_low=min(one.seconds for one in found),
            seconds_high=max(one.seconds for one in found),
            probe_tokens=sum(one.max_tokens or 0 for one in job.probe),
            peak_bytes=max(one.peak_bytes for one in found),
            before_bytes=max(one.before_bytes for one in found),
            written_bytes=float(np.mean([one.written_bytes for one in found])),
            ratio=float(np.mean([one.seconds / other.seconds for one, other in zip(found, first, strict=True)])),
        )
        for way, found in turns.items()
    ]


def at_once(job: CostJob, merges: int, seed: int) -> Turn:
    """Scores so many merges as packs."""
    from proxy_models.merging.contraction import score_mixtures
    from workers.convert import evaluation_of, proxy_of

    components, weights = _ready(job, merges, seed)
    before, start = _peak(), time.perf_counter()
    score_mixtures(proxy_of(job.base), components, weights, [evaluation_of(one) for one in job.probe], job.window)
    return Turn((time.perf_counter() - start) / merges, before, _peak(), 0.0)


def one_by_one(job: CostJob, merges: int, seed: int) -> Turn:
    """Writes each merge, loads it, and scores it."""
    from proxy_models.evaluate import score_weights
    from proxy_models.merging.merge import save_merge
    from workers.convert import evaluation_of, proxy_of

    components, weights = _ready(job, merges, seed)
    config, specs = proxy_of(job.base), [evaluation_of(one) for one in job.probe]
    names = [one.name for one in components]
    written = 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.safetensors"
        before, start = _peak(), time.perf_counter()
        for row in weights.tolist():
            save_merge(path, components, dict(zip(names, row, strict=True)))
            score_weights(config, path, specs, job.window)
            written += path.stat().st_size
        seconds = time.perf_counter() - start
    return Turn(seconds / merges, before, _peak(), written / merges)


def _ready(job: CostJob, merges: int, seed: int):  # type: ignore[no-untyped-def]  # torch is imported in the processes that need it
    """Components, and weights of merges: the same for both ways of a turn, as far as they go."""
    import torch

    from proxy_models.merging.components import StoredComponent
    from workers.trial_folder import TrialFolder

    torch.set_num_threads(1)
    components = [
        StoredComponent(one.label, TrialFolder(job.store, one.trial_id).weights_path, job.base.trial_id) for one in job.components
    ]
    return components, np.random.default_rng(seed).dirichlet(np.ones(len(components)), size=merges)


def _peak() -> float:
    """Most resident memory of this process until now, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * unit


def print_costs(rows: Sequence[CostRow]) -> None:
    for row in rows:
        print(
            f"{row.merges:5} {row.size} merges of {row.components} {row.way:10} {1000 * row.seconds:7.1f} ms each ({1000 * row.seconds_low:.1f} to "
            f"{1000 * row.seconds_high:.1f}), ratio {row.ratio:.2f}; memory {row.peak_bytes / 2**20:.0f} MiB, of it {row.before_bytes / 2**20:.0f} before; "
            f"written {row.written_bytes / 2**20:.2f} MiB each"
        )
    print(f"processors: {os.cpu_count()}, one thread each way; {rows[0].probe_tokens:,} tokens scored for each merge")
