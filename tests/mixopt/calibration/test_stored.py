"""Calibrations in the record: beside the searches, shared by them, and their repeats in a search's noise."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mixopt.calibration.analysis import analyse
from mixopt.calibration.design import Extent, plan_calibration
from mixopt.calibration.stored import KIND, finished_trials, keep_copy, load, save, with_repeats
from mixopt.commands.proxies import _meant
from mixopt.history import History
from mixopt.objective import find_noise
from mixopt.swarm import Swarm

METRICS = {"key-a": "target/a", "key-b": "target/b"}
EXTENT = Extent((0.1, 1.0), draws=2, seeds=5, longer=2, larger=False)


@pytest.fixture
def filled(world: Any, tmp_path: Path) -> Any:
    """A record with a search of five trials and a calibration, finished both."""
    made = world()
    plan = plan_calibration(made.factory(), EXTENT, 0)
    history = History.open(tmp_path / "record.sqlite")
    history.add_search("5ea7c4", "search", "name: search\n")
    history.add_search(plan.calibration_id, "search", "name: search\n")
    mine = [*plan.rates[0][1]][:5]
    history.add_trials("5ea7c4", mine, "search")
    history.add_trials(plan.calibration_id, plan.trials, "calibration")
    for trial in plan.trials:
        history.complete(made.outcome(trial))
    yield history, plan, made
    history.close()


def test_a_calibration_is_no_search(filled: Any) -> None:
    history, plan, _ = filled
    assert [record.search_id for record in history.searches()] == ["5ea7c4"]
    assert [record.search_id for record in history.calibrations()] == [plan.calibration_id]


def test_it_is_stored_once_and_copied_to_its_searches(filled: Any) -> None:
    history, plan, made = filled
    assert load(history, plan.calibration_id) is None
    found = analyse(plan, finished_trials(history, plan.calibration_id), made.scoring(plan))
    save(history, found)
    keep_copy(history, "5ea7c4", found)
    assert load(history, plan.calibration_id) == load(history, "5ea7c4") == found


def test_a_document_of_another_version_is_as_none(filled: Any) -> None:
    history, plan, made = filled
    found = analyse(plan, finished_trials(history, plan.calibration_id), made.scoring(plan))
    history.save_document(plan.calibration_id, KIND, {**found.to_json(), "version": 99})
    assert load(history, plan.calibration_id) is None


def test_repeats_of_the_calibration_sharpen_the_noise_of_a_search(filled: Any) -> None:
    history, plan, made = filled
    swarm = history.swarm("5ea7c4", made.domains.names, METRICS)
    more = with_repeats(history, swarm, plan.factory, METRICS, plan.calibration_id)
    assert more.trial_ids[:5] == swarm.trial_ids
    own = {trial.trial_id for trial in (*plan.rates[0][1], *plan.repeats)}
    assert set(more.trial_ids) == own, "runs at another rate or of another length are no observations of this source"
    assert len(more) == len(set(more.trial_ids))
    # 4 mixtures with 5 seeds each.
    assert find_noise(more, ("target/a", "target/b"))[0].degrees_of_freedom == 16
    np.testing.assert_array_equal(more.values(("target/a",))[:5], swarm.values(("target/a",)))


def test_runs_that_lack_a_metric_stay_out(filled: Any) -> None:
    history, plan, made = filled
    swarm = Swarm.empty(made.domains.names)
    assert len(with_repeats(history, swarm, plan.factory, {**METRICS, "key-c": "target/c"}, plan.calibration_id)) == 0
    assert with_repeats(history, swarm, plan.factory, METRICS, "calibration-of-nobody") is swarm


def test_runs_that_begin_with_another_trial_are_no_repeats(filled: Any) -> None:
    """A base may itself go on from another, at the same source and by the same recipe."""
    history, plan, _ = filled
    swarm = history.swarm("5ea7c4", plan.factory.domains.names, METRICS)
    more = with_repeats(history, swarm, plan.factory, METRICS, plan.calibration_id)
    assert len(more) > len(swarm)
    begun = replace(plan.factory, inputs=("other",))
    assert len(with_repeats(history, swarm, begun, METRICS, plan.calibration_id)) == len(swarm)


def test_its_trials_are_exported_by_their_ids_too(filled: Any) -> None:
    history, plan, _ = filled
    (search,) = history.searches()
    swept = dict(plan.rates)[3e-4][0]
    found, _ = _meant(history, search, swept.trial_id[:10])
    assert found.trial == swept
    named, _ = _meant(history, search, "natural")
    assert named.trial.recipe == plan.factory.recipe, "a name is of the search's own mixtures"
