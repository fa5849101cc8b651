"""Verification: what is trained, how seeds are paired, and what is concluded from them."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixopt.errors import DataError
from mixopt.history import History
from mixopt.mixture import Mixture, Schedule
from mixopt.objective import Objective
from mixopt.proposal import Effect, Proposal
from mixopt.search import run_trials
from mixopt.trial import Failure, FailureKind, Measurement, Outcome, Trial
from mixopt.verification import Verification, paired, plan_verification, summarize

NAMES = ("web", "code", "math")
NATURAL = Mixture(NAMES, (0.2, 0.3, 0.5))
UNIFORM = Mixture(NAMES, (1 / 3, 1 / 3, 1 / 3))
UNIMAX = Mixture(NAMES, (0.3, 0.3, 0.4))
BEST = Mixture(NAMES, (0.1, 0.5, 0.4))
PROPOSED = Mixture(NAMES, (0.15, 0.5, 0.35))
MEAN = Objective("mean", ("target/a", "target/b"), (0.75, 0.25), (0.01, 0.01), (1.0, 1.0), 6, {})
SCALED = dataclasses.replace(MEAN, kind="noise_scaled", noise_std=(0.01, 0.02))


def proposal(mixture: Mixture = PROPOSED, best: Mapping[str, Any] | None = None) -> Proposal:
    measured = {"trial_id": "x", "label": "design", "weights": BEST.as_dict(), "objective": -1.0, "feasible": True}
    return Proposal(Schedule.constant(mixture), Effect(-1, -2, 0), {}, {}, {}, (), {}, {**measured, **(best or {})})


def plan(lab: Any, seeds: int = 3, **options: Any) -> list[Trial]:
    return plan_verification(proposal(**options), NATURAL, UNIFORM, UNIMAX, lab.factory().make, seeds)


def arms(trials: Sequence[Trial]) -> list[str]:
    return list(dict.fromkeys(trial.label for trial in trials))


@pytest.fixture
def verify(history: History, lab: Any) -> Callable[..., Verification]:
    """Runs a plan whose losses are a level per arm, an effect of the seed common to all arms, and a wobble of the pair."""

    def run(
        levels: Mapping[str, float],
        objective: Objective = MEAN,
        trials: Sequence[Trial] | None = None,
        wobble: float = 0.001,
        wobble_b: float = 0.0,
        lost: Sequence[tuple[str, int]] = (),
        **options: Any,
    ) -> Verification:
        trials = plan(lab) if trials is None else trials
        runner = lab.runner()
        for trial in trials:
            arm = trial.label.removeprefix("verify:").split("+")[0]
            if (arm, trial.seed) in lost:
                runner.failures[trial.trial_id] = [Failure(FailureKind.DIVERGED, "nan")]
            level = levels.get(arm, 1.0) + 0.2 * trial.seed + wobble * math.sin(10 * trial.seed + len(arm))
            shares = {d.content_hash: (w,) for d, w in zip(trial.domains, trial.schedule.average().weights, strict=True)}
            shift = 0.5 + wobble_b * math.sin(7 * trial.seed + len(arm))
            losses = (Measurement("key-a", 100, 1.0, level), Measurement("key-b", 100, 1.0, level + shift))
            runner.kept[trial.trial_id] = Outcome(trial.trial_id, shares, losses, 100, 1.0, 1.0)
        history.add_trials("s1", trials, "verification")
        for trial in trials:
            if not runner.failures.get(trial.trial_id):
                history.complete(runner.kept[trial.trial_id])
        run_trials(history, "s1", "verification", runner, trials, lab.metrics)
        return summarize(history.swarm("s1", NAMES, lab.metrics, "verification"), trials, objective, **options)

    return run


def rows(verification: Verification, metric: str = "objective") -> dict[str, Any]:
    return {row.baseline: row for row in verification.comparisons if row.metric == metric}


def test_every_arm_is_trained_with_the_same_seeds(lab: Any) -> None:
    trials = plan(lab)
    assert arms(trials) == [f"verify:{arm}" for arm in ("proposal", "best_measured", "natural", "uniform", "unimax")]
    assert [trial.seed for trial in trials] == [0, 1, 2] * 5
    assert trials[3].schedule.average() == BEST


def test_equal_mixtures_are_trained_once(lab: Any) -> None:
    reordered = Mixture(("math", "web", "code"), (0.4, 0.3, 0.3))
    trials = plan(lab, mixture=reordered, best={"weights": NATURAL.as_dict()})
    assert arms(trials) == ["verify:proposal+unimax", "verify:best_measured+natural", "verify:uniform"]
    assert len({trial.trial_id for trial in trials}) == len(trials) == 9


@pytest.mark.parametrize("best", [{"feasible": False}, {"weights": {}}])
def test_a_best_measured_mixture_that_cannot_be_used_is_no_arm(lab: Any, best: dict[str, Any]) -> None:
    assert "verify:best_measured" not in arms(plan(lab, best=best))


def test_a_clear_win_is_said_and_recommended(verify: Callable[..., Verification]) -> None:
    found = verify({"proposal": 0.9})
    assert (found.winner, found.recommended) == ("proposal", "proposal")
    assert "the proposal beat all 4 other mixtures." in found.sentence
    assert found.sentence.count(" It beat ") == 4
    assert found.conclusion.endswith("Recommended: the proposal, because the proposal beats the best measured mixture beyond noise.")
    assert {row.verdict for row in rows(found).values()} == {"better"}
    assert found.reason == "the proposal beats the best measured mixture beyond noise"


def test_pairing_removes_what_the_seed_does_to_every_arm(verify: Callable[..., Verification]) -> None:
    row = rows(verify({"proposal": 0.95}))["natural"]
    unpaired_error = np.std([0.0, 0.2, 0.4], ddof=1) / math.sqrt(3)
    assert row.high - row.low < unpaired_error / 10
    assert row.mean == pytest.approx(-0.05, abs=0.002)


def test_a_gain_inside_noise_prefers_the_best_measured_mixture(verify: Callable[..., Verification]) -> None:
    found = verify({"proposal": 0.8995, "best_measured": 0.9}, wobble=0.01)
    assert found.recommended == "best_measured"
    assert found.reason == "the proposal does not beat the best measured mixture beyond noise"
    assert "It could not be told apart from the best measured mixture: 0.000" in found.sentence
    assert "lower to 0.0" in found.sentence
    assert "beat 3 of 4 other mixtures, lost to none and tied with 1." in found.sentence


def test_a_baseline_that_wins_beyond_noise_is_recommended_if_the_target_run_can_use_it(verify: Callable[..., Verification]) -> None:
    levels = {"proposal": 0.95, "uniform": 0.8, "unimax": 0.9}
    assert verify(levels).recommended == "uniform"
    found = verify(levels, feasible=lambda mixture: mixture != UNIFORM)
    assert (found.winner, found.recommended, found.infeasible) == ("uniform", "unimax", ("uniform",))
    assert found.reason == "UniMax beats the proposal beyond noise"
    assert "It lost to the uniform mixture: 0.1500 bits per byte higher" in found.sentence


def test_objective_is_relative_to_natural_at_this_source(verify: Callable[..., Verification]) -> None:
    found = verify({"proposal": 0.9}, SCALED, wobble=0.0)
    assert np.mean(found.losses["natural"]["objective"]) == pytest.approx(0.0, abs=1e-9)
    assert rows(found)["natural"].mean == pytest.approx(0.75 * -0.1 / 0.01 + 0.25 * -0.1 / 0.02)
    assert rows(found, "bits_per_byte")["natural"].mean == pytest.approx(-0.1)
    assert rows(found, "target/b")["natural"].values == pytest.approx((-0.1, -0.1, -0.1))
    assert found.objective_unit == "standard deviations of a seed"


def test_lost_seeds_are_left_out_of_the_pairs_and_said(verify: Callable[..., Verification]) -> None:
    found = verify({"proposal": 0.9}, lost=[("proposal", 1), ("natural", 2), ("uniform", 0), ("uniform", 1)])
    assert rows(found)["unimax"].seeds == (0, 2)
    assert "natural" not in rows(found)
    assert "Too few seeds finished to compare it with the natural mixture and the uniform mixture." in found.sentence
    assert "the uniform mixture 0, 1" in found.sentence
    assert found.missing["proposal"] == (1,)
    assert len(found.losses["proposal"]["objective"]) == 2


def test_a_proposal_that_never_finished_is_an_error(verify: Callable[..., Verification]) -> None:
    with pytest.raises(DataError, match="No verification run of the proposal finished"):
        verify({}, lost=[("proposal", seed) for seed in range(3)])


def test_natural_missing_altogether_keeps_the_searchs_reference(verify: Callable[..., Verification]) -> None:
    found = verify({"proposal": 0.9}, SCALED, lost=[("natural", seed) for seed in range(3)])
    assert rows(found)["uniform"].verdict == "better"
    assert found.losses["natural"]["objective"] == ()


def test_the_sentences_are_short_and_quote_one_unit(verify: Callable[..., Verification]) -> None:
    found = verify({"proposal": 0.9, "best_measured": 0.8}, wobble=0.0, trials=None)
    assert found.sentence == (
        "At a larger source (nano, 100,000 tokens, 3 paired seeds) the proposal beat 3 of 4 other mixtures, lost to 1. "
        "It beat the natural mixture: 0.1000 bits per byte lower (95% interval 0.1000 to 0.1000). "
        "It beat the uniform mixture: 0.1000 bits per byte lower (95% interval 0.1000 to 0.1000). "
        "It beat UniMax: 0.1000 bits per byte lower (95% interval 0.1000 to 0.1000). "
        "It lost to the best measured mixture: 0.1000 bits per byte higher (95% interval 0.1000 to 0.1000)."
    )


def test_a_mixture_of_two_names_is_compared_once(verify: Callable[..., Verification], lab: Any) -> None:
    found = verify({"proposal": 0.9}, trials=plan(lab, best={"weights": UNIMAX.as_dict()}))
    assert found.rivals == {"best_measured": ("best_measured", "unimax"), "natural": ("natural",), "uniform": ("uniform",)}
    assert "beat all 3 other mixtures" in found.sentence
    assert found.sentence.count("the best measured mixture (UniMax)") == 1


def test_where_bits_per_byte_and_objective_disagree_both_are_quoted(verify: Callable[..., Verification]) -> None:
    """Metric b, which the objective scales down to nothing, hides in its wobble what metric a shows."""
    objective = dataclasses.replace(SCALED, weights=(0.5, 0.5), noise_std=(0.01, 100.0))
    found = verify({"proposal": 0.99}, objective, wobble=0.0001, wobble_b=0.2)
    row, bits = rows(found)["natural"], rows(found, "bits_per_byte")["natural"]
    assert (row.verdict, bits.verdict) == ("better", "undecided")
    assert f"but judged by the objective, {row.mean:+.3g} standard deviations of a seed" in found.sentence


def test_without_enough_seeds_nothing_is_claimed(verify: Callable[..., Verification]) -> None:
    found = verify({"proposal": 0.9}, lost=[("proposal", 0), ("proposal", 1)])
    assert found.recommended == "proposal"
    assert found.reason == "too few seeds finished to compare the proposal with any other mixture"
    assert "could not be compared with another mixture" in found.sentence


def test_a_best_measured_mixture_without_enough_seeds_decides_nothing(verify: Callable[..., Verification]) -> None:
    found = verify({"proposal": 0.9}, lost=[("best_measured", 0), ("best_measured", 1)])
    assert found.recommended == "proposal"
    assert found.reason == "too few seeds finished to compare the proposal with the best measured mixture"


def test_a_run_that_lacks_a_metric_of_the_objective_is_an_error(verify: Callable[..., Verification]) -> None:
    with pytest.raises(DataError, match="not scored on 'target/c'"):
        verify({}, dataclasses.replace(MEAN, metrics=("target/a", "target/c")))


def test_a_proposal_equal_to_a_baseline_is_said_to_be(verify: Callable[..., Verification], lab: Any) -> None:
    found = verify({"proposal": 0.9}, trials=plan(lab, mixture=UNIMAX))
    assert found.same == ("unimax",)
    assert "is the same mixture as UniMax" in found.sentence
    assert "unimax" not in rows(found)
    assert found.losses["unimax"] == found.losses["proposal"]


def test_earlier_verifications_do_not_enter(verify: Callable[..., Verification], lab: Any, history: History) -> None:
    verify({"proposal": 0.5}, trials=plan(lab, mixture=Mixture(NAMES, (0.6, 0.2, 0.2))))
    found = verify({"proposal": 0.9})
    assert rows(found)["natural"].mean == pytest.approx(-0.1, abs=0.002)
    assert len(history.trials("s1", "verification")) == 18


def test_verification_survives_json(verify: Callable[..., Verification]) -> None:
    found = verify({"proposal": 0.9}, SCALED, lost=[("natural", 2)])
    body = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert Verification.from_json(body) == found
    assert body["source"] == ["trained", "nano", 100_000]
    assert body["arms"]["natural"] == pytest.approx(NATURAL.as_dict())


FLOATS = st.floats(-10, 10)


@settings(deadline=None)  # the first call imports scipy.stats
@given(st.dictionaries(st.integers(0, 9), st.tuples(FLOATS, FLOATS), min_size=2), FLOATS)
def test_paired_interval_is_antisymmetric_shifts_and_agrees_with_scipy(pairs: dict[int, tuple[float, float]], shift: float) -> None:
    from scipy import stats

    first, second = ({seed: values[side] for seed, values in pairs.items()} for side in (0, 1))
    row, mirrored = paired("b", "m", first, second), paired("b", "m", second, first)
    moved = paired("b", "m", {seed: value + shift for seed, value in first.items()}, second)
    assert row is not None
    assert mirrored is not None
    assert moved is not None
    assert (mirrored.mean, mirrored.low, mirrored.high) == pytest.approx((-row.mean, -row.high, -row.low), abs=1e-9)
    assert (moved.mean, moved.low) == pytest.approx((row.mean + shift, row.low + shift), abs=1e-6)
    error = stats.sem(row.values)
    if error > 1e-9:
        assert (row.low, row.high) == pytest.approx(stats.t.interval(0.95, len(pairs) - 1, row.mean, error), abs=1e-6)


def test_only_shared_seeds_are_paired() -> None:
    row = paired("b", "m", {0: 1.0, 1: 2.0, 5: 9.0}, {1: 1.0, 0: 3.0, 7: 0.0})
    assert row is not None
    assert (row.seeds, row.values) == ((0, 1), (-2.0, 1.0))
    assert paired("b", "m", {0: 1.0}, {0: 2.0}) is None
