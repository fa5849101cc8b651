"""Rows of the comparison: how well predictions rank measured mixtures, and what a proposed mixture is worth."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from peers.regmix import Table

from mixopt.mixture import FloatArray
from mixopt.simplex import kl_divergence
from mixopt.surrogates import get_surrogate
from mixopt.surrogates.cross_validation import rank_correlation
from mixopt.swarm import Points, Swarm
from mixopt.trial import Source

SOURCE = Source("trained", "1m", 10**9)


@dataclass(frozen=True)
class Row:
    """One number per column; None where it is not one of this row. `loss_nats`: of a proposed mixture, predicted."""

    tool: str
    model: str
    n: int
    table: str
    target: str
    spearman: float | None
    regret_percent: float | None
    loss_nats: float | None
    cpu_seconds: float | None
    note: str


def targets_of(metrics: tuple[str, ...]) -> dict[str, dict[str, float]]:
    """Target -> metric -> weight."""
    return {"pile_cc": {"pile_cc": 1.0}, "mean13": {name: 1 / len(metrics) for name in metrics}}


def over(weights: Mapping[str, float], metrics: tuple[str, ...]) -> FloatArray:
    """Weights in the order of `metrics`, 0 where there is none."""
    return np.array([weights.get(name, 0.0) for name in metrics])


def ranking_rows(tool: str, model: str, n: int, name: str, table: Table, predicted: FloatArray, seconds: float, note: str) -> Iterator[Row]:
    """One row per target, of predictions of shape (runs, metrics)."""
    for target, weights in targets_of(table.metrics).items():
        guess, truth = (losses @ over(weights, table.metrics) for losses in (predicted, table.losses))
        regret = 100 * (truth[np.argmin(guess)] - truth.min()) / np.ptp(truth)
        yield Row(tool, model, n, name, target, rank_correlation(guess, truth), float(regret), None, seconds, note)


class Judge:
    """Scores mixtures by a Gaussian process over all measured 1M runs. A model's word: nothing is trained here, and the model is of mixopt's kind."""

    def __init__(self, tables: list[Table]) -> None:
        first = tables[0]
        self.domains, self.metrics = first.domains, first.metrics
        weights = np.concatenate([table.weights for table in tables])
        self.losses = np.concatenate([table.losses for table in tables])
        swarm = Swarm.from_arrays(self.domains, (weights / weights.sum(axis=1, keepdims=True))[:, None], self.metrics, self.losses, SOURCE)
        self._fitted = get_surrogate("gaussian_process").fit(swarm, self.metrics)

    def row(
        self,
        tool: str,
        model: str,
        n: int,
        target: str,
        mixture: Mapping[str, float],
        prior: Mapping[str, float],
        seconds: float | None,
        note: str,
    ) -> Row:
        """regret_percent: against the best run measured, in % of the measured range; below 0 where the mixture is predicted to beat it."""
        weights, base = (np.array([one[name] for name in self.domains]) for one in (mixture, prior))
        posterior = self._fitted.posterior(Points(self.domains, weights[None, None], (SOURCE,)))
        shares = over(targets_of(self.metrics)[target], self.metrics)
        loss, std = float(posterior.mean[0] @ shares), float(np.sqrt(posterior.std[0] ** 2 @ shares**2))
        measured = self.losses @ shares
        largest = ", ".join(f"{name} {mixture[name]:.2f}" for name in sorted(mixture, key=lambda name: -mixture[name])[:3])
        said = [part for part in (note, f"std {std:.3f}", f"KL to the prior {kl_divergence(weights, base):.2f}", largest) if part]
        regret = 100 * (loss - measured.min()) / np.ptp(measured)
        return Row(tool, model, n, "answer", target, None, float(regret), loss, seconds, "; ".join(said))
