"""The record: what it takes, what it refuses, and what each search sees of a shared trial."""

from __future__ import annotations

import dataclasses
import math
import random
import sqlite3
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixopt.domains import Domain, DomainSet
from mixopt.errors import ConfigError, DataError
from mixopt.factory import TrialFactory
from mixopt.history import History, MirrorRun
from mixopt.mixture import Mixture, Schedule
from mixopt.record.tables import metadata
from mixopt.trial import Failure, FailureKind, Measurement, Source, TrialState

CRASH = Failure(FailureKind.WORKER_LOST, "worker died", 10)


def states(history: History, search_id: str = "s1") -> list[TrialState]:
    return [record.state for record in history.trials(search_id)]


def test_a_trial_comes_back_as_it_was_given(history: History, lab: Any) -> None:
    trials = lab.grid(5)
    history.add_trials("s1", trials, "search")
    records = history.trials("s1")
    assert [record.trial for record in records] == trials
    assert [record.ordinal for record in records] == list(range(5))
    assert set(states(history)) == {TrialState.PROPOSED}
    assert history.trial("s1", "search", trials[3].trial_id) == records[3]


def test_what_others_asked_for_is_told_with_its_state(history: History, lab: Any) -> None:
    history.add_search("s2", "second", "name: second")
    history.add_search("s3", "third", "name: third")
    ids = [trial.trial_id for trial in lab.grid(4)]
    history.add_trials("s1", lab.grid(4)[:3], "search")
    history.add_trials("s2", lab.grid(4)[1:2], "search")
    history.add_trials("s3", lab.grid(4)[1:3], "verification")
    history.mark_running(ids[2:3])
    assert history.states(ids) == {ids[0]: TrialState.PROPOSED, ids[1]: TrialState.PROPOSED, ids[2]: TrialState.RUNNING}
    others = {trial_id: [record.search_id for record in records] for trial_id, records in history.others_of("s1", ids).items()}
    assert others == {ids[1]: ["s2", "s3"], ids[2]: ["s3"]}
    assert history.others_of("s1", ids[:1]) == {}
    assert [record.name for record in history.others_of("s3", ids)[ids[1]]][1:] == ["second"]


def test_adding_again_changes_nothing_and_new_trials_come_last(history: History, lab: Any) -> None:
    trials = lab.grid(5)
    history.add_trials("s1", trials[:3], "search")
    before = history.change_counter()
    history.add_trials("s1", trials[:3], "search")
    assert history.change_counter() == before
    history.add_trials("s1", [trials[4], trials[0], trials[3], trials[4]], "search")
    assert [r.trial for r in history.trials("s1")] == [*trials[:3], trials[4], trials[3]]


def test_a_trial_of_another_search_is_completed_at_once_under_this_searchs_names(history: History, lab: Any) -> None:
    trial = lab.trial((0.2, 0.5, 0.3), label="design")
    history.add_trials("s1", [trial], "search")
    history.complete(lab.outcome(trial))
    names = ("prose", "programs", "proofs")
    renamed = lab.trial((0.2, 0.5, 0.3), label="natural", names=names)
    assert renamed.trial_id == trial.trial_id
    history.add_search("s2", "second", "")
    history.add_trials("s2", [renamed], "search")
    (record,) = history.trials("s2")
    assert (record.state, record.trial.label) == (TrialState.COMPLETED, "natural")
    swarm = history.swarm("s2", ("proofs", "prose", "programs"), lab.metrics)
    np.testing.assert_allclose(swarm.points().schedules[0, 0], [0.3, 0.2, 0.5])
    np.testing.assert_allclose(swarm.points(realized=False).schedules[0, 0], [0.3, 0.2, 0.5])
    assert history.trials("s1")[0].trial.label == "design"


def test_a_search_with_one_more_domain_sees_share_zero_of_it(history: History, lab: Any) -> None:
    trial = lab.trial((0.4, 0.6, 0.0))
    history.add_trials("s1", [trial], "search")
    history.complete(lab.outcome(trial))
    inner = TrialFactory(
        DomainSet((*lab.domain_set().domains[:2], Domain("poems", "content-9", 500_000, 4e8)), 1e9),
        trial.source,
        trial.recipe,
        trial.tokenizer_hash,
        trial.engine_version,
    )
    other = inner.make(Schedule.constant(Mixture(("web", "code", "poems"), (0.4, 0.6, 0.0))), 0, "")
    assert other.trial_id == trial.trial_id
    history.add_search("s2", "second", "")
    history.add_trials("s2", [other], "search")
    points = history.swarm("s2", ("poems", "web", "code"), lab.metrics).points()
    np.testing.assert_allclose(points.schedules[0, 0], [0.0, 0.4, 0.6])


def test_phases_keep_their_own_shares(history: History, lab: Any) -> None:
    mixtures = (Mixture(lab.names, (0.7, 0.2, 0.1)), Mixture(lab.names, (0.0, 0.4, 0.6)))
    trial = lab.factory().make(Schedule(mixtures, (0.75, 0.25)), 0, "")
    history.add_trials("s1", [trial], "search")
    history.complete(lab.outcome(trial))
    points = history.swarm("s1", ("math", "web", "code"), lab.metrics).points()
    np.testing.assert_allclose(points.schedules, [[[0.1, 0.7, 0.2], [0.6, 0.0, 0.4]]])
    assert points.fractions == (0.75, 0.25)


def test_curves_of_old_and_new_outcomes_stand_side_by_side(history: History, lab: Any) -> None:
    """An outcome of before has no end on the curve's rows; it stays whole, and only that point is unknown."""
    new, old = lab.grid(2)
    history.add_trials("s1", [new, old], "search")
    end = Measurement("early-a", new.source.tokens, 3.0, 2.25)
    history.complete(replace(lab.outcome(new), measurements=(*lab.outcome(new).measurements, end)))
    history.complete(lab.outcome(old))
    plain = history.swarm("s1", lab.names, lab.metrics)
    swarm = history.swarm("s1", lab.names, lab.metrics, curve_metrics={"early-a": "target/a"})
    metrics = ("target/a", "target/b")
    assert swarm.metrics == plain.metrics == metrics
    np.testing.assert_array_equal(swarm.values(metrics), plain.values(metrics))
    curves = swarm.curves(metrics)
    np.testing.assert_array_equal(curves.tokens, [[50_000, 100_000]] * 2)
    assert curves.values[0, 1, 0] == 2.25
    assert np.isnan(curves.values[:, 1]).tolist() == [[False, True], [True, True]]
    assert np.isfinite(curves.values[:, 0]).all()
    np.testing.assert_array_equal(swarm.curves(metrics, end="all").values, plain.curves(metrics, end="all").values)


def test_swarm_holds_completed_trials_in_ask_order_and_known_metrics_only(history: History, lab: Any) -> None:
    trials = lab.grid(6)
    history.add_trials("s1", trials, "search")
    for trial in reversed(trials[1:]):
        history.complete(lab.outcome(trial, ("key-b", "key-a", "key-unknown")))
    swarm = history.swarm("s1", lab.names, lab.metrics)
    assert swarm.trial_ids == tuple(trial.trial_id for trial in trials[1:])
    assert swarm.metrics == ("target/a", "target/b")
    expected = [[lab.outcome(t, (key,)).measurements[-1].bits_per_byte for key in ("key-a", "key-b")] for t in trials[1:]]
    np.testing.assert_array_equal(swarm.values(("target/a", "target/b")), expected)
    assert swarm.table["tokens"][:2].to_list() == [50_000, 100_000]
    assert len(history.swarm("s1", lab.names, lab.metrics, "verification")) == 0


def test_swarm_over_other_domains_is_refused(history: History, lab: Any) -> None:
    history.add_trials("s1", lab.grid(1), "search")
    history.complete(lab.outcome(lab.grid(1)[0]))
    with pytest.raises(DataError, match="other domains"):
        history.swarm("s1", ("web", "code"), lab.metrics)


def test_an_outcome_is_recorded_once(history: History, lab: Any) -> None:
    (trial,) = lab.grid(1)
    history.add_trials("s1", [trial], "search")
    assert history.complete(lab.outcome(trial)) is True
    before = history.change_counter()
    assert history.complete(lab.outcome(trial)) is False
    assert history.change_counter() == before
    assert history.trials("s1")[0].outcome == lab.outcome(trial)


def test_evaluations_added_later_are_merged_and_the_first_value_stands(history: History, lab: Any) -> None:
    (trial,) = lab.grid(1)
    history.add_trials("s1", [trial], "search")
    history.complete(lab.outcome(trial, ("key-a",)))
    later = dataclasses.replace(
        lab.outcome(trial, ("key-b",)),
        measurements=(Measurement("key-a", 100_000, 9.0, 9.0), Measurement("key-b", 100_000, 2.0, 3.0)),
        seconds=99.0,
    )
    assert history.complete(later) is True
    merged = history.trials("s1")[0].outcome
    assert merged is not None
    assert merged.measurements == (*lab.outcome(trial, ("key-a",)).measurements, Measurement("key-b", 100_000, 2.0, 3.0))
    assert merged.seconds == lab.outcome(trial).seconds


def broken(lab: Any) -> dict[str, Any]:
    trial = lab.trial((0.4, 0.6, 0.0))
    good = lab.outcome(trial)
    web, code = good.realized["content-0"], good.realized["content-1"]
    return {
        "lacks the realized share of code": dataclasses.replace(good, realized={"content-0": (1.0,)}),
        "gives no weight": dataclasses.replace(good, realized={"content-0": web, "content-1": (0.5,), "content-2": (0.1,)}),
        "sum to": dataclasses.replace(good, realized={"content-0": web, "content-1": (0.5,)}),
        "it has 1 phases": dataclasses.replace(good, realized={"content-0": (*web, 0.0), "content-1": (*code, 0.0)}),
        "share of content-1": dataclasses.replace(good, realized={"content-0": web, "content-1": (math.nan,)}),
        "nan flops": dataclasses.replace(good, flops=math.nan),
        "no measurement": dataclasses.replace(good, measurements=()),
        "repeats a measurement": dataclasses.replace(good, measurements=good.measurements * 2),
        "not in the record": dataclasses.replace(good, trial_id="unknown"),
    }


@pytest.mark.parametrize("reason", [
    "lacks the realized share of code", "gives no weight", "sum to", "it has 1 phases", "share of content-1", "nan flops", "no measurement",
    "repeats a measurement", "not in the record",
])  # fmt: skip
def test_an_outcome_that_does_not_fit_is_refused_and_leaves_no_trace(history: History, lab: Any, reason: str) -> None:
    history.add_trials("s1", [lab.trial((0.4, 0.6, 0.0))], "search")
    before = history.change_counter()
    with pytest.raises(DataError, match=reason):
        history.complete(broken(lab)[reason])
    assert states(history) == [TrialState.PROPOSED]
    assert history.change_counter() == before


def test_diagnostics_that_json_cannot_say_are_stored_as_null(history: History, lab: Any) -> None:
    (trial,) = lab.grid(1)
    history.add_trials("s1", [trial], "search")
    history.complete(dataclasses.replace(lab.outcome(trial), diagnostics={"norms": [1.0, math.inf], "load": {"e0": math.nan}}))
    outcome = history.trials("s1")[0].outcome
    assert outcome is not None
    assert outcome.diagnostics == {"norms": [1.0, None], "load": {"e0": None}}


def test_twin_domains_are_refused(history: History, lab: Any) -> None:
    twins = DomainSet((Domain("a", "same", 500_000, 4e8), Domain("b", "same", 500_000, 4e8)), 1e9)
    trial = TrialFactory(twins, Source("trained", "nano", 1000), {"window": 64}, "t", "e").make(
        Schedule.constant(Mixture(("a", "b"), (0.5, 0.5))), 0, ""
    )
    with pytest.raises(DataError, match="'a' and 'b' hold exactly the same text"):
        history.add_trials("s1", [trial], "search")
    assert history.trials("s1") == []


def test_failures_are_counted_and_end_in_abandonment(history: History, lab: Any) -> None:
    (trial,) = lab.grid(1)
    history.add_trials("s1", [trial], "search")
    cancelled = Failure(FailureKind.CANCELLED, "Ctrl-C")
    answers = [history.fail(trial.trial_id, failure, 3) for failure in (CRASH, cancelled, cancelled, CRASH)]
    assert answers == [TrialState.FAILED] * 4
    assert history.trials("s1")[0].attempts == 2
    assert history.fail(trial.trial_id, CRASH, 3) is TrialState.ABANDONED
    (record,) = history.trials("s1")
    assert (record.state, record.attempts, record.failure) == (TrialState.ABANDONED, 3, CRASH)


def test_a_diverged_trial_is_abandoned_at_once_and_not_retried(history: History, lab: Any) -> None:
    diverged, broken = lab.grid(2)
    history.add_trials("s1", [diverged, broken], "search")
    assert history.fail(diverged.trial_id, Failure(FailureKind.DIVERGED, "nan"), 3) is TrialState.ABANDONED
    assert history.fail(broken.trial_id, Failure(FailureKind.ERROR, "disk full"), 3) is TrialState.ABANDONED
    assert history.retry_abandoned("s1") == [broken.trial_id]
    assert states(history) == [TrialState.ABANDONED, TrialState.PROPOSED]


def test_failing_to_score_again_keeps_the_outcome(history: History, lab: Any) -> None:
    (trial,) = lab.grid(1)
    history.add_trials("s1", [trial], "search")
    history.complete(lab.outcome(trial))
    history.mark_running([trial.trial_id])
    assert history.fail(trial.trial_id, CRASH, 1) is TrialState.ABANDONED
    (record,) = history.trials("s1")
    assert (record.state, record.outcome) == (TrialState.COMPLETED, lab.outcome(trial))


def test_running_then_completed_clears_the_failure(history: History, lab: Any) -> None:
    (trial,) = lab.grid(1)
    history.add_trials("s1", [trial], "search")
    history.fail(trial.trial_id, CRASH, 3)
    history.mark_running([trial.trial_id])
    assert states(history) == [TrialState.RUNNING]
    history.complete(lab.outcome(trial))
    (record,) = history.trials("s1")
    assert (record.state, record.attempts, record.failure) == (TrialState.COMPLETED, 1, None)


def test_adding_trials_is_all_or_nothing(history: History, lab: Any) -> None:
    with pytest.raises(DataError, match="nowhere"):
        history.add_trials("nowhere", lab.grid(2), "search")
    assert history.trials("nowhere") == []


def test_searches_are_listed_newest_last_and_keep_their_state(history: History) -> None:
    history.add_search("s0", "second", "a: 1\n")
    history.set_search_state("s0", "finished")
    history.add_search("s0", "renamed", "a: 2\n")
    assert [(s.search_id, s.name, s.experiment_yaml, s.state) for s in history.searches()] == [
        ("s1", "first", "name: first\n", "interrupted"),
        ("s0", "renamed", "a: 2\n", "finished"),
    ]
    assert history.search("s0").created <= history.search("s0").updated
    with pytest.raises(DataError, match="no-such"):
        history.search("no-such")


def test_documents_replace_each_other(history: History) -> None:
    assert history.document("s1", "proposal") is None
    history.save_document("s1", "proposal", {"a": [1, 2.5, None]})
    before = history.change_counter()
    history.save_document("s1", "proposal", {"a": (1, 2.5, math.nan)})
    assert history.change_counter() == before
    history.save_document("s1", "proposal", {"b": "ü"})
    assert history.document("s1", "proposal") == {"b": "ü"}
    assert history.change_counter() == before + 1


def test_mirror_runs_are_remembered_without_waking_the_mirror(history: History) -> None:
    before = history.change_counter()
    assert history.mirror_run("here", "s1") is None
    history.set_mirror_run("here", "s1", "run-1", "d1")
    history.set_mirror_run("here", "s1", "run-1", "d2")
    assert history.mirror_run("here", "s1") == MirrorRun("run-1", "d2")
    assert history.mirror_run("there", "s1") is None
    assert history.change_counter() == before


def test_every_change_leaves_one_event(tmp_path: Path, lab: Any) -> None:
    first, second = lab.grid(2)
    with History.open(tmp_path / "record.db") as history:
        history.add_search("s1", "first", "")
        history.add_trials("s1", [first, second], "search")
        history.mark_running([first.trial_id, second.trial_id])
        history.mark_running([first.trial_id])
        history.complete(lab.outcome(first))
        history.complete(lab.outcome(first))
        history.fail(second.trial_id, CRASH, 2)
        history.mark_running([second.trial_id])
        history.fail(second.trial_id, CRASH, 2)
        history.set_search_state("s1", "finished")
    rows = sqlite3.connect(tmp_path / "record.db").execute("select kind from events order by event_id").fetchall()
    assert [kind for (kind,) in rows] == [
        "search added", "asked", "asked", "running", "running", "completed", "failed", "running", "abandoned", "search finished",
    ]  # fmt: skip


def test_another_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "record.db"
    History.open(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute("update schema_version set version = 99")
    with pytest.raises(DataError, match="has version 99"):
        History.open(path)


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "record.db"
    path.write_text("this is not a database, but it is long enough to look like one " * 20)
    with pytest.raises(DataError, match="not a database"):
        History.open(path)


def test_a_url_that_cannot_be_opened_is_refused_without_its_password(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No driver") as raised:
        History.open("oracle+nodriver://user:secret@host/name")
    assert "secret" not in str(raised.value)
    with History.open(f"sqlite:///{tmp_path / 'by-url.db'}") as history:
        assert history.searches() == []


def test_every_table_but_the_mirrors_is_covered_by_the_version() -> None:
    """A reminder: who changes a table raises SCHEMA_VERSION and this list."""
    assert {name: len(table.columns) for name, table in metadata.tables.items()} == {
        "schema_version": 1, "searches": 6, "trials": 5, "search_trials": 5, "outcomes": 2, "events": 5, "documents": 3, "mirror_runs": 4,
    }  # fmt: skip


def test_threads_share_a_history(history: History, lab: Any) -> None:
    trials = lab.grid(24)
    history.add_trials("s1", trials, "search")
    errors: list[BaseException] = []

    def work(part: int) -> None:
        try:
            for trial in trials[part::4]:
                history.mark_running([trial.trial_id])
                history.complete(lab.outcome(trial))
                history.swarm("s1", lab.names, lab.metrics)
        except BaseException as error:
            errors.append(error)
            raise

    threads = [threading.Thread(target=work, args=(part,)) for part in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert set(states(history)) == {TrialState.COMPLETED}
    assert history.change_counter() == 1 + 3 * 24


def test_drivers_that_share_trials_neither_block_each_other_nor_count_twice(location: Path | str, lab: Any) -> None:
    """Run it on PostgreSQL, too (MIXOPT_TEST_RECORD): locks in another order deadlocked there once."""
    trials = lab.grid(12)
    errors: list[BaseException] = []

    def drive(number: int) -> None:
        order = random.Random(number)
        try:
            with History.open(location) as history:
                history.add_search(f"s{number % 2}", "", "")
                for chosen in (*(order.sample(trials, 5) for _ in range(4)), order.sample(trials, 12)):
                    history.add_trials(f"s{number % 2}", chosen, "search")
                    history.mark_running([trial.trial_id for trial in chosen])
                    for trial in chosen:
                        history.complete(lab.outcome(trial))
        except BaseException as error:
            errors.append(error)
            raise

    threads = [threading.Thread(target=drive, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    with History.open(location) as history:
        for search in ("s0", "s1"):
            assert [record.ordinal for record in history.trials(search)] == list(range(12))
            assert set(states(history, search)) == {TrialState.COMPLETED}
        # Two searches; each trial asked by both, run and completed once.
        assert history.change_counter() == 2 + 2 * 12 + 12 + 12


ACTIONS = st.lists(
    st.tuples(st.integers(0, 3), st.sampled_from(["add", "run", "complete", "crash", "diverge", "cancel", "score"])), max_size=25
)


@settings(max_examples=25, deadline=None)
@given(actions=ACTIONS)
def test_whatever_happens_outcomes_and_completed_states_agree(tmp_path_factory: pytest.TempPathFactory, lab: Any, actions: Any) -> None:
    trials = lab.grid(4)
    with History.open(tmp_path_factory.mktemp("record") / "record.db") as history:
        history.add_search("s1", "", "")
        counter = history.change_counter()
        scored: dict[str, set[str]] = {}
        for index, action in actions:
            trial = trials[index]
            known = {record.trial.trial_id for record in history.trials("s1")}
            if action == "add":
                history.add_trials("s1", [trial], "search")
            elif trial.trial_id not in known:
                continue
            elif action == "run":
                history.mark_running([trial.trial_id])
            elif action in ("complete", "score"):
                keys = ("key-a", "key-b") if action == "score" else ("key-a",)
                new = set(keys) - scored.setdefault(trial.trial_id, set())
                assert history.complete(lab.outcome(trial, keys)) is bool(new)
                scored[trial.trial_id].update(keys)
            else:
                kind = {"crash": FailureKind.WORKER_LOST, "diverge": FailureKind.DIVERGED, "cancel": FailureKind.CANCELLED}[action]
                history.fail(trial.trial_id, Failure(kind, ""), 2)
            assert history.change_counter() >= counter
            counter = history.change_counter()
        for record in history.trials("s1"):
            assert (record.state is TrialState.COMPLETED) == (record.outcome is not None)
            if record.outcome is not None:
                assert {m.evaluation_key for m in record.outcome.measurements} == scored[record.trial.trial_id]
