"""Reads the published tables of `yegcjs/mixinglaws` (arXiv 2403.16952) as swarms: losses of 22 validation domains over sizes, steps and mixtures.

The repository has no licence: its data are read where a checkout is (environment variable MIXINGLAWS), and never copied here. A line is
`<path>/<size>_<run>-<h1>-...-<hk>/<step>` TAB `<path>.<DOMAIN>.bin` TAB `<loss>`; a checkpoint is taken as a run of its own tokens. Known flaws of the
tables, all handled here: sums of weights up to 1.02 (renormalised), the same line more than once (the first is kept), zeros written as 0 and as 0.0,
lines of a base model without a mixture (left out).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from mixopt.swarm import Swarm
from mixopt.trial import Source

TOKENS_PER_STEP = 4096 * 256
PARAMETERS = {"70M": 18_915_328, "160M": 85_056_000, "305M": 201_541_632, "410M": 302_311_424, "1B": 805_736_448}
"""Without the embedding."""
TABLES = {"5Mix": 5, "RedPajama": 7}
"""Folder -> number of training domains."""
WEIGHT_DECIMALS = 6
Losses = dict[tuple[tuple[float, ...], int], dict[str, float]]


def read(folder: Path, table: str, sizes: Sequence[str], wanted: Callable[[str, int], bool]) -> Swarm:
    """A trial per size, mixture and step for which `wanted(size, step)`, named `<size>-<number of mixture>-<step>`; the same mixture has the same number at
    all sizes. Only checkpoints scored on every domain."""
    losses = {size: _losses(folder / "data" / table / f"{size}.txt", TABLES[table]) for size in sizes}
    mixtures = sorted({mixture for found in losses.values() for mixture, _ in found})
    number = {mixture: index for index, mixture in enumerate(mixtures)}
    metrics = sorted({metric for found in losses.values() for scored in found.values() for metric in scored})
    parts = []
    for size, found in losses.items():
        steps = sorted({step for _, step in found if wanted(size, step)})
        for step in steps:
            rows = [mixture for mixture, at in sorted(found) if at == step and len(found[mixture, step]) == len(metrics)]
            if rows:
                values = np.array([[found[mixture, step][metric] for metric in metrics] for mixture in rows])
                names = [f"{size}-{number[mixture]:03d}-{step}" for mixture in rows]
                domains = [f"d{index}" for index in range(TABLES[table])]
                source = Source("trained", size, step * TOKENS_PER_STEP)
                parts.append(Swarm.from_arrays(domains, np.array(rows)[:, None, :], metrics, values, source, trial_ids=names))
    return joined(parts)


def joined(parts: Sequence[Swarm]) -> Swarm:
    """Swarms over the same domains as one."""
    table = parts[0].table
    for part in parts[1:]:
        table = table.vstack(part.table)
    return Swarm(parts[0].domains, table)


def _losses(path: Path, domains: int) -> Losses:
    """(normalised mixture, step) -> domain -> loss, nats per token."""
    found: Losses = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        checkpoint, target, loss = line.split("\t")
        run, step = checkpoint.rstrip("/").split("/")[-2:]
        weights = [float(part) for part in run.split("-")[1:]]
        if len(weights) != domains or not step.isdigit():
            continue
        mixture = tuple(round(weight / sum(weights), WEIGHT_DECIMALS) for weight in weights)
        found.setdefault((mixture, int(step)), {}).setdefault(target.split(".")[-2], float(loss))
    return found
