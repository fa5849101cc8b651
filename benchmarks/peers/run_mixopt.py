"""mixopt, asked through `serve`, by the same jobs as `run_olmix`; `starts` and `kl` are not ours and are ignored."""

from __future__ import annotations

from typing import Any

import numpy as np
from serve import cpu_seconds, read_table, serve

from mixopt.mixture import FloatArray
from mixopt.surrogates import get_surrogate
from mixopt.swarm import Points, Swarm
from mixopt.trial import Source

SOURCE = Source("trained", "1m", 10**9)


def answer(job: dict[str, Any]) -> dict[str, Any]:
    swarm = load(job["mixtures"], job["metrics"])
    order = read_table(job["metrics"])[0]
    surrogate = get_surrogate(job["model"])
    begun = cpu_seconds()
    fitted = surrogate.fit(swarm, order)
    seconds = cpu_seconds() - begun
    predictions = [fitted.mean(points(path)).tolist() for path in job["points"]]
    return {"cpu_seconds": seconds, "predictions": predictions, "answers": []}


def load(mixtures: str, metrics: str) -> Swarm:
    """Weights are rounded to 1e-3 there and renormalised here."""
    domains, runs, weights = read_table(mixtures)
    names, scored, losses = read_table(metrics)
    rows = [scored.index(run) for run in runs]
    return Swarm.from_arrays(domains, shares(weights)[:, None, :], names, losses[rows], SOURCE, trial_ids=runs)


def points(path: str) -> Points:
    domains, _, weights = read_table(path)
    return Points(tuple(domains), shares(weights)[:, None, :], (SOURCE,) * len(weights))


def shares(weights: FloatArray) -> FloatArray:
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


if __name__ == "__main__":
    import lightgbm  # noqa: F401  # so that the first fit does not pay for the import

    serve(answer)
