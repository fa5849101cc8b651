"""mixopt, asked through `serve`, by the same jobs as `run_olmix`. `starts` is not ours; answers are asked with {target, pull} and are a whole `mixopt.fit` each."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
from serve import cpu_seconds, read_table, serve

import mixopt
from mixopt.fitting.file import parse_fit_file
from mixopt.mixture import FloatArray
from mixopt.surrogates import get_surrogate
from mixopt.swarm import Points, Swarm
from mixopt.trial import Source

TOKENS = 10**9
SOURCE = Source("trained", "1m", TOKENS)


def answer(job: dict[str, Any]) -> dict[str, Any]:
    swarm = load(job["mixtures"], job["metrics"])
    order = read_table(job["metrics"])[0]
    surrogate = get_surrogate(job["model"])
    begun = cpu_seconds()
    fitted = surrogate.fit(swarm, order)
    seconds = cpu_seconds() - begun
    predictions = [fitted.mean(points(path)).tolist() for path in job["points"]]
    answers = [propose(swarm, job["model"], job["prior"], **asked) for asked in job["answers"]]
    return {"cpu_seconds": seconds, "predictions": predictions, "answers": answers}


def propose(swarm: Swarm, model: str, prior: dict[str, float], target: dict[str, float], pull: float | str) -> dict[str, Any]:
    """The mixture of least weighted mean of the metrics that count, fitted again without the others; the prior is given as token counts, and nothing is capped."""
    counted = Swarm(swarm.domains, swarm.table.filter(pl.col("metric").is_in(list(target))))
    config = parse_fit_file(
        {
            "domains": {name: {"tokens": share * TOKENS} for name, share in prior.items()},
            "objective": {"kind": "mean", "metrics": target, "pull": pull},
        }
    )
    begun = cpu_seconds()
    result = mixopt.fit(counted, config=config, surrogate=model)
    seconds = cpu_seconds() - begun
    return {
        "cpu_seconds": seconds,
        "weights": result.proposal.mixture.as_dict(),
        "note": f"a whole mixopt.fit, pull chosen {result.proposal.evidence['pull']:g}",
    }


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
