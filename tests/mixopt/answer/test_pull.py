"""The pull: halves that share no mixture, choices that can be foreseen, and a law with a known optimum over several seeds."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from mixopt.answer import pull
from mixopt.answer.local_search import descend
from mixopt.answer.pull import DEFAULT_PULL, FEWEST_MIXTURES, MOST_RUNS_PER_HALF, STRENGTHS, PullChoice, choose_pull
from mixopt.domains import DomainSet
from mixopt.mixture import FloatArray
from mixopt.objective import Estimates, Objective, fit_objective
from mixopt.simplex import kl_divergence
from mixopt.space import MixtureSpace
from mixopt.surrogates import get_surrogate
from mixopt.surrogates.observations import mixture_groups
from mixopt.swarm import Points, Swarm
from tests.mixopt.answer.conftest import SOURCE, FittedLaw, Law, domain_set

NAMES = ("a", "b", "c")
NATURAL = np.array([0.5, 0.3, 0.2])
DOMAINS = domain_set(dict(zip(NAMES, NATURAL, strict=True)))
SPACE = MixtureSpace.from_domains(DOMAINS)
BEST = np.array([0.2, 0.5, 0.3])


def away(centre: FloatArray) -> Law:
    return Law(NAMES, ("x",), lambda p: 1 + ((p - centre) ** 2).sum(axis=1, keepdims=True))


def mixtures(count: int, seed: int = 0) -> FloatArray:
    return np.random.default_rng(seed).dirichlet(np.ones(3), count)


def objective_of(runs: Swarm) -> Objective:
    return fit_objective("mean", {"x": 1.0}, runs, estimates=Estimates(("x",), np.array([0.01]), np.array([1.0])))


def choose(runs: Swarm, space: MixtureSpace = SPACE, domains: DomainSet = DOMAINS, seed: int = 0, spread: float = 0.1) -> PullChoice:
    return choose_pull(runs, space, objective_of(runs), domains.natural().array(space.domains), spread, seed)


@dataclass(frozen=True)
class Fooled:
    """What a half makes of its runs: the law, plus a slope of its own that no other half has."""

    law: Law
    slope: float = 0.0
    fitted: list[Swarm] = field(default_factory=list)

    def fit(self, swarm: Swarm, metrics: Sequence[str]) -> FittedLaw:
        self.fitted.append(swarm)
        slopes = self.slope * np.random.default_rng(zlib.crc32(",".join(swarm.trial_ids).encode())).normal(size=len(NAMES))
        law = replace(self.law, losses=lambda p: self.law.losses(p) + (p @ slopes)[:, None])
        return FittedLaw(law, tuple(metrics))


def seen_by(monkeypatch: pytest.MonkeyPatch, surrogate: Fooled) -> Fooled:
    monkeypatch.setattr(pull, "get_surrogate", lambda _name: surrogate)
    return surrogate


def test_fewer_than_16_mixtures_have_the_default_however_many_runs() -> None:
    few = np.repeat(mixtures(FEWEST_MIXTURES - 1), 4, axis=0)
    choice = choose(away(BEST).swarm(few))
    assert (choice.pull, choice.scores) == (DEFAULT_PULL, ())
    assert "15 mixtures are too few" in choice.how


def test_halves_share_no_mixture_and_hold_at_most_128_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = away(BEST).swarm(np.repeat(mixtures(150), 2, axis=0))
    group = dict(zip(runs.trial_ids, mixture_groups(runs).tolist(), strict=True))
    surrogate = seen_by(monkeypatch, Fooled(away(BEST)))
    choose(runs)
    assert len(surrogate.fitted) == 2 * pull.SPLITS
    for first, second in zip(surrogate.fitted[::2], surrogate.fitted[1::2], strict=True):
        assert not {group[name] for name in first.trial_ids} & {group[name] for name in second.trial_ids}
        assert len(first) == len(second) == MOST_RUNS_PER_HALF
    assert len({half.trial_ids for half in surrogate.fitted}) == len(surrogate.fitted), "every split is another"


def test_predictions_that_are_right_are_not_pulled(monkeypatch: pytest.MonkeyPatch) -> None:
    seen_by(monkeypatch, Fooled(away(BEST)))
    choice = choose(away(BEST).swarm(mixtures(32)))
    assert choice.pull == 0.0
    assert list(choice.scores) == sorted(choice.scores), "every pull costs what it gives up"
    assert len(choice.scores) == len(choice.errors) == len(choice.strengths) == len(STRENGTHS)
    assert choice.how == "0, the largest within one standard error of the best in 8 halves of about 16 runs, each judged by the other"


def test_predictions_that_are_luck_are_pulled_all_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """The natural mixture is best, and every half sees a slope that is not there."""
    seen_by(monkeypatch, Fooled(away(NATURAL), slope=0.2))
    choice = choose(away(NATURAL).swarm(mixtures(32)))
    assert choice.pull >= 0.5
    assert choice.scores[0] > choice.scores[-1]


def test_the_more_luck_the_more_pull(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = []
    for slope in (0.0, 0.1, 0.5):
        seen_by(monkeypatch, Fooled(away(BEST), slope=slope))
        chosen.append(np.mean([choose(away(BEST).swarm(mixtures(20)), seed=seed).pull for seed in range(2)]))
    assert chosen[0] == 0
    assert chosen[0] <= chosen[1] <= chosen[2]
    assert chosen[2] >= 0.2


def test_where_strength_changes_nothing_the_largest_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """One feasible mixture: all answers are the same."""
    fixed = domain_set(dict(zip(NAMES, NATURAL, strict=True)), bounds={"a": (0.5, 0.5), "b": (0.3, 0.3), "c": (0.2, 0.2)})
    seen_by(monkeypatch, Fooled(away(BEST), slope=0.2))
    assert choose(away(BEST).swarm(mixtures(32)), MixtureSpace.from_domains(fixed), fixed).pull == 1.0


def test_choices_follow_the_seed_the_unit_and_the_order_of_domains_as_they_should(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same seed chooses the same; losses and spread in another unit, or domains in another order, choose the same, too."""
    runs = away(BEST).swarm(mixtures(32))
    seen_by(monkeypatch, Fooled(away(BEST), slope=0.1))
    first, again = choose(runs), choose(runs)
    assert first == again
    assert choose(runs, seed=1).scores != first.scores
    turned = domain_set({name: NATURAL[NAMES.index(name)] for name in ("c", "a", "b")})
    other = choose(runs, MixtureSpace.from_domains(turned), turned)
    assert other.pull == first.pull
    np.testing.assert_allclose(other.scores, first.scores, atol=1e-4)
    small = replace(away(BEST), losses=lambda p: away(BEST).losses(p) / 1000)
    seen_by(monkeypatch, Fooled(small, slope=0.1 / 1000))
    scaled = choose(small.swarm(mixtures(32)), spread=0.1 / 1000)
    assert scaled.pull == first.pull
    np.testing.assert_allclose(np.array(scaled.scores) * 1000, first.scores, atol=1e-4)


def test_of_a_large_problem_one_split_and_fewer_strengths_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    surrogate = seen_by(monkeypatch, Fooled(away(BEST)))
    monkeypatch.setattr(pull, "LARGE", 2)
    choice = choose(away(BEST).swarm(mixtures(32)))
    assert choice.strengths == pull.STRENGTHS_OF_LARGE
    assert len(surrogate.fitted) == 2
    assert np.isfinite(choice.errors).all()


def test_over_seeds_the_choice_is_no_worse_than_no_pull_and_than_the_worst_fixed_one() -> None:
    """A parabola in three domains, 24 runs with noise as large as their spread, five seeds, a Gaussian process: the true loss of the answers.

    The law's optimum and its spread are known; a twentieth of that spread is allowed for the luck of five seeds.
    """
    law = away(BEST)
    found: dict[str, list[float]] = {name: [] for name in ("chosen", *map(str, STRENGTHS))}
    for seed in range(5):
        runs = law.swarm(mixtures(24, seed), noise=0.2, seed=seed)
        fitted = get_surrogate("gaussian_process").fit(runs, ("x",))
        spread = float(runs.values(["x"]).std())
        answers: dict[float, float] = {}
        for strength in STRENGTHS:

            def pulled(weights: FloatArray, fitted=fitted, by: float = strength * spread) -> FloatArray:  # type: ignore[no-untyped-def]
                return np.asarray(
                    fitted.mean(Points(NAMES, weights[:, None], (SOURCE,) * len(weights)))[:, 0] + by * kl_divergence(weights, NATURAL)
                )

            cells = np.concatenate([NATURAL[None], SPACE.sample(500, np.random.default_rng(0))])
            found_at, _ = descend(pulled, SPACE, cells[int(np.argmin(pulled(cells)))])
            answers[strength] = float(law.losses(found_at[None])[0, 0])
            found[str(strength)].append(answers[strength])
        found["chosen"].append(answers[choose(runs, seed=seed, spread=spread).pull])
    means = {name: float(np.mean(values)) for name, values in found.items()}
    allowed = 0.05 * float(law.losses(SPACE.sample(1000, np.random.default_rng(1))).std())
    assert means["chosen"] <= means["0.0"] + allowed
    assert means["chosen"] < max(means[str(strength)] for strength in STRENGTHS)
