"""Recommendations: intervals that widen with correlated errors, honest evidence, and what is said when data are few or caps are broken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import pytest

from mixopt.domains import Domain, DomainSet
from mixopt.errors import DataError
from mixopt.mixture import FloatArray
from mixopt.objective import fit_objective
from mixopt.prediction import predict
from mixopt.proposal import Proposal
from mixopt.recommendation import Settings, recommend
from mixopt.space import MixtureSpace
from mixopt.strategies.design import design_sequence
from mixopt.surrogates import get_surrogate
from mixopt.surrogates.posterior import GaussianPosterior
from mixopt.swarm import Points, Swarm
from mixopt.trial import Source

SOURCE = Source("trained", "nano", 1000)
TOKENS = {"web": 60.0, "code": 20.0, "books": 10.0, "math": 6.0}
OPTIMUM = np.array([0.2, 0.4, 0.25, 0.15])


def domain_set(budget: float = 100.0, **bounds: tuple[float, float]) -> DomainSet:
    domains = (Domain(name, f"hash-{name}", 1_000_000, count, bounds=bounds.get(name, (0.0, 1.0))) for name, count in TOKENS.items())
    return DomainSet(tuple(domains), budget)


@dataclass(frozen=True)
class Quadratic:
    """A surrogate that knows the form of the law: least squares on weights and their squares, with the exact posterior of its coefficients."""

    def fit(self, swarm: Swarm, metrics: Sequence[str]) -> FittedQuadratic:
        features = self.features(swarm.points())
        values = swarm.values(metrics)
        precision = features.T @ features + 1e-8 * np.eye(features.shape[1])
        coefficients = np.linalg.solve(precision, features.T @ values)
        degrees = max(len(values) - features.shape[1], 1)
        noise = np.sqrt(((values - features @ coefficients) ** 2).sum(axis=0) / degrees) + 1e-9
        return FittedQuadratic(tuple(metrics), coefficients, np.linalg.cholesky(np.linalg.inv(precision)), noise)

    @staticmethod
    def features(points: Points) -> FloatArray:
        weights = points.averages()
        return np.concatenate([weights, weights**2], axis=1)


@dataclass(frozen=True)
class FittedQuadratic:
    metrics: tuple[str, ...]
    coefficients: FloatArray
    root: FloatArray
    noise_std: FloatArray

    def mean(self, points: Points) -> FloatArray:
        return Quadratic.features(points) @ self.coefficients

    def posterior(self, points: Points) -> GaussianPosterior:
        factor = Quadratic.features(points) @ self.root
        std = np.sqrt((factor**2).sum(axis=1))[:, None] * self.noise_std
        return GaussianPosterior(self.mean(points), std, lambda metric: factor * self.noise_std[metric])


def law(weights: FloatArray) -> FloatArray:
    """Losses (n, 3): two that share the optimum, one that says nothing."""
    distance = ((weights - OPTIMUM) ** 2).sum(axis=1)
    return np.stack([1 + distance, 2 + 2 * distance, np.full(len(weights), 3.0)], axis=1)


def make_swarm(domains: DomainSet, trials: int, noise_std: float = 0.01, shared: float = 0.0, seed: int = 0) -> Swarm:
    """Design points answered by the law; `shared` of the noise variance is common to all metrics of a trial."""
    rng = np.random.default_rng(seed)
    sequence = design_sequence(domains, 3, seed)
    points = [next(sequence) for _ in range(trials)]
    weights = np.array([point.mixture.array() for point in points])
    noise = np.sqrt(shared) * rng.normal(size=(trials, 1)) + np.sqrt(1 - shared) * rng.normal(size=(trials, 3))
    metrics = ["target/a", "target/b", "valid/flat"]
    swarm = Swarm.from_arrays(domains.names, weights[:, None], metrics, law(weights) + noise_std * noise, SOURCE)
    labels = dict(zip(swarm.trial_ids, [point.label for point in points], strict=True))
    return Swarm(swarm.domains, swarm.table.with_columns(pl.col("trial_id").replace_strict(labels).alias("label")))


SETTINGS = Settings({"target/a": 1.0, "target/b": 1.0}, "noise_scaled", seeds=3, pull=0.0, seed=0)


def propose(domains: DomainSet, swarm: Swarm, settings: Settings = SETTINGS) -> Proposal:
    return recommend(swarm, MixtureSpace.from_domains(domains), domains, Quadratic(), settings)


def test_finds_the_optimum_and_reports_every_metric() -> None:
    domains = domain_set()
    proposal = propose(domains, make_swarm(domains, 60))
    # Noise of .01 on 60 trials moves a fitted parabola's vertex by about a hundredth; three of them allowed.
    assert np.abs(proposal.mixture.array() - OPTIMUM).max() < 0.03
    assert set(proposal.effects) == {"target/a", "target/b", "valid/flat"}
    assert abs(proposal.effects["valid/flat"].mean) < 0.01
    assert proposal.objective.high < 0
    assert proposal.epochs["math"] == pytest.approx(proposal.mixture.as_dict()["math"] * 100 / 6)
    for index, name in enumerate(domains.names):
        low, high = proposal.near_optimal[name]
        assert low <= OPTIMUM[index] + 0.02
        assert high >= OPTIMUM[index] - 0.02
        assert high - low < 0.3


def test_caps_hold_and_are_named() -> None:
    domains = domain_set(300.0)
    proposal = propose(domains, make_swarm(domains, 60))
    assert "math: 4 epochs allow at most 0.08" in proposal.binding
    assert "books: 4 epochs allow at most 0.133" in proposal.binding
    assert proposal.mixture.as_dict()["math"] == pytest.approx(0.08)


def test_the_pull_draws_toward_natural() -> None:
    domains = domain_set()
    swarm, natural = make_swarm(domains, 60), domains.natural().array()
    distances = []
    for pull in (0.0, 0.3, 30.0):
        proposal = propose(domains, swarm, Settings(SETTINGS.metrics, "noise_scaled", 3, pull, 0))
        distances.append(np.abs(proposal.mixture.array() - natural).sum())
    assert distances[0] > distances[1] > distances[2]
    assert distances[2] < 0.1


def test_intervals_of_the_objective_cover_the_truth() -> None:
    """Nominal 90%; over 60 swarms sigma is 3.9 points, three of them allowed below. Noise is fully shared between the metrics."""
    domains = domain_set()
    space = MixtureSpace.from_domains(domains)
    natural, point = domains.natural().array(), OPTIMUM[None]
    hits = 0
    for seed in range(60):
        swarm = make_swarm(domains, 40, shared=1.0, seed=seed)
        objective = fit_objective("noise_scaled", SETTINGS.metrics, swarm, domains.natural())
        effect = predict(Quadratic(), swarm, objective, space.domains, natural, seed).objective_effects(point, natural)[0]
        truth = objective.difference(law(point)[:, :2], law(natural[None])[:, :2])[0]
        hits += effect.low <= truth <= effect.high
    assert hits / 60 > 0.9 - 3 * 0.039


def test_shared_noise_widens_the_objective_but_not_the_metrics() -> None:
    domains = domain_set()
    widths = {}
    for shared in (0.0, 1.0):
        swarm = make_swarm(domains, 60, shared=shared)
        objective = fit_objective("noise_scaled", SETTINGS.metrics, swarm, domains.natural())
        prediction = predict(Quadratic(), swarm, objective, domains.names, domains.natural().array(), 0)
        effect = prediction.objective_effects(OPTIMUM[None], domains.natural().array())[0]
        independent = prediction.metric_effects(OPTIMUM)
        per_metric = [
            (independent[metric].high - independent[metric].low) / scale
            for metric, scale in zip(objective.metrics, objective.noise_std, strict=True)
        ]
        widths[shared] = (effect.high - effect.low) / np.mean(per_metric)
    # The mean of two metrics: 1 / sqrt 2 of one when independent, all of it when they err together.
    assert widths[0.0] == pytest.approx(0.707, abs=0.12)
    assert widths[1.0] == pytest.approx(1.0, abs=0.08)


def test_a_gain_inside_the_noise_is_called_so_and_a_clear_one_is_not() -> None:
    domains = domain_set()
    noisy = propose(domains, make_swarm(domains, 60, noise_std=1.0)).evidence["guard"]
    assert noisy["inside_noise"]
    assert "inside the noise" in noisy["sentence"]
    clear = propose(domains, make_swarm(domains, 60, noise_std=0.0005)).evidence["guard"]
    assert not clear["inside_noise"]
    assert clear["difference"]["high"] < 0


def test_best_measured_is_feasible_where_any_is() -> None:
    domains = domain_set(300.0)
    space = MixtureSpace.from_domains(domains)
    best = propose(domains, make_swarm(domains, 60)).best_measured
    assert best["feasible"]
    assert space.contains(np.array([[best["weights"][name] for name in domains.names]]), 1e-6)[0]


def test_a_best_measured_mixture_that_breaks_caps_is_called_so() -> None:
    # A bound between two narrow values holds no point of the design.
    domains = domain_set(code=(0.377, 0.3771), web=(0.2, 0.2001))
    best = propose(domains, make_swarm(domains, 30)).best_measured
    assert not best["feasible"]
    assert "none of them keeps the caps" in best["note"]


def test_evidence_follows_the_swarm() -> None:
    domains = domain_set()
    swarm = make_swarm(domains, 40)
    evidence = propose(domains, swarm).evidence
    assert [entry["trial_id"] for entry in evidence["predicted"]] == list(swarm.trial_ids)
    assert set(evidence["spearman"]) == {"target/a", "target/b", "valid/flat", "objective"}
    assert evidence["spearman"]["objective"] > 0.9
    assert evidence["coverage90"] > 0.75
    natural = evidence["baselines"]["natural"]
    assert natural["measured"] == pytest.approx(0.0, abs=1e-9)
    assert natural["mean"] == pytest.approx(0.0, abs=1e-9)
    assert evidence["baselines"]["uniform"]["runs"] == 3
    # Measured and predicted baselines agree within their noise: a seed's sigma over sqrt(runs), four of them.
    for baseline in evidence["baselines"].values():
        assert abs(baseline["measured"] - baseline["mean"]) < 4


def test_screened_metrics_are_reported_and_still_predicted() -> None:
    domains = domain_set()
    settings = Settings({"target/a": 1.0, "valid/flat": 1.0}, "noise_scaled", 3, 0.0, 0)
    proposal = propose(domains, make_swarm(domains, 40), settings)
    assert set(proposal.screened) == {"valid/flat"}
    assert "valid/flat" in proposal.effects


def test_where_nothing_depends_on_the_mixture_the_natural_one_is_proposed() -> None:
    domains = domain_set()
    swarm = make_swarm(domains, 20, noise_std=0.0)
    flat = Swarm(swarm.domains, swarm.table.with_columns(bits_per_byte=pl.lit(1.0)))
    for kind in ("noise_scaled", "mean", "worst_case"):
        settings = Settings({"target/a": 1.0, "target/b": 1.0}, kind, 3, 0.05, 0)  # type: ignore[arg-type]
        proposal = recommend(flat, MixtureSpace.from_domains(domains), domains, get_surrogate("gaussian_process"), settings)
        assert 0.5 * np.abs(proposal.mixture.array() - domains.natural().array()).sum() < 0.05
        assert proposal.evidence["guard"]["inside_noise"]


def test_a_metric_that_some_trials_lack_is_left_out_unless_the_objective_needs_it() -> None:
    domains = domain_set()
    swarm = make_swarm(domains, 40)
    first = swarm.trial_ids[0]
    cut = Swarm(swarm.domains, swarm.table.filter(~((pl.col("trial_id") == first) & (pl.col("metric") == "valid/flat"))))
    assert set(propose(domains, cut).effects) == {"target/a", "target/b"}
    with pytest.raises(DataError, match="valid/flat"):
        propose(domains, cut, Settings({"valid/flat": 1.0}, "noise_scaled", 3, 0.0, 0))


def test_the_smallest_swarm_gives_a_proposal_and_says_what_is_missing() -> None:
    domains = domain_set()
    proposal = propose(domains, make_swarm(domains, 4))
    assert proposal.evidence["predicted"] == []
    assert proposal.evidence["out_of_fold_missing"]
    assert proposal.objective.low <= proposal.objective.high
    with pytest.raises(DataError, match="at least 4"):
        propose(domains, make_swarm(domains, 3))


@pytest.mark.parametrize(("name", "method"), [("gaussian_process", "slsqp"), ("lightgbm", "mean of best")])
def test_the_optimizer_suits_the_surrogate(name: str, method: str) -> None:
    domains = domain_set()
    settings = Settings({"target/a": 1.0}, "noise_scaled", 3, 0.05, 0)
    swarm = make_swarm(domains, 40)
    one = Swarm(swarm.domains, swarm.table.filter(pl.col("metric") == "target/a"))
    proposal = recommend(one, MixtureSpace.from_domains(domains), domains, get_surrogate(name), settings)
    assert proposal.evidence["optimizer"]["method"] == method
    # Better than natural by the law itself, whatever the surrogate thinks.
    assert law(proposal.mixture.array()[None])[0, 0] < law(domains.natural().array()[None])[0, 0]
