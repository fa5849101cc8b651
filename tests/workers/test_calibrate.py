"""The walk of a calibration, with a runner that trains nothing and answers by a known law: what it asks for, reuses, survives and concludes."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mixopt.calibration.stored import load
from mixopt.config import Experiment
from mixopt.errors import ConfigError
from mixopt.experiment_file import parse_experiment
from mixopt.history import History
from mixopt.progress import Silent
from mixopt.proxy_config import BaseConfig, BeginningConfig
from mixopt.runner import Capacity, Completed, Failed, Started, TrialEvent
from mixopt.swarm import Swarm
from mixopt.trial import Failure, FailureKind, Measurement, Outcome, Trial
from workers import beginnings
from workers.calibrate import LEVELS, QUICK, Calibrated, calibrate, calibrated_by_search, plans_at
from workers.compose import Search, compose, record_location
from workers.run import _knowing_calibration
from workers.tokens.prepare import prepare
from workers.trial_folder import TrialFolder

RANKS_AT = 3e-4
STEP = 128


class Killed(BaseException):
    """Ends a driver as kill -9 does: nothing in the loop catches it."""


class Heard(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@dataclass
class Law:
    """A runner whose losses follow from rate, mixture, seed and tokens; at a rate far from `RANKS_AT` and in short runs it ranks backwards.

    Attributes:
        trained: in the order in which they ended.
        diverging: trial ids that do not end.
        dies_after: so many trials.
    """

    search: Search
    trained: list[str] = field(default_factory=list)
    diverging: set[str] = field(default_factory=set)
    dies_after: int | None = None
    recorded: list[bool] = field(default_factory=list)
    _queue: list[Trial] = field(default_factory=list)

    def capacity(self) -> Capacity:
        return Capacity(2, 4)

    def submit(self, trials: Sequence[Trial]) -> None:
        with History.open(record_location(self.search.store)) as history:
            known = {r.trial.trial_id for c in history.calibrations() for r in history.trials(c.search_id)}
        self.recorded += [trial.trial_id in known for trial in trials]
        self._queue.extend(trials)

    def events(self) -> Iterator[TrialEvent]:
        while self._queue:
            trial = self._queue.pop(0)
            yield Started(trial.trial_id)
            if trial.trial_id in self.diverging:
                yield Failed(trial.trial_id, Failure(FailureKind.DIVERGED, "loss is not finite"))
                continue
            outcome = self.outcome(trial)
            TrialFolder(self.search.store, trial.trial_id).write_outcome(trial.spec(), outcome)
            self.trained.append(trial.trial_id)
            if len(self.trained) == self.dies_after:
                raise Killed
            yield Completed(trial.trial_id, outcome)

    def cancel(self, trial_ids: Collection[str]) -> None:
        return None

    def close(self) -> None:
        return None

    def outcome(self, trial: Trial) -> Outcome:
        share = trial.schedule.average().as_dict()["code"]
        rate = float(trial.recipe["learning_rate"])
        short = trial.source == self.search.factory.source
        off = abs(math.log10(rate / RANKS_AT)) if short else 0.0
        slope = 1.0 - 2.0 * min(1.0, off)  # backwards from a factor of ten on
        measured = []
        for number, evaluation in enumerate(self.search.evaluations[trial.source.key]):
            for tokens in (trial.source.tokens // 4, trial.source.tokens // 2, trial.source.tokens):
                noise = np.random.default_rng([int(trial.trial_id[:8], 16), number]).normal(0, 0.002)
                bits = 2.0 + number * 0.1 - slope * share + 5 * tokens**-0.3 + noise
                measured.append(Measurement(evaluation.key, tokens, bits, bits))
        shares = {d.content_hash: tuple(row[i] for row in trial.schedule.array().tolist()) for i, d in enumerate(trial.domains)}
        memory = {"peak_bytes": 5e8, "before_bytes": 3e8, "members": 4, "device": "cpu"}
        return Outcome(trial.trial_id, shares, tuple(measured), trial.source.tokens, 1e9, 2.0, {"memory": memory})


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("documents")
    for name in ("code", "prose", "law"):
        lines = [json.dumps({"text": " ".join(f"{name}{number * 7 % (n + 3)}" for n in range(60))}) for number in range(80)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def experiment(documents: Path, tmp_path: Path) -> Experiment:
    raw = {
        "name": "calibrated",
        "output": str(tmp_path / "run"),
        "budget_tokens": "10B",
        "domains": [
            {"name": name, "path": str(documents / f"{name}.jsonl"), "tokens": tokens, "held_out": 0.2}
            for name, tokens in (("code", "1B"), ("prose", "6B"), ("law", "4B"))
        ],
        "tokenizer": {"vocab_size": 512},
        "proxy": {"tokens": 16 * STEP, "window": 64, "tokens_per_step": STEP},
        "search": {"trials": 24},
        "verification": {"size": "micro", "tokens": 24 * STEP, "seeds": 2},
        "tracking": {"enabled": False},
    }
    return parse_experiment(raw, tmp_path)


@pytest.fixture
def laws() -> list[Law]:
    """Every runner that was made."""
    return []


@pytest.fixture
def run(experiment: Experiment, laws: list[Law]) -> Callable[..., Calibrated]:
    """Calibrates with a new runner, which `laws` then holds last."""

    def go(changed: Experiment | None = None, dies_after: int | None = None, diverging: Collection[str] = (), **options: Any) -> Calibrated:
        def make(search: Search) -> Law:
            laws.append(Law(search, dies_after=dies_after, diverging=set(diverging)))
            return laws[-1]

        return calibrate(changed or experiment, make_runner=make, **options)

    return go


def test_the_rate_that_ranks_is_recommended_for_the_search_and_the_verification_keeps_its_own(run: Callable[..., Calibrated]) -> None:
    done = run()
    search, verification = done.calibrations
    assert search.own_rate == 3e-3
    assert search.rate == RANKS_AT, search.reason
    assert search.references == ("nano, 8,192 tokens", "micro, 3,072 tokens")
    assert verification.source.size == "micro"
    assert verification.rate == verification.own_rate, "at another source than the search's all rates rank alike"
    assert [row.rate for row in verification.rates] == [1.5e-3, 1.5e-4, 5e-4, 4.5e-3]


def test_everything_is_recorded_before_it_runs_and_run_once(run: Callable[..., Calibrated], laws: list[Law]) -> None:
    first = run(quick=True)
    (law,) = laws
    assert all(law.recorded)
    assert len(law.trained) == len(set(law.trained)) == first.trained == first.cost.trials
    again = run(quick=True)
    assert len(laws) == 1, "no runner is started where nothing is left"
    assert (again.trained, again.reused) == (0, first.trained)
    assert again.calibrations[0].rates == first.calibrations[0].rates


@pytest.mark.parametrize("after", [1, 17])
def test_a_driver_that_dies_leaves_what_it_finished(run: Callable[..., Calibrated], laws: list[Law], tmp_path: Path, after: int) -> None:
    with pytest.raises(Killed):
        run(quick=True, dies_after=after)
    done = run(quick=True)
    before, later = laws
    # The result of the last trial lies in its folder: the real runner reads it there, this one counts it as trained again.
    assert len(set(before.trained) & set(later.trained)) <= 1
    assert set(before.trained) | set(later.trained) == set(laws[0].trained) | set(laws[1].trained)
    assert done.calibrations[0].rate == RANKS_AT
    with History.open(record_location(tmp_path / "run")) as history:
        assert {record.state for record in history.calibrations()} == {"finished"}


def test_a_rate_that_diverges_is_left_out_and_the_rest_is_judged(run: Callable[..., Calibrated], experiment: Experiment) -> None:
    search = compose(experiment, prepare(experiment, Silent()))
    (plan,) = plans_at(search, QUICK)
    diverging = [trial.trial_id for trial in dict(plan.rates)[9e-3]]
    (found,) = run(quick=True, diverging=diverging).calibrations
    assert [row.missing for row in found.rates if row.rate == 9e-3] == [len(diverging)]
    assert found.rate == RANKS_AT


def test_runs_at_the_own_rate_are_the_searchs(run: Callable[..., Calibrated], experiment: Experiment) -> None:
    search = compose(experiment, prepare(experiment, Silent()))
    asked = {trial.trial_id for trial in search.strategy.ask(24, Swarm.empty(search.domains.names), [], [])}
    (plan,) = plans_at(search, QUICK)
    mine = {trial.trial_id for trial in plan.at(search.factory.source) if trial.recipe == search.factory.recipe}
    assert len(mine & asked) == 11  # natural and uniform thrice, two corners twice, one draw; UniMax is uniform here
    assert len(mine - asked) == 2, "a third seed at two corners"


def test_what_takes_too_long_is_left_out_least_needed_first(run: Callable[..., Calibrated], experiment: Experiment) -> None:
    reporter = Heard()
    costs = [run(dry_run=True, reporter=reporter).cost]
    for _ in LEVELS[1:]:
        costs.append(run(dry_run=True, minutes=0.999 * costs[-1].seconds / 60, reporter=reporter).cost)
    assert [cost.trials for cost in costs] == sorted((cost.trials for cost in costs), reverse=True)
    assert len({cost.trials for cost in costs}) == len(LEVELS)
    assert [level.title in cost.sentence for level, cost in zip(LEVELS, costs, strict=True)] == [True] * len(LEVELS)
    assert "at an assumed speed" in reporter.notes[-1]
    with pytest.raises(ConfigError, match="too short"):
        run(dry_run=True, minutes=0.999 * costs[-1].seconds / 60)
    with History.open(record_location(Path(experiment.output))) as history:
        assert history.calibrations() == []


def begun(experiment: Experiment) -> Experiment:
    """The same, with trials that go on from a base of 512 steps."""
    beginning = BeginningConfig(kind="continued", base=BaseConfig(tokens=512 * STEP))
    return experiment.model_copy(update={"proxy": experiment.proxy.model_copy(update={"beginning": beginning})})


def test_the_base_is_trained_before_all_that_begin_with_it(
    run: Callable[..., Calibrated], experiment: Experiment, laws: list[Law], monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = begun(experiment)
    search = compose(changed, prepare(changed, Silent()))
    assert search.base is not None
    assert search.verification_base is not None
    monkeypatch.setattr(beginnings, "forget_results_without_weights", lambda store, trials: [])  # this runner writes none
    done = run(changed, quick=True)
    assert laws[0].trained[0] == search.base.trial_id
    assert done.calibrations[0].rate == RANKS_AT
    with History.open(record_location(search.store)) as history:
        trials = [record.trial for record in history.trials(done.calibrations[0].calibration_id, "calibration")]
    assert {trial.inputs for trial in trials} == {(search.base.trial_id,)}, "at every rate, and in the longer run"
    assert len(laws[0].trained) == 1 + done.trained


def test_the_cost_contains_the_base(run: Callable[..., Calibrated], experiment: Experiment) -> None:
    scratch, cost = (run(file, dry_run=True, quick=True).cost for file in (experiment, begun(experiment)))
    assert cost.trials == scratch.trials
    assert cost.seconds > 2 * scratch.seconds, "the base alone has 512 steps, a trial 16"
    assert "and trained/nano/65536 first, to begin with," in cost.sentence
    assert "begin" not in scratch.sentence


def test_memory_and_speed_are_compared_with_what_was_expected(run: Callable[..., Calibrated]) -> None:
    (found,) = run(quick=True).calibrations
    entry = found.resources_of(found.source)
    assert entry is not None
    assert entry.tokens_per_second == pytest.approx(16 * STEP / 2.0)
    assert entry.expected_tokens_per_second is not None
    assert (entry.members, entry.peak_bytes) == (4, 5e8)
    assert entry.unforeseen_bytes == pytest.approx(5e8 - (entry.estimated_bytes or 0))


def test_a_search_takes_the_stored_one_or_its_own_first_trials(
    run: Callable[..., Calibrated], experiment: Experiment, tmp_path: Path
) -> None:
    search = compose(experiment, prepare(experiment, Silent()))
    with History.open(record_location(search.store)) as history:
        history.add_search(search.search_id, experiment.name, experiment.to_yaml())
        assert calibrated_by_search(search, history) is None, "nothing is known before anything is trained"
        trials = search.strategy.ask(24, history.swarm(search.search_id, search.domains.names, {}), [], [])
        history.add_trials(search.search_id, trials, "search")
        for trial in trials:
            history.complete(Law(search).outcome(trial))
        own = calibrated_by_search(search, history)
        assert own is not None
        assert (own.origin, own.trials, own.swept) == ("search", 24, False)
        assert own == load(history, own.calibration_id) == load(history, search.search_id)
        assert own.degrees_of_freedom == 6
    run(quick=True)
    with History.open(record_location(search.store)) as history:
        stored = load(history, search.search_id)
        assert stored is not None
        assert stored.origin == "calibrate"
        assert calibrated_by_search(search, history) == stored


def test_the_calibrated_rate_enters_the_trials_of_a_search_that_asks_for_it(run: Callable[..., Calibrated], experiment: Experiment) -> None:
    asking = experiment.model_copy(update={"proxy": experiment.proxy.model_copy(update={"learning_rate": "calibrated"})})
    manifest = prepare(experiment, Silent())
    with pytest.raises(ConfigError, match="no calibration of this experiment has compared rates"):
        compose(asking, manifest)
    plain = compose(experiment, manifest)
    run(asking)  # calibrating starts from the own rates, whatever the file asks for
    search = compose(asking, manifest)
    assert search.factory.recipe == {**plain.factory.recipe, "learning_rate": RANKS_AT}
    assert search.verification_factory == plain.verification_factory
    assert search.search_id != plain.search_id
    assert compose(experiment, manifest).search_id == plain.search_id, "a search that does not ask keeps its rate and its identity"
    numbered = experiment.model_copy(update={"proxy": experiment.proxy.model_copy(update={"learning_rate": RANKS_AT})})
    assert compose(numbered, manifest).search_id == search.search_id


def test_the_stopping_rule_of_a_search_knows_the_runs_of_its_calibration(run: Callable[..., Calibrated], experiment: Experiment) -> None:
    search = compose(experiment, prepare(experiment, Silent()))
    with History.open(record_location(search.store)) as history:
        assert _knowing_calibration(search, history).strategy is search.strategy, "there is none yet"
    run(quick=True)
    (plan,) = plans_at(search, QUICK)
    own = {trial.trial_id for trial in plan.at(search.factory.source) if trial.recipe == search.factory.recipe}
    with History.open(record_location(search.store)) as history:
        informed: Any = _knowing_calibration(search, history).strategy
    assert set(informed.assignment.calibration.trial_ids) == own


def test_in_mup_the_calibrated_rate_is_that_of_the_verification_too_where_it_was_not_swept(
    run: Callable[..., Calibrated], experiment: Experiment
) -> None:
    changed = experiment.proxy.model_copy(update={"learning_rate": "calibrated", "parametrization": "mup"})
    asking = experiment.model_copy(update={"proxy": changed})
    run(asking, quick=True)
    search = compose(asking, prepare(experiment, Silent()))
    numbered = experiment.model_copy(update={"proxy": changed.model_copy(update={"learning_rate": RANKS_AT})})
    expected = compose(numbered, prepare(experiment, Silent()))
    assert search.factory.recipe["learning_rate"] == RANKS_AT
    assert (search.factory, search.verification_factory) == (expected.factory, expected.verification_factory)


def test_dataclasses_of_levels_hold_the_own_rate() -> None:
    for level in LEVELS:
        for extent in filter(None, (level.search, level.verification)):
            assert 1.0 in extent.factors
            assert dataclasses.replace(extent, seeds=2).seeds == 2
