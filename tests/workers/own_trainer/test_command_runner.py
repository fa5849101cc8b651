"""Runners of a user's program: what it does wrong is a typed failure that says so, and nothing that it computed is computed again."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from mixopt.errors import ConfigError, RunError
from mixopt.mixture import Mixture, Schedule
from mixopt.own_trainer.config import TrainerConfig
from mixopt.own_trainer.outcome import evaluations_of
from mixopt.runner import Completed, Failed, Progress, Runner, Started, TrialEvent
from mixopt.trial import FailureKind, Source, Trial, TrialDomain, trial_identity
from workers.own_trainer.program import ProgramFolder, start_of
from workers.own_trainer.runner import LocalCommandRunner
from workers.trial_folder import TrialFolder

PROGRAM = Path(__file__).with_name("program.py")
SOURCE = Source("command", "toy", 1000)
PATIENCE_SECONDS = 120.0


def trainer(mode: str = "works", **changes: Any) -> TrainerConfig:
    return TrainerConfig.model_validate(
        {
            "kind": "command",
            "name": "toy",
            "tokens": 1000,
            "metrics": ["loss", {"name": "accuracy", "maximize": True}],
            "command": ["{python}", str(PROGRAM), mode, "{request}", "{result}"],
            "folder": str(PROGRAM.parent),
        }
        | changes
    )


def make_trial(share: float = 0.25, seed: int = 0, source: Source = SOURCE) -> Trial:
    schedule = Schedule.constant(Mixture.of({"a": share, "b": 1 - share}))
    domains = (TrialDomain("a", "content-a", 1), TrialDomain("b", "content-b", 1))
    recipe = {"window": 1, "version": "1"}
    identity = trial_identity(schedule, source, seed, recipe, domains, "", "own")
    return Trial(identity, schedule, source, seed, recipe, domains, "", "own", "design")


Make = Callable[..., Runner]


@pytest.fixture(scope="module")
def ray_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    from workers.ray_runner import RayRunner

    owner = RayRunner(tmp_path_factory.mktemp("owner"), {}, {}, cpus=2)
    yield
    owner.close()


@pytest.fixture(params=["local", pytest.param("ray", marks=pytest.mark.ray)])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Make]:
    """Makes runners of one kind over one store; closes them in the end."""
    if request.param == "ray":
        request.getfixturevalue("ray_cluster")
    made: list[Runner] = []

    def runner(mode: str = "works", **changes: Any) -> Runner:
        settings = trainer(mode, **changes)
        evaluations = {SOURCE.key: evaluations_of(settings)}
        if request.param == "ray":
            from workers.own_trainer.runner import RayCommandRunner

            made.append(RayCommandRunner(tmp_path / "store", evaluations, settings))
        else:
            made.append(LocalCommandRunner(tmp_path / "store", evaluations, settings, cpus=2))
        return made[-1]

    yield runner
    for one in made:
        one.close()


@pytest.fixture
def local(tmp_path: Path) -> Iterator[Make]:
    made: list[Runner] = []

    def runner(mode: str = "works", **changes: Any) -> Runner:
        settings = trainer(mode, **changes)
        made.append(LocalCommandRunner(tmp_path / "store", {SOURCE.key: evaluations_of(settings)}, settings, cpus=2))
        return made[-1]

    yield runner
    for one in made:
        one.close()


def run(runner: Runner, trials: Sequence[Trial]) -> list[TrialEvent]:
    runner.submit(trials)
    return list(runner.events())


def end(events: Sequence[TrialEvent], trial: Trial) -> Completed | Failed:
    (final,) = [event for event in events if isinstance(event, Completed | Failed) and event.trial_id == trial.trial_id]
    return final


def program_folder(tmp_path: Path, trial: Trial) -> ProgramFolder:
    return ProgramFolder(TrialFolder(tmp_path / "store", trial.trial_id).path / "program")


def starts(tmp_path: Path, trial: Trial) -> int:
    """How often the program was started for a trial."""
    path = program_folder(tmp_path, trial).files / "begun"
    return len(path.read_text().split()) if path.exists() else 0


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def test_each_trial_ends_once_with_what_the_program_measured(make: Make, tmp_path: Path) -> None:
    trials = [make_trial(share, seed) for share in (0.25, 1.0) for seed in (0, 1)]
    events = run(make(), trials)
    for trial in trials:
        found = end(events, trial)
        assert isinstance(found, Completed)
        share = trial.schedule.average().as_dict()["a"]
        values = {m.evaluation_key: m.bits_per_byte for m in found.outcome.measurements}
        loss, accuracy = (evaluation.key for evaluation in evaluations_of(trainer()))
        assert values == pytest.approx({loss: 1.5 + share**2 + 1e-3 * trial.seed, accuracy: -(0.5 - 0.1 * share)})
        assert found.outcome.realized == ({"content-a": (0.25,), "content-b": (0.75,)} if share < 1 else {"content-a": (1.0,)})
        assert found.outcome.tokens == 1000
        assert found.outcome.seconds > 0
        assert TrialFolder(tmp_path / "store", trial.trial_id).read_outcome() == found.outcome
        assert "hello from the program" in program_folder(tmp_path, trial).stdout.read_text()
        kinds = [type(event) for event in events if event.trial_id == trial.trial_id]
        assert kinds[0] is Started
        assert kinds[-1] is Completed
        assert set(kinds[1:-1]) <= {Progress}


def test_a_finished_trial_is_read_back(make: Make, tmp_path: Path) -> None:
    trial = make_trial()
    first = end(run(make(), [trial]), trial)
    assert run(make("fails"), [trial]) == [first]
    assert starts(tmp_path, trial) == 1


def test_the_request_says_all_of_the_trial(local: Make, tmp_path: Path) -> None:
    trial = make_trial(0.25, seed=11)
    run(local(), [trial])
    request = json.loads(program_folder(tmp_path, trial).request.read_text())
    assert request == {
        "version": 1,
        "trial_id": trial.trial_id,
        "label": "design",
        "size": "toy",
        "tokens": 1000,
        "seed": 11,
        "domains": ["a", "b"],
        "weights": [{"a": 0.25, "b": 0.75}],
        "fractions": [1.0],
        "output_folder": str(program_folder(tmp_path, trial).files),
    }


def test_all_that_a_result_may_say_is_taken(local: Make) -> None:
    trial = make_trial(1 / 3)
    found = end(run(local("says all"), [trial]), trial)
    assert isinstance(found, Completed)
    outcome = found.outcome
    assert outcome.realized == {"content-a": (0.33,), "content-b": (0.67,)}, "what was drawn, not what was asked for"
    assert (outcome.flops, outcome.seconds) == (5e9, 7.5)
    assert {m.tokens for m in outcome.measurements} == {500, 1000}
    loss = evaluations_of(trainer())[0]
    assert {m.evaluation_key for m in outcome.measurements if m.tokens == 1000} >= {loss.key, loss.curve_key}


@pytest.mark.parametrize(
    ("mode", "kind", "message"),
    [
        ("fails", FailureKind.PROGRAM, "The program ended with code 3: Traceback: no luck"),
        ("dies", FailureKind.PROGRAM, "The program was killed by SIGKILL"),
        ("writes nothing", FailureKind.ERROR, "wrote no result"),
        ("writes garbage", FailureKind.ERROR, "result.json is not JSON"),
        ("writes NaN", FailureKind.DIVERGED, "Metric 'loss' is nan, which is not finite"),
        ("forgets a metric", FailureKind.ERROR, "lacks the metric accuracy"),
        ("misspells a metric", FailureKind.ERROR, "unknown metric 'acuracy'. Did you mean 'accuracy'?"),
        ("writes a text", FailureKind.ERROR, "Metric 'loss' is '1.5', which is no number"),
        ("another trial", FailureKind.ERROR, "The result is of trial '00000000000000000000'"),
    ],
)
def test_what_a_program_does_wrong_is_said(local: Make, tmp_path: Path, mode: str, kind: FailureKind, message: str) -> None:
    trial = make_trial()
    found = end(run(local(mode), [trial]), trial)
    assert isinstance(found, Failed)
    assert found.failure.kind is kind
    assert message in found.failure.message
    # Mended, the same trial comes to its end; a bad result does not stand in its way.
    assert isinstance(end(run(local(), [trial]), trial), Completed)


def test_bytes_that_are_no_text_on_its_outputs_do_no_harm(local: Make, tmp_path: Path) -> None:
    trial = make_trial()
    assert isinstance(end(run(local("prints garbage"), [trial]), trial), Completed)
    assert program_folder(tmp_path, trial).stdout.stat().st_size > 256_000


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"command": ["./no-such-program"]}, "'./no-such-program' cannot be run in"),
        ({"folder": "/no/such/folder"}, "cannot be run in /no/such"),
    ],
)
def test_a_program_that_is_not_there_is_named(local: Make, changes: dict[str, Any], message: str) -> None:
    trial = make_trial()
    found = end(run(local(**changes), [trial]), trial)
    assert isinstance(found, Failed)
    assert found.failure.kind is FailureKind.ERROR
    assert message in found.failure.message


@pytest.mark.parametrize("mode", ["hangs", "ignores"])
def test_a_time_limit_ends_the_program_with_all_its_children(local: Make, tmp_path: Path, mode: str) -> None:
    trial, files = make_trial(), program_folder(tmp_path, make_trial()).files
    found = end(run(local(mode, time_limit=3), [trial]), trial)
    assert isinstance(found, Failed)
    assert found.failure.kind is FailureKind.TIME_LIMIT
    assert "time limit of 3 s" in found.failure.message
    pids = [int((files / name).read_text()) for name in ("begun", *(["child"] if mode == "hangs" else []))]
    wait_until(lambda: not any(is_running(pid) for pid in pids))


def test_what_a_program_leaves_behind_is_ended(local: Make, tmp_path: Path) -> None:
    trial = make_trial()
    assert isinstance(end(run(local("leaves a child"), [trial]), trial), Completed)
    pid = int((program_folder(tmp_path, trial).files / "child").read_text())
    wait_until(lambda: not is_running(pid))


def test_a_cancelled_program_is_ended(make: Make, tmp_path: Path) -> None:
    trial, runner = make_trial(), make("hangs")
    files = program_folder(tmp_path, trial).files
    runner.submit([trial])
    for event in runner.events():
        if isinstance(event, Started):
            break
    wait_until(lambda: (files / "child").exists() and (files / "child").read_text() != "")
    runner.cancel([trial.trial_id])
    found = end(list(runner.events()), trial)
    assert isinstance(found, Failed)
    assert found.failure.kind is FailureKind.CANCELLED
    pids = [int((files / name).read_text()) for name in ("begun", "child")]
    wait_until(lambda: not any(is_running(pid) for pid in pids))


def test_closing_a_runner_ends_its_programs(local: Make, tmp_path: Path) -> None:
    trial, runner = make_trial(), local("hangs")
    child = program_folder(tmp_path, trial).files / "child"
    runner.submit([trial])
    wait_until(lambda: child.exists() and child.read_text() != "")
    runner.close()
    wait_until(lambda: not is_running(int(child.read_text())))


def test_a_program_that_fails_keeps_its_files_for_the_next_attempt(local: Make, tmp_path: Path) -> None:
    trial, runner = make_trial(), local("fails once")
    first = end(run(runner, [trial]), trial)
    assert isinstance(first, Failed)
    assert first.failure.kind.retryable
    assert isinstance(end(run(runner, [trial]), trial), Completed)
    assert starts(tmp_path, trial) == 2


def test_a_result_that_nobody_read_is_taken(local: Make, tmp_path: Path) -> None:
    """As a driver leaves it that was killed between the program's end and its own next line."""
    trial = make_trial()
    folder = program_folder(tmp_path, trial)
    folder.path.mkdir(parents=True)
    folder.result.write_text(json.dumps({"metrics": {"loss": 9.0, "accuracy": 0.5}}))
    found = end(run(local("fails"), [trial]), trial)
    assert isinstance(found, Completed)
    assert {m.bits_per_byte for m in found.outcome.measurements} == {9.0, -0.5}
    assert starts(tmp_path, trial) == 0


def test_half_a_result_is_not_taken(local: Make, tmp_path: Path) -> None:
    trial = make_trial()
    folder = program_folder(tmp_path, trial)
    folder.path.mkdir(parents=True)
    folder.result.write_text('{"metrics": {"loss": 9')
    assert isinstance(end(run(local(), [trial]), trial), Completed)
    assert starts(tmp_path, trial) == 1


def test_as_many_programs_run_at_once_as_there_are_cores_for(tmp_path: Path) -> None:
    trials = [make_trial(seed=seed) for seed in range(4)]
    settings = trainer("waits", cpus=2)
    wide = LocalCommandRunner(tmp_path / "store", {SOURCE.key: evaluations_of(settings)}, settings, cpus=5)
    try:
        assert (wide.capacity().slots, wide.capacity().pack_size) == (2, 1)
        wide.submit(trials)
        wait_until(lambda: sum(starts(tmp_path, trial) for trial in trials) == 2)
        time.sleep(0.5)
        assert sum(starts(tmp_path, trial) for trial in trials) == 2
        for trial in trials:
            files = program_folder(tmp_path, trial).files
            files.mkdir(parents=True, exist_ok=True)
            (files / "go").touch()
        final = [event for event in wide.events() if isinstance(event, Completed)]
        assert {event.trial_id for event in final} == {trial.trial_id for trial in trials}
    finally:
        wide.close()


def test_trials_of_proxies_are_refused(local: Make) -> None:
    with pytest.raises(ConfigError, match="no evaluations"):
        local().submit([make_trial(source=Source("trained", "nano", 1000))])


@pytest.mark.ray
def test_a_cluster_that_is_too_small_says_so(make: Make, request: pytest.FixtureRequest) -> None:
    if "local" in request.node.name:
        pytest.skip("in process there is no cluster")
    with pytest.raises(RunError, match="A trial takes 64 cores and 0 GPUs; the Ray cluster has 2 and 0"):
        make(cpus=64)


def is_running(pid: int) -> bool:
    return start_of(pid) is not None and _state(pid) != "Z"


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"
