from __future__ import annotations

import dataclasses
import json
import os
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import proxy_models.train
from mixopt.mixture import Mixture, Schedule
from mixopt.proxy_config import ProxyConfig as ProxySettings
from mixopt.runner import Evaluation
from mixopt.trial import Failure, FailureKind, Measurement, Outcome, Source, Trial, TrialDomain, trial_identity
from proxy_models.specs import MemberFailure, MemberResult, MemberSpec, MemberStopped
from proxy_models.token_store import TokenWriter
from workers import train_pack
from workers.control import DriverControl, PackControl
from workers.convert import recipe_for
from workers.train_pack import PackJob, TrialResult, run_pack
from workers.trial_folder import TrialFolder, measured_at_end

SOURCE = Source("trained", "nano", 1024)


def outcome(trial_id: str) -> Outcome:
    return Outcome(trial_id, {"content-a": (1.0,)}, (Measurement("key", 128, 2.0, 1.5), Measurement("key", 1024, 1.0, 0.7)), 1024, 1e6, 0.5)


def make_trial(seed: int, rate: float | None = None) -> Trial:
    recipe = recipe_for(ProxySettings(window=64, tokens_per_step=128, tokens=1024, learning_rate=rate), "nano", 512)
    schedule = Schedule.constant(Mixture(("a",), (1.0,)))
    domains = (TrialDomain("a", "content-a", 1024),)
    identity = trial_identity(schedule, SOURCE, seed, recipe, domains, "tokenizer", "1")
    return Trial(identity, schedule, SOURCE, seed, recipe, domains, "tokenizer", "1")


@pytest.fixture
def job(tmp_path: Path) -> PackJob:
    """Five trials over one token file."""
    path = tmp_path / "a.tokens"
    with TokenWriter(path, 512, "tokenizer") as writer:
        writer.add(np.arange(1, 400).tolist(), text_bytes=1000)
        writer.close("content-a")
    control = DriverControl(tmp_path / "control")
    trials = tuple(make_trial(seed) for seed in range(5))
    return PackJob("pack", tmp_path, control.folder, trials, {"content-a": path}, (Evaluation("key", "valid/a", "text", path, 64),))


class Engine:
    """Stands in for `proxy_models.train.train_pack`: fails whenever the member with `bad_seed` trains, or more than `limit` do together.

    Members train in rounds, as many as there are places.
    """

    def __init__(self, bad_seed: int | None = None, limit: int = 99, error: type[Exception] = RuntimeError) -> None:
        self.bad_seed, self.limit, self.error = bad_seed, limit, error
        self.packs: list[list[int]] = []

    def __call__(
        self,
        config: object,
        settings: object,
        members: Sequence[MemberSpec],
        *_: object,
        places: int,
        admit: Callable[[str], bool],
        on_outcome: Callable[[MemberResult], None],
        **__: object,
    ) -> None:
        waiting = list(members)
        while waiting:
            together: list[MemberSpec] = []
            while waiting and len(together) < places:
                member = waiting.pop(0)
                together += [member] if admit(member.member_id) else []
            self.packs.append([member.seed for member in together])
            if len(together) > self.limit or any(member.seed == self.bad_seed for member in together):
                raise self.error(f"cannot train {self.packs[-1]}")
            for m in together:
                on_outcome(MemberResult(m.member_id, {"content-a": (1.0,)}, (("key", 1024, 1.0, 0.7),), 1024, 1e6, 0.5))


def use(monkeypatch: pytest.MonkeyPatch, engine: Engine) -> Engine:
    monkeypatch.setattr(proxy_models.train, "train_pack", engine)
    return engine


def by_seed(job: PackJob, results: Sequence[TrialResult]) -> Mapping[int, TrialResult]:
    seeds = {trial.trial_id: trial.seed for trial in job.trials}
    assert sorted(result.trial_id for result in results) == sorted(seeds)
    return {seeds[result.trial_id]: result for result in results}


def test_members_of_a_sweep_train_as_they_would_alone_each_at_its_own_rate(job: PackJob, tmp_path: Path) -> None:
    """One seed at several rates is one pack: what tells its members apart is the rate alone, and its record says what memory they took."""
    rates = (3e-5, 3e-3, 9e-3)
    sweep = dataclasses.replace(job, trials=tuple(make_trial(0, rate) for rate in rates))
    together = {result.trial_id: result.outcome for result in run_pack(sweep)}
    losses = []
    for trial in sweep.trials:
        alone = run_pack(dataclasses.replace(sweep, pack_id=trial.trial_id, store=tmp_path / "alone", trials=(trial,)))[0].outcome
        mine = together[trial.trial_id]
        assert alone is not None
        assert mine is not None
        assert [m.loss_nats for m in mine.measurements] == pytest.approx([m.loss_nats for m in alone.measurements], rel=1e-5)
        assert (mine.diagnostics["memory"]["members"], alone.diagnostics["memory"]["members"]) == (3, 1)
        losses.append(mine.measurements[-1].loss_nats)
    assert losses[0] > losses[1], "a hundredth of the rate moves the loss less"
    assert len(set(losses)) == len(rates)


def test_the_memory_of_a_process_that_only_read_the_result_is_nobodys(job: PackJob, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between the end of training and storing what came of it: the next process finds the result, and has taken no memory for it."""

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    job = dataclasses.replace(job, trials=job.trials[:3], places=2)
    with monkeypatch.context() as patch:
        patch.setattr(TrialFolder, "write_outcome", killed)
        with pytest.raises(KeyboardInterrupt):
            run_pack(job)
    outcomes = [result.outcome for result in run_pack(job)]
    assert all(outcomes)
    # Two had ended together; the third trained after them, alone, whatever the pack had places for.
    assert [one.diagnostics.get("memory", {}).get("members") for one in outcomes if one is not None] == [None, None, 1]


def test_an_error_is_narrowed_down_to_its_member(job: PackJob, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = use(monkeypatch, Engine(bad_seed=3))
    results = by_seed(job, run_pack(job))
    assert engine.packs == [[0, 1, 2, 3, 4], [0, 1], [2, 3, 4], [2], [3, 4], [3], [4]]
    failure = results.pop(3).failure
    assert failure is not None
    assert failure.kind is FailureKind.ERROR
    assert failure.message == "RuntimeError: cannot train [3]"
    assert all(result.outcome for result in results.values())
    folder = TrialFolder(job.store, job.trials[3].trial_id)
    assert "cannot train [3]" in (folder.path / "error.txt").read_text()
    assert not folder.result_path.exists()


def test_a_pack_too_large_for_memory_is_trained_in_parts(job: PackJob, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = use(monkeypatch, Engine(limit=2, error=MemoryError))
    assert all(result.outcome for result in run_pack(job))
    assert engine.packs == [[0, 1, 2, 3, 4], [0, 1], [2, 3], [4]]
    assert by_seed(job, run_pack(job)), "read back"
    alone = use(monkeypatch, Engine(limit=0, error=torch.OutOfMemoryError))
    for trial in job.trials:
        TrialFolder(job.store, trial.trial_id).result_path.unlink()
    kinds = {result.failure.kind for result in run_pack(job) if result.failure}
    assert kinds == {FailureKind.OUT_OF_MEMORY}
    assert alone.packs[-1] == [4]


def test_the_memory_of_a_pack_that_failed_is_free_for_the_next_try(job: PackJob, monkeypatch: pytest.MonkeyPatch) -> None:
    class Large: ...

    tries: list[weakref.ref[Large]] = []
    engine = Engine()

    def train(*arguments: Any, **options: Any) -> None:
        assert all(earlier() is None for earlier in tries), "the pack of the failed try is still there"
        large = Large()
        tries.append(weakref.ref(large))
        if len(tries) < 3:
            raise MemoryError
        engine(*arguments, **options)

    monkeypatch.setattr(proxy_models.train, "train_pack", train)
    assert all(result.outcome for result in run_pack(job))
    assert [len(pack) for pack in engine.packs] == [1, 1, 1, 1, 1]


def test_a_pack_that_never_has_the_memory_to_begin_fails_trial_by_trial(job: PackJob, monkeypatch: pytest.MonkeyPatch) -> None:
    def train(*_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(proxy_models.train, "train_pack", train)
    assert [result.failure and result.failure.kind for result in run_pack(job)] == [FailureKind.OUT_OF_MEMORY] * 5


@pytest.mark.parametrize("trials", [1, 5])
def test_an_error_after_the_last_result_costs_nothing(job: PackJob, monkeypatch: pytest.MonkeyPatch, trials: int) -> None:
    engine = Engine()

    def train(*arguments: Any, **options: Any) -> None:
        engine(*arguments, **options)
        raise RuntimeError("too late to matter")

    monkeypatch.setattr(proxy_models.train, "train_pack", train)
    results = run_pack(dataclasses.replace(job, trials=job.trials[:trials]))
    assert [result.failure for result in results] == [None] * trials


def test_training_goes_on_where_progress_cannot_be_told(job: PackJob, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that stumbles for a while: nothing is raised or cancelled, and the next report tells all of it."""
    control = PackControl(job.control, job.pack_id)
    control.end("one", None)
    with monkeypatch.context() as patch:

        def stale(*_: object) -> None:
            raise OSError("Stale file handle")

        patch.setattr(os, "replace", stale)
        patch.setattr(os, "listdir", stale)
        control.report({"two": 128}, at_once=True)
        assert control.cancelled(["two"]) == frozenset()
    control.report({}, at_once=True)
    assert PackControl(job.control, job.pack_id).tokens("two") == 128


def test_what_one_member_runs_into_is_the_failure_of_its_trial(job: PackJob, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine tells it apart, and the cause decides the kind; a result that cannot be written is its trial's own, too."""

    def train(*arguments: Any, on_outcome: Callable[[object], None], admit: Callable[[str], bool], **_: object) -> None:
        for index, member in enumerate(arguments[2]):
            assert admit(member.member_id)
            error = [FileNotFoundError("gone"), RuntimeError("odd"), None, None, None][index]
            if error is not None:
                on_outcome(MemberFailure(member.member_id, "error", str(error), 256, error))
            elif index == 2:
                on_outcome(MemberFailure(member.member_id, "diverged", "Training loss became nan.", 384))
            elif index == 3:
                (TrialFolder(job.store, member.member_id).path / "result.json").mkdir()
                on_outcome(MemberResult(member.member_id, {"content-a": (1.0,)}, (("key", 1024, 1.0, 0.7),), 1024, 1e6, 0.5))
            else:
                on_outcome(MemberStopped(member.member_id, 512))

    monkeypatch.setattr(proxy_models.train, "train_pack", train)
    results = by_seed(job, run_pack(job))
    kinds = [results[seed].failure for seed in range(5)]
    assert [failure and (failure.kind, failure.tokens) for failure in kinds] == [
        (FailureKind.DATA, 256),
        (FailureKind.ERROR, 256),
        (FailureKind.DIVERGED, 384),
        (FailureKind.ERROR, 1024),
        (FailureKind.CANCELLED, 512),
    ]
    assert "gone" in (TrialFolder(job.store, job.trials[0].trial_id).path / "error.txt").read_text()
    for trial in job.trials:
        with TrialFolder(job.store, trial.trial_id).lock() as free:
            assert free


def test_a_pack_that_is_run_again_leaves_alone_what_it_told_to_have_failed(job: PackJob, monkeypatch: pytest.MonkeyPatch) -> None:
    first = PackControl(job.control, job.pack_id)
    told = Failure(FailureKind.DIVERGED, "Training loss became nan.", 384)
    first.end(job.trials[1].trial_id, told)
    engine = use(monkeypatch, Engine())
    results = by_seed(job, run_pack(job))
    assert engine.packs == [[0, 2, 3, 4]]
    assert results[1].failure == told
    assert all(results[seed].outcome for seed in (0, 2, 3, 4))


def test_an_interruption_is_not_a_failure(job: PackJob, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(proxy_models.train, "train_pack", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_pack(job)
    with TrialFolder(job.store, job.trials[0].trial_id).lock() as free:
        assert free


def test_a_pack_without_its_driver_trains_nothing(job: PackJob, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = use(monkeypatch, Engine())
    (job.control).rmdir()
    assert {result.failure.kind for result in run_pack(job) if result.failure} == {FailureKind.CANCELLED}
    assert engine.packs == []


def test_a_trial_whose_holder_hangs_is_given_up(job: PackJob, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, Engine())
    folder = TrialFolder(job.store, job.trials[0].trial_id)
    with folder.lock() as locked:
        assert locked
        long_ago = time.time() - 2 * train_pack.LOCK_PATIENCE_SECONDS
        os.utime(folder.lock_path, (long_ago, long_ago))
        results = by_seed(job, run_pack(job))
    failure = results.pop(0).failure
    assert failure is not None
    assert failure.kind is FailureKind.WORKER_LOST
    assert f"process {os.getpid()}" in failure.message
    assert all(result.outcome for result in results.values())


def test_torch_has_one_thread_inside_and_its_own_count_afterwards(job: PackJob, monkeypatch: pytest.MonkeyPatch) -> None:
    inside: list[int] = []
    engine = use(monkeypatch, Engine())
    monkeypatch.setattr(proxy_models.train, "train_pack", lambda *a, **k: inside.append(torch.get_num_threads()) or engine(*a, **k))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        run_pack(job)
        assert (inside, torch.get_num_threads()) == ([1], 2)
    finally:
        torch.set_num_threads(before)


def test_a_result_is_either_an_outcome_or_a_failure() -> None:
    with pytest.raises(AssertionError):
        TrialResult("id")
    with pytest.raises(AssertionError):
        TrialResult("id", outcome("id"), Failure(FailureKind.ERROR, ""))


def test_results_are_read_back_exactly_and_foreign_or_torn_ones_are_not(tmp_path: Path) -> None:
    trial = make_trial(0)
    folder = TrialFolder(tmp_path, trial.trial_id)
    assert folder.read_outcome() is None
    folder.write_outcome(trial.spec(), outcome(trial.trial_id))
    assert folder.read_outcome() == outcome(trial.trial_id)
    assert measured_at_end(outcome(trial.trial_id)) == {"key"}
    text = folder.result_path.read_text()
    body = json.loads(text)
    damages: list[Any] = [
        text[: len(text) // 2],
        "",
        "[]",
        json.dumps({**body, "version": 2}),
        json.dumps({**body, "outcome": {**body["outcome"], "trial_id": "other"}}),
        text.replace("0.7", "NaN"),
    ]
    for damaged in damages:
        folder.result_path.write_text(damaged)
        assert folder.read_outcome() is None, damaged
    folder.result_path.write_text(text)
    assert TrialFolder(tmp_path, "another").read_outcome() is None


def test_a_lock_keeps_others_out_within_a_process_too(tmp_path: Path) -> None:
    one, other = TrialFolder(tmp_path, "id"), TrialFolder(tmp_path, "id")
    with one.lock() as first, other.lock() as second:
        assert (first, second) == (True, False)
        assert f"process {os.getpid()}" in other.holder()
    with other.lock() as again:
        assert again


def test_a_log_line_cut_short_by_a_crash_is_left_out(tmp_path: Path) -> None:
    folder = TrialFolder(tmp_path, "id")
    assert folder.read_log() == []
    folder.log("training", tokens=128)
    with (folder.path / "log.jsonl").open("a") as file:
        file.write('{"event": "fini')
    assert [(line["event"], line["tokens"]) for line in folder.read_log()] == [("training", 128)]


def test_cancelling_reaches_the_pack_and_can_be_taken_back(tmp_path: Path) -> None:
    driver = DriverControl(tmp_path / "control")
    pack = PackControl(driver.folder, "pack")
    assert driver.progress("pack") == {}
    pack.report({"a": 128, "b": 0}, at_once=True)
    assert driver.progress("pack") == {"a": 128, "b": 0}
    assert driver.ended("pack") == {}
    failure = Failure(FailureKind.DIVERGED, "Training loss became nan.", 64)
    pack.end("a", failure)
    pack.end("b", None)
    assert driver.ended("pack") == {"a": failure, "b": None}
    assert driver.progress("pack") == {"a": 128, "b": 0}
    assert PackControl(driver.folder, "pack").failed() == {"a": failure}
    assert pack.cancelled(["a", "b"]) == frozenset()
    driver.cancel(["a", "elsewhere"])
    assert PackControl(driver.folder, "pack").cancelled(["a", "b"]) == {"a"}
    driver.allow("a")
    assert PackControl(driver.folder, "pack").cancelled(["a", "b"]) == frozenset()
    driver.close()
    pack.report({"a": 256}, at_once=True)
    assert PackControl(driver.folder, "pack").cancelled(["a", "b"]) == {"a", "b"}


def prepared_anew(path: Path, tokenizer: str, content: str) -> None:
    with TokenWriter(path, 512, tokenizer) as writer:
        writer.add(np.arange(1, 400).tolist(), text_bytes=1000)
        writer.close(content)


@pytest.mark.parametrize(
    ("tokenizer", "content", "says"), [("another", "content-a", "another tokenizer"), ("tokenizer", "another", "other documents")]
)
def test_tokens_of_another_search_are_not_trained_on(job: PackJob, tokenizer: str, content: str, says: str) -> None:
    """Two searches share a folder and a domain's name: the second to prepare overwrites the tokens of the first."""
    prepared_anew(job.files["content-a"], tokenizer, content)
    results = run_pack(job)
    assert {result.failure.kind for result in results if result.failure} == {FailureKind.DATA}
    assert all(result.failure and says in result.failure.message for result in results)


def test_a_target_added_later_is_not_scored_with_another_tokenizer(job: PackJob, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, Engine())
    assert all(result.outcome for result in run_pack(job))
    for trial in job.trials:
        TrialFolder(job.store, trial.trial_id).weights_path.touch()
    path = job.files["content-a"].with_name("new.tokens")
    prepared_anew(path, "another", "new")
    later = dataclasses.replace(job, evaluations=(*job.evaluations, Evaluation("new", "target/new", "text", path, 64)))
    results = run_pack(later)
    assert all(result.failure and "another tokenizer" in result.failure.message for result in results)


def test_the_end_is_recorded_on_the_rows_of_the_curve_too_and_nothing_is_scored_again_for_it(job: PackJob) -> None:
    path = job.files["content-a"]
    one = dataclasses.replace(job, trials=job.trials[:1], evaluations=(Evaluation("key", "valid/a", "text", path, 256, 64, "early"),))
    folder = TrialFolder(one.store, one.trials[0].trial_id)
    (result,) = run_pack(one)
    assert result.outcome is not None
    points = [(m.evaluation_key, m.tokens) for m in result.outcome.measurements]
    assert points == [("key", 128), ("key", 256), ("key", 512), ("key", 1024), ("early", 1024)]
    older = dataclasses.replace(result.outcome, measurements=result.outcome.measurements[:-1])
    folder.write_outcome(one.trials[0].spec(), older)
    (again,) = run_pack(one)
    assert again.outcome == older
    new = Evaluation("new", "target/new", "text", path, 128, 64, "new early")
    (scored,) = run_pack(dataclasses.replace(one, evaluations=(*one.evaluations, new)))
    assert scored.outcome is not None
    assert [m.evaluation_key for m in scored.outcome.measurements[len(older.measurements) :]] == ["new", "new early"]
