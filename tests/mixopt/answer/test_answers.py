"""Answers under constraints: floors, what relaxing brings, the pull, against closed forms and brute force over a law that the surrogate knows exactly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixopt.answer.floors import Floor
from mixopt.answer.local_search import descend, residuals
from mixopt.answer.projected_gradient import follow
from mixopt.domains import Domain, DomainSet
from mixopt.errors import ConfigError, InfeasibleError
from mixopt.mixture import FloatArray
from mixopt.proposal import Proposal
from mixopt.recommendation import Settings, recommend
from mixopt.simplex import kl_divergence
from mixopt.space import MixtureSpace
from mixopt.surrogates.posterior import GaussianPosterior
from mixopt.swarm import Points, Swarm
from mixopt.trial import Source

SOURCE = Source("trained", "nano", 1000)
NAMES = ("a", "b", "c")
METRICS = ("one", "two")
TARGETS = np.array([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]])
"""Where each metric is least: they pull apart."""


def truth(weights: FloatArray) -> FloatArray:
    return np.stack([1 + ((weights - target) ** 2).sum(axis=1) for target in TARGETS], axis=1)


@dataclass(frozen=True)
class Known:
    """A surrogate that is right everywhere, nearly certain of it, and knows the noise."""

    def fit(self, swarm: Swarm, metrics: Sequence[str]) -> Known.Fitted:
        return Known.Fitted(tuple(metrics), [METRICS.index(metric) for metric in metrics], [list(NAMES).index(n) for n in swarm.domains])

    @dataclass(frozen=True)
    class Fitted:
        metrics: tuple[str, ...]
        columns: list[int]
        order: list[int]

        @property
        def noise_std(self) -> FloatArray:
            return np.full(len(self.columns), 0.01)

        def mean(self, points: Points) -> FloatArray:
            position = {name: index for index, name in enumerate(points.domains)}
            weights = points.averages()[:, [position[name] for name in NAMES]]
            return truth(weights)[:, self.columns]

        def posterior(self, points: Points) -> GaussianPosterior:
            mean = self.mean(points)
            std = 1e-4
            return GaussianPosterior(mean, np.full(mean.shape, std), lambda _metric: std * np.eye(len(mean)))


def domain_set(tokens: Sequence[float] = (1.0, 1.0, 1.0), budget: float = 3.0, **bounds: tuple[float, float]) -> DomainSet:
    epochs = 1e9 if budget == 3.0 else 4.0
    rows = zip(NAMES, tokens, strict=True)
    return DomainSet(tuple(Domain(n, n, 1000, t, max_epochs=epochs, bounds=bounds.get(n, (0.0, 1.0))) for n, t in rows), budget)


def swarm(domains: DomainSet, count: int = 24, noise: float = 0.0, seed: int = 0) -> Swarm:
    weights = np.random.default_rng(seed).dirichlet(np.ones(3), count)
    weights[0] = 1 / 3
    losses = truth(weights) + noise * np.random.default_rng(seed + 1).normal(size=(count, 2))
    order = [NAMES.index(name) for name in domains.names]
    return Swarm.from_arrays(domains.names, weights[:, None][:, :, order], METRICS, losses, SOURCE)


SETTINGS = Settings({"one": 1.0, "two": 1.0}, "mean", seeds=3, pull=0.0, seed=0)


def propose(domains: DomainSet, chosen: Settings = SETTINGS) -> Proposal:
    return recommend(swarm(domains), MixtureSpace.from_domains(domains), domains, Known(), chosen)


def grid(steps: int = 200) -> FloatArray:
    cells = [(i / steps, j / steps) for i in range(steps + 1) for j in range(steps + 1 - i)]
    return np.array([(a, b, 1 - a - b) for a, b in cells])


def test_without_constraints_the_answer_is_the_closed_form() -> None:
    """The mean of two parabolas of one curvature is least halfway between their bottoms."""
    proposal = propose(domain_set())
    np.testing.assert_allclose(proposal.mixture.array(), TARGETS.mean(axis=0), atol=2e-3)
    checked = proposal.evidence["optimizer"]["residuals"]
    assert checked["sum"] < 1e-9
    assert checked["bounds"] == 0
    assert checked["first_order"] < 0.01
    assert proposal.binding == ()
    assert proposal.relaxations == ()


@pytest.mark.parametrize("kind", ["weighted", "noise_scaled", "z_scored", "worst_case", "mean"])
def test_every_kind_agrees_with_brute_force(kind: str) -> None:
    chosen = replace(SETTINGS, objective_kind=kind, metrics={"one": 3.0, "two": 1.0})  # type: ignore[arg-type]
    proposal = propose(domain_set(), chosen)
    losses, natural = truth(grid()), truth(np.full((1, 3), 1 / 3))
    scale = swarm(domain_set()).values(METRICS).std(axis=0, ddof=1) if kind == "z_scored" else np.ones(2)
    parts = (losses - natural) / scale
    values = parts.max(axis=1) if kind == "worst_case" else parts @ np.array([0.75, 0.25])
    np.testing.assert_allclose(proposal.mixture.array(), grid()[np.argmin(values)], atol=0.012)


def test_a_floor_is_kept_to_a_millionth_and_agrees_with_brute_force() -> None:
    """Metric two may not be worse than at the uniform mixture: the mean alone would let it, with metric one ten times as heavy."""
    heavy = replace(SETTINGS, metrics={"one": 10.0, "two": 1.0})
    free, held = propose(domain_set(), heavy), propose(domain_set(), replace(heavy, floors=(Floor("two", "uniform", 0.0),)))
    limit = truth(np.full((1, 3), 1 / 3))[0, 1]
    assert truth(free.mixture.array()[None])[0, 1] > limit + 0.05
    assert truth(held.mixture.array()[None])[0, 1] <= limit + 2e-6
    cells = grid(400)
    kept = cells[truth(cells)[:, 1] <= limit]
    best = kept[np.argmin(truth(kept) @ np.array([10, 1]))]
    np.testing.assert_allclose(held.mixture.array(), best, atol=0.01)
    assert any("two: the floor allows at most" in sentence for sentence in held.binding)
    relaxed = next(r for r in held.relaxations if "floor on two loosened" in r.change)
    assert relaxed.gain.mean < 0
    assert truth(np.array([list(relaxed.weights.values())]))[0, 1] <= limit + 0.01 + 1e-5, "one noise, .01, more"


def test_floors_that_cannot_be_kept_are_named_with_how_much_is_missing() -> None:
    impossible = (Floor("one", 1.0, 0.0), Floor("two", 1.0, 0.0))
    with pytest.raises(InfeasibleError, match=r"No mixture keeps every floor.*one: the floor allows at most 1 .*missed by") as raised:
        propose(domain_set(), replace(SETTINGS, floors=impossible))
    assert "Loosen these floors" in raised.value.hint


def test_a_floor_on_an_unknown_metric_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"'onne'.*") as raised:
        propose(domain_set(), replace(SETTINGS, floors=(Floor("onne"),)))
    assert "Did you mean 'one'?" in raised.value.hint


def test_a_bound_that_holds_is_named_and_its_price_is_what_the_wider_problem_gains() -> None:
    domains = domain_set(a=(0.0, 0.2))
    proposal = propose(domains)
    weights = proposal.mixture.array()
    assert weights[0] == pytest.approx(0.2)
    assert len(proposal.binding) == 1
    (relaxed,) = proposal.relaxations
    assert relaxed.constraint == proposal.binding[0]
    assert "raised from 0.2 to 0.21" in relaxed.change
    wider = propose(domain_set(a=(0.0, 0.21)))
    expected = truth(wider.mixture.array()[None]).mean() - truth(weights[None]).mean()
    assert relaxed.gain.mean == pytest.approx(expected, abs=2e-4)
    assert proposal.sensitivities["a"].mean < 0 < proposal.sensitivities["b"].mean + proposal.sensitivities["c"].mean + 1


def test_an_epoch_cap_that_holds_is_relaxed_by_a_tenth() -> None:
    """Three domains of 1, 2 and 3 tokens, a budget of 12, four epochs: at most a third of a."""
    domains = domain_set((1.0, 2.0, 3.0), 12.0)
    proposal = propose(domains, replace(SETTINGS, metrics={"one": 1.0}))
    assert proposal.mixture.as_dict()["a"] == pytest.approx(1 / 3)
    assert any("`max_epochs` of a raised from 4 to 4.4" in r.change and r.gain.mean < 0 for r in proposal.relaxations)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.floats(0.05, 0.9), min_size=3, max_size=3), st.floats(0, 1))
def test_relaxing_never_loses_and_answers_are_feasible(most: list[float], pull: float) -> None:
    most = [max(value, (1.0 - sum(most)) / 3 + value) for value in most]
    domains = domain_set(**{name: (0.0, min(value, 1.0)) for name, value in zip(NAMES, most, strict=True)})
    proposal = propose(domains, replace(SETTINGS, pull=pull))
    space = MixtureSpace.from_domains(domains)
    assert space.contains(proposal.mixture.array(NAMES)[None])[0]
    assert all(relaxed.gain.mean <= 0 for relaxed in proposal.relaxations)
    for alternative in proposal.alternatives:
        assert space.contains(np.array([list(alternative.weights.values())]), 1e-6)[0]


def test_the_order_of_domains_turns_the_answer_with_it() -> None:
    straight = propose(domain_set(a=(0.0, 0.3)))
    domains = domain_set(a=(0.0, 0.3))
    turned = DomainSet((domains.domains[2], domains.domains[0], domains.domains[1]), domains.budget_tokens)
    found = recommend(swarm(turned), MixtureSpace.from_domains(turned), turned, Known(), SETTINGS)
    for name in NAMES:
        assert found.mixture.as_dict()[name] == pytest.approx(straight.mixture.as_dict()[name], abs=1e-3)


def test_a_proposal_survives_json_with_its_new_parts() -> None:
    proposal = propose(domain_set(a=(0.0, 0.2)), replace(SETTINGS, floors=(Floor("two", "natural", 5.0, percent=True),)))
    again = Proposal.from_json(proposal.to_json())
    assert again == proposal
    assert again.relaxations == proposal.relaxations
    assert again.sensitivities == proposal.sensitivities
    assert again.alternatives == proposal.alternatives


def test_natural_losses_and_noise_come_from_the_surrogate_where_nothing_was_measured() -> None:
    runs = swarm(domain_set((5.0, 1.0, 1.0)))  # no run at the natural mixture, no repeats
    domains = domain_set((5.0, 1.0, 1.0))
    proposal = recommend(runs, MixtureSpace.from_domains(domains), domains, Known(), replace(SETTINGS, objective_kind="noise_scaled"))
    objective = proposal.evidence["objective"]
    natural = truth(np.array([[5 / 7, 1 / 7, 1 / 7]]))[0]
    assert objective["natural_from"] == "surrogate"
    np.testing.assert_allclose(objective["natural_losses"], natural, atol=1e-9)
    np.testing.assert_allclose(objective["noise_std"], 0.01)


def quadratic(dimension: int) -> tuple[FloatArray, MixtureSpace]:
    domains = DomainSet(
        tuple(Domain(f"d{i:03d}", "", 1, 1.0, max_epochs=1e9, bounds=(0.0, 0.2)) for i in range(dimension)), float(dimension)
    )
    return np.random.default_rng(3).dirichlet(np.full(dimension, 0.3)), MixtureSpace.from_domains(domains)


def test_the_projected_gradient_finds_what_slsqp_finds() -> None:
    """30 domains with caps, a pulled parabola: values within 1e-4 of each other, both feasible."""
    center, space = quadratic(30)

    def function(weights: FloatArray) -> FloatArray:
        return np.asarray(((weights - center) ** 2).sum(axis=1) + 0.05 * kl_divergence(weights, np.full(30, 1 / 30)))

    def slopes(point: FloatArray) -> FloatArray:
        step = 1e-6
        around = point + step * (np.eye(30) - point)
        return np.asarray((function(around) - function(point[None])) / step)

    start = space.sample(1, np.random.default_rng(0))[0]
    followed, said = follow(function, slopes, space, start)
    solved, _ = descend(function, space, start)
    assert said.startswith(("converged", "stopped"))
    assert space.contains(followed[None])[0]
    assert function(followed[None])[0] == pytest.approx(function(solved[None])[0], abs=1e-4)


def test_hundreds_of_domains_are_answered_and_checked() -> None:
    center, space = quadratic(150)

    def function(weights: FloatArray) -> FloatArray:
        return np.asarray(((weights - center) ** 2).sum(axis=1))

    found, said = descend(function, space, space.sample(1, np.random.default_rng(1))[0])
    assert "converged" in said or "stopped" in said
    best = space.project(center[None])[0]  # the nearest feasible mixture is the closed form
    assert function(found[None])[0] <= function(best[None])[0] + 1e-4
    assert residuals(function, space, found).bounds == 0


def test_the_pull_chosen_by_cross_validation_does_no_harm_and_is_explained() -> None:
    """32 noisy runs, six seeds, a Gaussian process: answers truly no worse on average than without a pull, within 5% of the spread."""
    domains = domain_set()
    space = MixtureSpace.from_domains(domains)
    from mixopt.surrogates import get_surrogate

    gained = {}
    for pull in (None, 0.0):
        values = []
        for seed in range(6):
            runs = swarm(domains, 32, noise=0.08, seed=seed)
            proposal = recommend(runs, space, domains, get_surrogate("gaussian_process"), replace(SETTINGS, pull=pull))
            values.append(float(truth(proposal.mixture.array(NAMES)[None]).mean()))
            if pull is None:
                said = proposal.evidence["pull_choice"]
                assert "one standard error" in said["how"]
        gained[pull] = float(np.mean(values))
    assert gained[None] <= gained[0.0] + 0.05 * truth(grid(20)).mean(axis=1).std()


def test_too_few_mixtures_for_cross_validation_get_the_default_pull() -> None:
    domains = domain_set()
    proposal = recommend(swarm(domains, 10), MixtureSpace.from_domains(domains), domains, Known(), replace(SETTINGS, pull=None))
    assert proposal.evidence["pull"] == pytest.approx(0.05)
    assert "10 mixtures are too few" in proposal.evidence["pull_choice"]["how"]


def test_a_report_shows_what_relaxing_a_cap_would_bring() -> None:
    from mixopt.tracking.report.sections import relaxation_table

    proposal = propose(domain_set(a=(0.0, 0.2)))
    table = relaxation_table(proposal, "bits per byte")
    assert table.rows[0][0] == proposal.binding[0]
    assert "raised from 0.2 to 0.21" in table.rows[0][1]
