"""Olmix's own classes, asked through `serve`; runs in an interpreter that can import `olmix` (github allenai/olmix), and holds nothing of it.

A job is {model, mixtures, metrics, points, starts, prior, answers}: fit every metric of two CSV files, predict the mixtures of the files `points`, and for
each of `answers`, {target: metric -> weight, kl}, propose a mixture with the exact proposer, which knows the log-linear law only. `starts` is how many of the
law's 300 starts it makes, evenly spread over them. The classes are called as its `run_fit` calls them.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import olmix.fit.utils as olmix
from serve import cpu_seconds, read_table, serve

ALL_STARTS = olmix.init_params_log_linear_law
STARTS = 300
# AutoScale's law wants the tokens of a run; RegMix trained its 1M proxies on a billion.
TOKENS = 10**9


def answer(job: dict[str, Any]) -> dict[str, Any]:
    domains, runs, mixtures = read_table(job["mixtures"])
    metrics, scored, losses = read_table(job["metrics"])
    assert runs == scored, "rows must agree here: Olmix does not join them"
    step = STARTS // job["starts"]
    olmix.init_params_log_linear_law = lambda idx, num_domains: itertools.islice(ALL_STARTS(idx, num_domains), step // 2, None, step)
    np.random.seed(0)
    begun = cpu_seconds()
    predictors = [
        olmix.build_regression(index, losses, mixtures, job["model"], 0.0, TOKENS if job["model"] == "autoscale" else None)
        for index in range(len(metrics))
    ]
    fitted = cpu_seconds() - begun
    predictions = []
    for path in job["points"]:
        names, _, points = read_table(path)
        assert names == domains
        predictions.append(np.stack([np.asarray(predictor.predict(points)) for predictor in predictors], axis=1).tolist())
    return {
        "cpu_seconds": fitted,
        "predictions": predictions,
        "answers": [propose(predictors, metrics, domains, job["prior"], **asked) for asked in job["answers"]],
    }


def propose(
    predictors: list[Any], metrics: list[str], domains: list[str], prior: dict[str, float], target: dict[str, float], kl: float
) -> dict[str, Any]:
    """Predictors and weights of the metrics that count only: it has no other way to leave one out (a weight given to the rest breaks it)."""
    begun = cpu_seconds()
    weights = olmix.LogLinearExactProposer().propose(
        predictor=[predictors[metrics.index(name)] for name in target],
        prior_distributions={name: prior[name] for name in domains},
        token_counts={},
        kl_reg=kl,
        obj_weights=list(target.values()),
    )
    return {"cpu_seconds": cpu_seconds() - begun, "weights": dict(zip(domains, np.asarray(weights).tolist(), strict=True))}


if __name__ == "__main__":
    serve(answer)
