"""Objectives: noise from repeats against a slow reference, screening, kinds, and the algebra of differences."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixopt.errors import ConfigError, DataError
from mixopt.mixture import Mixture
from mixopt.objective import Estimates, Objective, ObjectiveKind, fit_objective, lacking, measure_noise, unit_of
from mixopt.swarm import Swarm
from mixopt.trial import Source

SOURCE = Source("trained", "nano", 1000)
DOMAINS = ("a", "b")


def swarm(shares: list[float], losses: dict[str, list[float]], labels: list[str] | None = None) -> Swarm:
    """Trials at the mixtures (share, 1 - share)."""
    weights = np.array([[[share, 1 - share]] for share in shares])
    made = Swarm.from_arrays(DOMAINS, weights, list(losses), np.array(list(losses.values())).T, SOURCE)
    if labels is None:
        return made
    by_id = dict(zip(made.trial_ids, labels, strict=True))
    return Swarm(DOMAINS, made.table.with_columns(pl.col("trial_id").replace_strict(by_id).alias("label")))


NATURAL = Mixture(DOMAINS, (0.8, 0.2))
SHARES = [0.8, 0.8, 0.8, 0.5, 0.5, 0.1, 0.3]
# x moves by far more than its noise, flat does not move at all beyond it.
LOSSES = {
    "x": [1.00, 1.02, 0.98, 1.30, 1.34, 2.0, 1.6],
    "y": [2.00, 2.10, 1.90, 1.50, 1.50, 1.0, 1.2],
    "flat": [3.00, 3.10, 2.90, 3.05, 2.95, 3.0, 3.02],
}


def test_noise_is_pooled_within_mixtures() -> None:
    objective = fit_objective("noise_scaled", {"x": 1.0, "y": 1.0}, swarm(SHARES, LOSSES), NATURAL)
    # By hand: squares (0 + .02^2 + .02^2) + (.02^2 + .02^2) over 2 + 1 degrees of freedom.
    assert objective.noise_std[0] == pytest.approx(np.sqrt(4 * 0.02**2 / 3))
    assert objective.noise_std[1] == pytest.approx(np.sqrt(2 * 0.1**2 / 3))
    assert objective.degrees_of_freedom == 3
    assert objective.natural_losses == pytest.approx((1.0, 2.0))


def test_noise_recovers_a_known_sigma() -> None:
    # 200 mixtures with 3 seeds: 400 degrees of freedom, so the estimate's own sigma is 3.5%; 4 of them allowed.
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(200), 3)
    values = rng.normal(size=(200, 2))[groups] + rng.normal(0, [0.5, 0.01], (600, 2))
    noise = measure_noise(values, groups)
    assert noise.std == pytest.approx([0.5, 0.01], rel=0.14)
    assert (noise.degrees_of_freedom, noise.mixtures) == (400, 200)


def test_noise_scaled_is_the_weighted_mean_of_scaled_differences() -> None:
    objective = fit_objective("noise_scaled", {"x": 3.0, "y": 1.0}, swarm(SHARES, LOSSES), NATURAL)
    losses = np.array([[1.1, 1.8], [1.0, 2.0]])
    by_hand = 0.75 * 0.1 / objective.noise_std[0] - 0.25 * 0.2 / objective.noise_std[1]
    assert objective.value(losses) == pytest.approx([by_hand, 0.0])


def test_mean_is_in_bits_per_byte_and_screens_nothing() -> None:
    objective = fit_objective("mean", {"x": 1.0, "flat": 3.0}, swarm(SHARES, LOSSES), NATURAL)
    assert objective.metrics == ("x", "flat")
    assert objective.screened == {}
    assert objective.value(np.array([2.0, 4.0])) == pytest.approx(3.5)


def test_weighted_is_the_mean_with_weights_that_are_told() -> None:
    weighted, mean = (fit_objective(kind, {"x": 1.0, "flat": 3.0}, swarm(SHARES, LOSSES), NATURAL) for kind in ("weighted", "mean"))
    losses = np.array([[2.0, 4.0], [1.0, 3.0]])
    assert weighted.metrics == ("x", "flat"), "nothing is screened"
    assert weighted.value(losses) == pytest.approx([0.25 * 2 + 0.75 * 4, 0.25 * 1 + 0.75 * 3])
    assert weighted.difference(losses, np.array([1.0, 3.0])) == pytest.approx([1.0, 0.0])
    assert np.array_equal(weighted.value(losses), mean.value(losses))


def test_z_scored_divides_by_the_standard_deviation_over_mixtures() -> None:
    objective = fit_objective("z_scored", {"x": 3.0, "y": 1.0}, swarm(SHARES, LOSSES), NATURAL)
    # Means over the repeats of each mixture first: a mixture that was run thrice counts once.
    spread_x, spread_y = np.std([1.0, 1.32, 2.0, 1.6]), np.std([2.0, 1.5, 1.0, 1.2])
    assert objective.spread_std == pytest.approx((spread_x, spread_y))
    assert objective.value(np.array([1.1, 1.8])) == pytest.approx(0.75 * 0.1 / spread_x - 0.25 * 0.2 / spread_y)
    screened = fit_objective("z_scored", {"x": 1.0, "flat": 1.0}, swarm(SHARES, LOSSES), NATURAL)
    assert (screened.metrics, set(screened.screened), len(screened.spread_std)) == (("x",), {"flat"}, 1)


def test_a_z_score_does_not_depend_on_the_unit_of_a_metric() -> None:
    thousandths = {"x": [loss / 1000 for loss in LOSSES["x"]], "y": LOSSES["y"]}
    plain, scaled = (fit_objective("z_scored", {"x": 1.0, "y": 1.0}, swarm(SHARES, losses), NATURAL) for losses in (LOSSES, thousandths))
    assert plain.value(np.array([1.1, 1.8])) == pytest.approx(scaled.value(np.array([0.0011, 1.8])))


@pytest.mark.parametrize(
    ("kind", "unit"),
    [
        ("mean", "nats"),
        ("weighted", "nats"),
        ("noise_scaled", "standard deviations of a seed"),
        ("worst_case", "standard deviations of a seed"),
        ("z_scored", "standard deviations over the mixtures"),
    ],
)
def test_the_unit_of_losses_is_that_of_kinds_that_divide_by_nothing(kind: ObjectiveKind, unit: str) -> None:
    objective = fit_objective(kind, {"x": 1.0, "flat": 1.0}, swarm(SHARES, LOSSES), NATURAL, loss_unit="nats")
    assert objective.unit == unit == unit_of(kind, "nats")
    assert all(" nats over " in reason and "bits" not in reason for reason in objective.screened.values())
    assert fit_objective("mean", {"x": 1.0}, swarm(SHARES, LOSSES), NATURAL).unit == "bits per byte"


ESTIMATES = Estimates(("x", "flat"), np.array([0.05, 0.5]), np.array([1.5, 3.1]))


def test_a_surrogate_says_noise_and_natural_losses_where_neither_was_measured() -> None:
    runs = swarm([0.7, 0.5, 0.1, 0.3], {"x": [1.1, 1.3, 2.0, 1.6], "flat": [3.0, 3.1, 3.0, 3.02]})
    assert lacking(runs, NATURAL) == (True, True)
    objective = fit_objective("noise_scaled", {"x": 1.0, "flat": 1.0}, runs, NATURAL, estimates=ESTIMATES)
    assert (objective.noise_from, objective.natural_from, objective.degrees_of_freedom) == ("surrogate", "surrogate", 0)
    assert (objective.noise_std, objective.natural_losses) == ((0.05,), (1.5,))
    assert "seed noise of 0.5 (estimated by the surrogate, no repeats)" in objective.screened["flat"]


def test_what_was_measured_goes_before_what_a_surrogate_says() -> None:
    objective = fit_objective("noise_scaled", {"x": 1.0, "flat": 1.0}, swarm(SHARES, LOSSES), NATURAL, estimates=ESTIMATES)
    assert objective == fit_objective("noise_scaled", {"x": 1.0, "flat": 1.0}, swarm(SHARES, LOSSES), NATURAL)
    # The natural mixture once and one repeat elsewhere: its loss is measured, the noise of one degree of freedom is not taken.
    runs = swarm([0.8, 0.5, 0.5, 0.3], {"x": [1.0, 1.3, 1.34, 2.0], "flat": [3.0, 3.1, 3.0, 3.02]})
    assert lacking(runs, NATURAL) == (True, False)
    mixed = fit_objective("mean", {"x": 1.0, "flat": 1.0}, runs, NATURAL, estimates=ESTIMATES)
    assert (mixed.noise_from, mixed.natural_from) == ("surrogate", "runs")
    assert (mixed.noise_std, mixed.natural_losses) == ((0.05, 0.5), (1.0, 3.0))


def test_a_surrogate_without_noise_does_not_divide_by_zero() -> None:
    certain = Estimates(("x",), np.zeros(1), np.ones(1))
    objective = fit_objective("noise_scaled", {"x": 1.0}, swarm([0.7, 0.5, 0.1], {"x": [1.1, 1.3, 2.0]}), NATURAL, estimates=certain)
    assert np.isfinite(objective.value(np.array([1.2])))


def test_records_from_before_units_and_estimates_are_read() -> None:
    body = fit_objective("noise_scaled", {"x": 1.0}, swarm(SHARES, LOSSES), NATURAL).to_json()
    old = {key: value for key, value in body.items() if key not in ("spread_std", "loss_unit", "noise_from", "natural_from")}
    assert Objective.from_json(old) == Objective.from_json(body)


def test_worst_case_is_the_largest_scaled_difference() -> None:
    objective = fit_objective("worst_case", {"x": 5.0, "y": 1.0}, swarm(SHARES, LOSSES), NATURAL)
    losses = np.array([1.1, 2.3])
    assert objective.value(losses) == pytest.approx(max(0.1 / objective.noise_std[0], 0.3 / objective.noise_std[1]))


def test_a_metric_without_signal_is_screened_with_numbers() -> None:
    objective = fit_objective("noise_scaled", {"x": 1.0, "flat": 1.0, "y": 1.0}, swarm(SHARES, LOSSES), NATURAL)
    assert objective.metrics == ("x", "y")
    assert objective.weights == (0.5, 0.5)
    assert set(objective.screened) == {"flat"}
    assert "4 mixtures" in objective.screened["flat"]
    assert "seed noise of 0.091 (3 degrees of freedom)" in objective.screened["flat"]


def test_nothing_is_screened_where_nothing_would_remain() -> None:
    objective = fit_objective("noise_scaled", {"flat": 1.0}, swarm(SHARES, LOSSES), NATURAL)
    assert objective.metrics == ("flat",)
    assert objective.screened == {}


def test_natural_trials_are_found_by_label_when_the_mixture_is_not_given() -> None:
    labels = ["natural"] * 3 + ["uniform"] * 2 + ["design"] * 2
    table = swarm(SHARES, LOSSES, labels)
    assert fit_objective("mean", {"x": 1.0}, table) == fit_objective("mean", {"x": 1.0}, table, NATURAL)


def test_seeds_that_agree_exactly_do_not_divide_by_zero() -> None:
    objective = fit_objective("noise_scaled", {"x": 1.0}, swarm([0.8, 0.8, 0.5], {"x": [1.0, 1.0, 1.1]}), NATURAL)
    assert np.isfinite(objective.value(np.array([1.05])))


def test_without_repeats_noise_cannot_be_measured() -> None:
    with pytest.raises(DataError, match="no mixture was trained with two seeds"):
        fit_objective("noise_scaled", {"x": 1.0}, swarm([0.8, 0.5, 0.3], {"x": [1.0, 1.1, 1.2]}), NATURAL)


def test_without_the_natural_mixture_there_is_no_reference() -> None:
    with pytest.raises(DataError, match="natural mixture"):
        fit_objective("noise_scaled", {"x": 1.0}, swarm([0.5, 0.5, 0.3], {"x": [1.0, 1.1, 1.2]}), NATURAL)


def test_a_metric_that_a_trial_lacks_is_named() -> None:
    with pytest.raises(DataError, match="1 of 3 trials were not scored on 'y'"):
        fit_objective("mean", {"x": 1.0, "y": 1.0}, swarm([0.8, 0.8, 0.3], {"x": [1.0, 1.1, 1.2], "y": [1.0, np.nan, 1.0]}), NATURAL)


@pytest.mark.parametrize("weights", [{}, {"x": 0.0}, {"x": -1.0}, {"x": float("nan")}])
def test_weights_are_positive(weights: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        fit_objective("mean", weights, swarm(SHARES, LOSSES), NATURAL)


def test_unknown_kind_lists_the_known() -> None:
    with pytest.raises(ConfigError, match="noise_scaled, mean, weighted, worst_case, z_scored"):
        fit_objective("median", {"x": 1.0}, swarm(SHARES, LOSSES), NATURAL)  # type: ignore[arg-type]


@st.composite
def objectives(draw: st.DrawFn) -> tuple[Objective, np.ndarray]:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    count = draw(st.integers(1, 5))
    kind = draw(st.sampled_from(["noise_scaled", "mean", "weighted", "worst_case", "z_scored"]))
    objective = Objective(
        kind=kind,
        metrics=tuple(f"m{index}" for index in range(count)),
        weights=tuple(rng.dirichlet(np.ones(count)).tolist()),
        noise_std=tuple(rng.uniform(0.01, 0.2, count).tolist()),
        natural_losses=tuple(rng.uniform(1, 3, count).tolist()),
        degrees_of_freedom=6,
        screened={"z": "why"},
        spread_std=tuple(rng.uniform(0.01, 0.2, count).tolist()) if kind == "z_scored" else (),
        loss_unit=draw(st.sampled_from(["bits per byte", "nats"])),
        noise_from=draw(st.sampled_from(["repeats", "surrogate"])),
        natural_from=draw(st.sampled_from(["runs", "surrogate"])),
    )
    return objective, rng.uniform(1, 3, (4, 3, count))


@settings(deadline=None)
@given(objectives())
def test_values_broadcast_differences_match_and_lower_losses_are_never_worse(case: tuple[Objective, np.ndarray]) -> None:
    objective, losses = case
    values = objective.value(losses)
    natural = np.array(objective.natural_losses)
    assert values.shape == losses.shape[:-1]
    assert np.allclose(objective.difference(losses, natural), values - objective.value(natural), atol=1e-9)
    assert np.all(objective.value(losses - 0.1) < values)


@settings(deadline=None)
@given(objectives())
def test_sensitivities_are_derivatives(case: tuple[Objective, np.ndarray]) -> None:
    objective, losses = case
    step = 1e-7
    numeric = np.stack(
        [(objective.value(losses + step * unit) - objective.value(losses)) / step for unit in np.eye(losses.shape[-1])], axis=-1
    )
    assert np.allclose(objective.sensitivities(losses), numeric, rtol=1e-3, atol=1e-4)


@settings(deadline=None)
@given(objectives())
def test_json_gives_the_objective_back(case: tuple[Objective, np.ndarray]) -> None:
    objective, losses = case
    again = Objective.from_json(json.loads(json.dumps(objective.to_json())))
    assert again == objective
    assert np.array_equal(again.value(losses), objective.value(losses))


def test_another_source_brings_its_own_natural_losses() -> None:
    objective = fit_objective("noise_scaled", {"x": 1.0, "y": 1.0}, swarm(SHARES, LOSSES), NATURAL)
    moved = objective.with_natural(np.array([0.7, 1.5]))
    assert moved.value(np.array([0.7, 1.5])) == pytest.approx(0.0)
    assert moved.noise_std == objective.noise_std
    with pytest.raises(DataError):
        objective.with_natural(np.array([0.7]))
