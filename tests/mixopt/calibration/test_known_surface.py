"""A calibration of a world whose answers are known: the rate that ranks, what seeds do, what tokens bring."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from mixopt.calibration.analysis import analyse
from mixopt.calibration.design import Extent
from mixopt.calibration.result import Calibration
from mixopt.errors import DataError


def calibrate(world: Any, extent: Extent | None = None, lost: int = 0, **settings: Any) -> Calibration:
    made = world(**settings)
    plan = made.plan(extent)
    finished = made.finished(plan.trials)
    for trial in plan.rates[-1][1][:lost]:
        del finished[trial.trial_id]
    return analyse(plan, finished, made.scoring(plan))


def test_the_rate_that_ranks_is_chosen_and_not_the_one_with_the_lowest_loss(world: Any) -> None:
    found = calibrate(world, ranking_rate=3e-4, loss_rate=3e-3)
    losses = {row.rate: row.loss for row in found.rates}
    assert min(losses, key=lambda rate: losses[rate] or 9) == found.own_rate == 3e-3
    assert found.rate == 3e-4
    by_rate = {row.rate: row.ranking for row in found.rates}
    assert by_rate[3e-4].accuracy > 0.95
    assert by_rate[3e-3].accuracy < 0.8
    assert by_rate[3e-4].beats_own > 0.98
    assert set(by_rate[3e-4].spearman) == set(found.references) == {"nano, 400,000 tokens", "micro, 150,000 tokens"}
    assert min(by_rate[3e-4].spearman.values()) > 0.9
    assert found.reason.startswith("0.0003 orders")


def test_a_tiny_rate_is_found_too(world: Any) -> None:
    assert calibrate(world, ranking_rate=3e-5).rate == 3e-5


def test_where_rates_rank_alike_the_own_one_stays_though_another_has_a_lower_loss(world: Any) -> None:
    found = calibrate(world, ranking_rate=None, loss_rate=9e-3)
    losses = {row.rate: row.loss for row in found.rates}
    assert losses[9e-3] < losses[3e-3]
    assert found.rate == found.own_rate
    assert found.reason.startswith("The rate stays 0.003")


def test_where_noise_drowns_the_ranking_the_own_rate_stays(world: Any) -> None:
    """At 30 times the noise of the others the best of four rates is best by luck; 20 such worlds, of which 1 may move at 5%."""
    moved = 0
    for seed in range(20):
        made = world(ranking_rate=None, noise=0.3)
        plan = made.plan(Extent((0.01, 0.1, 1.0, 3.0), draws=7, seeds=2, longer=4, larger=False))
        # Another world of noise: the noise depends on the ids.
        plan = replace(
            plan,
            rates=tuple((rate, tuple(replace(t, trial_id=f"{seed:02x}{t.trial_id[2:]}") for t in trials)) for rate, trials in plan.rates),
        )
        plan = replace(plan, repeats=tuple(replace(t, trial_id=f"{seed:02x}{t.trial_id[2:]}") for t in plan.repeats))
        plan = replace(
            plan, references=tuple((n, tuple(replace(t, trial_id=f"{seed:02x}{t.trial_id[2:]}") for t in ts)) for n, ts in plan.references)
        )
        moved += analyse(plan, made.finished(plan.trials), made.scoring(plan)).rate != plan.own_rate
    assert moved <= 2


def test_a_rate_whose_runs_did_not_all_end_is_not_judged_and_the_others_are(world: Any) -> None:
    found = calibrate(world, lost=2)
    rows = {row.rate: row for row in found.rates}
    assert (rows[9e-3].missing, rows[9e-3].loss, rows[9e-3].ranking) == (2, None, None)
    assert found.rate == 3e-4


def test_without_a_longer_run_nothing_judges_and_the_rate_stays(world: Any) -> None:
    found = calibrate(world, Extent((0.1, 1.0), draws=3, seeds=2, longer=0, larger=False))
    assert not found.swept
    assert found.rate == found.own_rate
    assert "nothing to judge" in found.reason


def test_repeats_alone_say_what_the_noise_is(world: Any) -> None:
    """As in a search whose draws have all been given up."""
    made = world()
    plan = made.plan(Extent((1.0,), draws=0, seeds=3, longer=0, larger=False))
    found = analyse(replace(plan, rates=((plan.own_rate, ()),)), made.finished(plan.repeats), made.scoring(plan), origin="search")
    assert (found.rate, found.mixtures, found.rates[0].loss) == (plan.own_rate, 0, None)
    assert found.degrees_of_freedom == 8


def test_seed_noise_is_what_it_is(world: Any) -> None:
    # 4 mixtures with 60 seeds: 236 degrees of freedom, so the estimate's own sigma is 4.6%; 4 of them allowed.
    found = calibrate(world, Extent((1.0,), draws=1, seeds=60, longer=0, larger=False), noise=0.01)
    for row in found.noise:
        assert row.std == pytest.approx(0.01, rel=0.19)
        assert row.low < row.std < row.high
        assert {name: seeds for name, (seeds, _) in row.by_mixture.items()} == {
            "natural": 60, "uniform": 60, "corner of law": 60, "corner of code": 60,
        }  # fmt: skip
        assert row.unequal is not None
        assert row.unequal > 0.001
    assert found.degrees_of_freedom == 236
    # The mean of two losses with independent noise, each in units of its own.
    assert found.objective_noise_std == pytest.approx(1 / np.sqrt(2), rel=0.2)


def test_noise_that_depends_on_the_mixture_is_seen(world: Any) -> None:
    found = calibrate(world, Extent((1.0,), draws=1, seeds=12, longer=0, larger=False), noise=0.002, corner_noise=0.02)
    for row in found.noise:
        assert row.unequal is not None
        assert row.unequal < 1e-4
        assert row.by_mixture["corner of law"][1] > 3 * row.by_mixture["natural"][1]


def test_the_interval_of_the_noise_holds_it_as_often_as_it_says(world: Any) -> None:
    from mixopt.calibration.noise import seed_noise

    rng = np.random.default_rng(0)
    repeats = {f"m{index}": rng.normal(0, 0.05, (3, 400)) for index in range(4)}  # 400 metrics are 400 experiments
    rows = seed_noise(tuple(f"x{index}" for index in range(400)), repeats, np.zeros((1, 400)))
    inside = np.mean([row.low <= 0.05 <= row.high for row in rows])
    assert inside == pytest.approx(0.9, abs=4 * np.sqrt(0.09 / 400))


def test_what_tokens_bring_is_recovered(world: Any) -> None:
    found = calibrate(world, ranking_rate=None, noise=0.0, amplitude=20.0, exponent=0.3)
    for curve in found.curves:
        assert curve.law is not None
        assert curve.law.exponent == pytest.approx(0.3, rel=0.02)
        gain = 20.0 * (100_000**-0.3 - 200_000**-0.3)
        assert curve.law.gain(100_000, 2) == pytest.approx(gain, rel=0.01)
        assert curve.law.points == 5
        assert curve.times == 4
        assert curve.longer_end is not None
        assert curve.end - curve.longer_end == pytest.approx(20.0 * (100_000**-0.3 - 400_000**-0.3), rel=0.01)


def test_a_target_that_only_seeds_move_is_screened(world: Any) -> None:
    found = calibrate(world, noise=1.0)
    assert not any(row.above_noise for row in found.noise)
    clear = calibrate(world)
    assert all(row.above_noise for row in clear.noise)
    assert clear.screened == {}


def test_it_survives_a_trip_through_text(world: Any) -> None:
    found = calibrate(world)
    assert Calibration.from_json(json.loads(json.dumps(found.to_json(), allow_nan=False))) == found


def test_without_repeats_there_is_no_calibration(world: Any) -> None:
    made = world()
    plan = made.plan(Extent((1.0,), draws=1, seeds=3, longer=0, larger=False))
    first = made.finished(plan.rates[0][1])
    with pytest.raises(DataError, match="two seeds"):
        analyse(plan, first, made.scoring(plan))
