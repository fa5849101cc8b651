"""The best learning rate of a proxy by its size, in the standard parametrization and in muP: does nano's carry to small?

    python benchmarks/learning_rates.py [--quick] [--sizes SIZE ...] [--tokens N] [--seeds N] [--keep FOLDER] [--json FILE]

Text is the shared corpus where MIXOPT_SHARED names it, else the demo corpus (--prepared FOLDER: a `tokens` folder that is prepared already).
Every proxy of a size and parametrization is a member of one pack: rates times seeds. All sizes train on equally many tokens, because the best
rate moves with the number of steps; members of one seed share initial weights and data order, so that rates are compared in pairs. The mixture
is uniform over the domains; the loss is the mean of nats per token over the held-out documents of every domain, at the end of training.

best_rate: least point of a parabola in log rate, by least squares on the points within three grid steps of the lowest (a wider window
bends, a narrower one is noise), on the mean over seeds. low, high: half the range over seeds around it, each seed with a parabola of its own.
Where the lowest loss is at an end of the grid there is no optimum: more rates are wanted, and rows that are there are not trained again.

Results are kept per proxy in --keep (runs/learning-rates unless given) and training goes on from checkpoints, so the same command continues.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rows_file import why_unwritable, write_rows

from proxy_models.config import SIZES, proxy_config
from workers.ray_runner import WORKER_ENVIRONMENT

ROOT = Path(__file__).resolve().parent.parent
PARAMETRIZATIONS = ("standard", "mup")
WINDOW, TOKENS_PER_STEP = 512, 1024
EVALUATION_TOKENS, CURVE_TOKENS = 4096, 512
"""Of each domain at the end, and before it, where nobody looks."""
FIRST_SEED = 100
GRID = tuple(3e-3 * 2.0**step for step in range(-3, 4))
FIT_STEPS = 2.01
"""Grid steps around the lowest point that the parabola is fitted to."""


@dataclass(frozen=True)
class Row:
    """One proxy. `loss_nats`: mean over domains; None: it diverged."""

    size: str
    parametrization: str
    rate: float
    seed: int
    tokens: int
    loss_nats: float | None
    seconds: float
    corpus: str


@dataclass(frozen=True)
class Best:
    """Of a size and parametrization."""

    size: str
    parametrization: str
    best_rate: float | None
    low: float | None
    high: float | None
    loss_nats: float
    seeds: int


@dataclass(frozen=True)
class Job:
    """One pack, as a process gets it."""

    prepared: str
    size: str
    parametrization: str
    rates: tuple[float, ...]
    seeds: tuple[int, ...]
    tokens: int
    keep: str
    corpus: str


def row_path(job: Job, rate: float, seed: int) -> Path:
    return Path(job.keep) / f"{job.corpus}-{job.size}-{job.parametrization}-{job.tokens}" / f"{rate:.6g}-{seed}.json"


def rows_of(job: Job) -> list[Row]:
    """Those that are there."""
    paths = [row_path(job, rate, seed) for rate in job.rates for seed in job.seeds]
    return [Row(**json.loads(path.read_text(encoding="utf-8"))) for path in paths if path.exists()]


def train(job: Job) -> None:
    """Trains what is missing of a pack; what is done is kept at once."""
    import torch

    from mixopt.corpus.manifest import Manifest
    from proxy_models.train import EvaluationSpec, MemberFailure, MemberOutcome, MemberResult, MemberSpec, TrainSettings, finish, train_pack
    from proxy_models.sampler import DomainStream

    torch.set_num_threads(1)
    manifest = Manifest.load(Path(job.prepared))
    files = {name: domain for name, domain in sorted(manifest.domains.items())}
    streams = tuple(DomainStream(one.train.content_hash, manifest.absolute(one.train), one.train.tokens) for one in files.values())
    weights = ((1.0 / len(streams),) * len(streams),)
    evaluations = [EvaluationSpec(name, manifest.absolute(one.valid), "text", EVALUATION_TOKENS, CURVE_TOKENS) for name, one in files.items()]
    missing = {
        f"{rate:.6g}-{seed}": (rate, seed) for seed in job.seeds for rate in job.rates if not row_path(job, rate, seed).exists()
    }
    members = [MemberSpec(name, seed, rate, streams, weights) for name, (rate, seed) in missing.items()]
    folders = {name: row_path(job, rate, seed).with_suffix("") for name, (rate, seed) in missing.items()}
    for folder in folders.values():
        folder.mkdir(parents=True, exist_ok=True)

    def keep(outcome: MemberOutcome) -> None:
        rate, seed = missing[outcome.member_id]
        if isinstance(outcome, MemberResult):
            last = {key: nats for key, tokens, nats, _ in outcome.measurements if tokens == outcome.tokens}
            row = Row(job.size, job.parametrization, rate, seed, outcome.tokens, statistics.fmean(last.values()), outcome.seconds, job.corpus)
        elif isinstance(outcome, MemberFailure) and outcome.kind == "diverged":
            row = Row(job.size, job.parametrization, rate, seed, job.tokens, None, 0.0, job.corpus)
        else:
            print(outcome, file=sys.stderr)
            return
        path = row_path(job, rate, seed)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(asdict(row)), encoding="utf-8")
        os.replace(temporary, path)
        finish(folders[outcome.member_id])
        (folders[outcome.member_id] / "weights.safetensors").unlink(missing_ok=True)
        folders[outcome.member_id].rmdir()

    settings = TrainSettings(tokens=job.tokens, window=WINDOW, tokens_per_step=TOKENS_PER_STEP)
    config = proxy_config(job.size, manifest.vocab_size, job.parametrization)
    train_pack(config, settings, members, evaluations, folders, on_outcome=keep)


if __name__ == "__main__":
    train(Job(**json.loads(sys.argv[2])))
