"""The contract of every runner: what is submitted ends in exactly one event, and nothing that is done is done again."""

from __future__ import annotations

import hashlib
import math
import socket
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mixopt.errors import ConfigError, RunError
from mixopt.mixture import Mixture, Schedule
from mixopt.proxy_config import ProxyConfig as ProxySettings
from mixopt.runner import Completed, Evaluation, Failed, Progress, Runner, Started, TrialEvent
from mixopt.trial import FailureKind, Source, Trial, TrialDomain, trial_identity
from proxy_models.checkpoint import load_checkpoint, save_checkpoints
from proxy_models.token_store import TokenWriter
from workers.convert import recipe_for
from workers.local import LocalRunner
from workers.trial_folder import TrialFolder

VOCAB = 512
WINDOW = 64
STEP = 128
SHORT = Source("trained", "nano", 8 * STEP)
MEDIUM = Source("trained", "nano", 400 * STEP)  # a second or two
LONG = Source("trained", "nano", 20_000 * STEP)  # some minutes: never trained to its end here
DOMAINS = ("code", "prose")

MakeRunner = Callable[..., Runner]


def write_tokens(path: Path, seed: int, documents: int = 60) -> Path:
    """Documents that count upwards in steps of their own, so that there is something to learn."""
    generator = np.random.default_rng(seed)
    with TokenWriter(path, VOCAB, "tokenizer") as writer:
        for _ in range(documents):
            start, stride, length = generator.integers(1, VOCAB), generator.integers(1, 9), generator.integers(40, 160)
            ids = (start + stride * np.arange(length)) % (VOCAB - 1) + 1
            writer.add([*ids.tolist(), 0], text_bytes=3 * int(length))
        writer.close(f"content-{path.stem}")
    return path


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("tokens")
    return {name: write_tokens(folder / f"{name}.tokens", seed) for seed, name in enumerate((*DOMAINS, "valid", "target"))}


@pytest.fixture(scope="module")
def catalog(tokens: dict[str, Path]) -> dict[str, Path]:
    return {f"content-{name}": tokens[name] for name in DOMAINS}


@pytest.fixture(scope="module")
def evaluations(tokens: dict[str, Path]) -> dict[str, list[Evaluation]]:
    valid = Evaluation("key-valid", "valid/code", "text", tokens["valid"], max_tokens=512, curve_tokens=128)
    return {source.key: [valid] for source in (SHORT, MEDIUM, LONG)}


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One cluster for the session; the runners of the tests join it."""
    from workers.ray_runner import RayRunner

    # A runner without trials starts the cluster as any other would.
    with tempfile.TemporaryDirectory() as store:
        owner = RayRunner(Path(store), {}, {}, cpus=2)
        yield
        owner.close()


@pytest.fixture(params=["local", pytest.param("ray", marks=pytest.mark.ray)])
def make_runner(
    request: pytest.FixtureRequest, tmp_path: Path, catalog: dict[str, Path], evaluations: dict[str, list[Evaluation]]
) -> Iterator[MakeRunner]:
    """Makes runners of one kind over one store; closes them in the end."""
    if request.param == "ray":
        request.getfixturevalue("ray_cluster")
    made: list[Runner] = []

    def make(**changes: object) -> Runner:
        arguments = {"store": tmp_path / "store", "catalog": catalog, "evaluations": evaluations, **changes}
        if request.param == "ray":
            from workers.ray_runner import RayRunner

            made.append(RayRunner(**arguments))
        else:
            made.append(LocalRunner(**arguments))
        return made[-1]

    yield make
    for runner in made:
        runner.close()


def make_trial(share: float = 0.5, seed: int = 0, source: Source = SHORT, rate: float = 3e-3, missing: str = "") -> Trial:
    weights = {"code": share, "prose": 1 - share}
    if missing:
        weights = {"code": 0.5, missing: 0.5}
    settings = ProxySettings(window=WINDOW, tokens_per_step=STEP, tokens=source.tokens, learning_rate=rate)
    recipe = recipe_for(settings, "nano", VOCAB)
    schedule = Schedule.constant(Mixture.of(weights))
    domains = tuple(TrialDomain(name, f"content-{name}", 2048) for name in weights)
    identity = trial_identity(schedule, source, seed, recipe, domains, "tokenizer", "1")
    return Trial(identity, schedule, source, seed, recipe, domains, "tokenizer", "1")


def run(runner: Runner, trials: Sequence[Trial]) -> list[TrialEvent]:
    runner.submit(trials)
    return list(runner.events())


def ends(events: Sequence[TrialEvent]) -> dict[str, Completed | Failed]:
    """Final event by trial, each exactly once."""
    final = [event for event in events if isinstance(event, Completed | Failed)]
    assert set(Counter(event.trial_id for event in final).values()) <= {1}, "a trial ended twice"
    return {event.trial_id: event for event in final}


def losses(event: Completed | Failed) -> list[tuple[str, int, float]]:
    assert isinstance(event, Completed), event
    return [(m.evaluation_key, m.tokens, m.loss_nats) for m in event.outcome.measurements]


def folder_of(tmp_path: Path, trial: Trial) -> TrialFolder:
    return TrialFolder(tmp_path / "store", trial.trial_id)


def fingerprint(path: Path) -> tuple[str, int]:
    return hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns


def test_each_trial_ends_once_with_an_outcome_that_fits_it(make_runner: MakeRunner, tmp_path: Path) -> None:
    trials = [make_trial(share, seed) for share in (0.25, 0.5, 1.0) for seed in (0, 1)]
    runner = make_runner()
    events = run(runner, trials)
    final = ends(events)
    assert set(final) == {trial.trial_id for trial in trials}
    for trial in trials:
        event = final[trial.trial_id]
        assert isinstance(event, Completed)
        outcome = event.outcome
        assert outcome.tokens == SHORT.tokens
        assert {m.tokens for m in outcome.measurements} == {STEP, 2 * STEP, 4 * STEP, 8 * STEP}
        used = {domain.content_hash for domain, weight in zip(trial.domains, trial.schedule.average().weights, strict=True) if weight}
        assert set(outcome.realized) == used
        assert sum(shares[0] for shares in outcome.realized.values()) == pytest.approx(1)
        # 16 windows, within one window of the share.
        assert outcome.realized["content-code"][0] == pytest.approx(trial.schedule.average().weights[0], abs=1 / 16)
        assert folder_of(tmp_path, trial).read_outcome() == outcome
        assert not (folder_of(tmp_path, trial).path / "checkpoint.safetensors").exists()
    starts = [event.trial_id for event in events if isinstance(event, Started)]
    assert sorted(starts) == sorted(final), "each was started once"
    order = [type(event) for event in events if event.trial_id == trials[0].trial_id]
    assert order[0] is Started
    assert order[-1] is Completed
    assert set(order[1:-1]) <= {Progress}
    assert list(runner.events()) == [], "nothing is under way"


def test_a_finished_trial_is_read_back_by_a_later_runner(make_runner: MakeRunner, tmp_path: Path) -> None:
    trial = make_trial()
    first = ends(run(make_runner(), [trial]))[trial.trial_id]
    weights = fingerprint(folder_of(tmp_path, trial).weights_path)
    log = folder_of(tmp_path, trial).read_log()
    again = run(make_runner(), [trial])
    assert again == [first]
    assert fingerprint(folder_of(tmp_path, trial).weights_path) == weights
    assert folder_of(tmp_path, trial).read_log() == log


def test_a_new_evaluation_is_scored_on_the_kept_weights(
    make_runner: MakeRunner, tmp_path: Path, tokens: dict[str, Path], evaluations: dict[str, list[Evaluation]]
) -> None:
    trial = make_trial()
    first = ends(run(make_runner(), [trial]))[trial.trial_id]
    weights = fingerprint(folder_of(tmp_path, trial).weights_path)
    added = Evaluation("key-target", "target/x", "text", tokens["target"], max_tokens=256)
    # The same set under another key must score as training scored it.
    same = Evaluation("key-same", "valid/again", "text", tokens["valid"], max_tokens=512)
    runner = make_runner(evaluations={SHORT.key: [*evaluations[SHORT.key], added, same]})
    second = ends(run(runner, [trial]))[trial.trial_id]
    assert fingerprint(folder_of(tmp_path, trial).weights_path) == weights, "trained again"
    assert [line["event"] for line in folder_of(tmp_path, trial).read_log()] == ["training", "finished", "scoring"]
    assert losses(second)[: len(losses(first))] == losses(first)
    scored = {key: loss for key, count, loss in losses(second) if count == SHORT.tokens}
    assert set(scored) == {"key-valid", "key-target", "key-same"}
    assert scored["key-same"] == pytest.approx(scored["key-valid"], rel=1e-5)
    assert scored["key-target"] != scored["key-valid"]
    assert folder_of(tmp_path, trial).read_outcome() == second.outcome  # type: ignore[union-attr]


def test_missing_weights_or_a_damaged_result_mean_training_again(make_runner: MakeRunner, tmp_path: Path, tokens: dict[str, Path]) -> None:
    trial = make_trial()
    first = ends(run(make_runner(), [trial]))[trial.trial_id]
    folder = folder_of(tmp_path, trial)
    folder.result_path.write_text(folder.result_path.read_text()[:-20])
    assert losses(ends(run(make_runner(), [trial]))[trial.trial_id]) == losses(first)
    folder.weights_path.unlink()
    added = Evaluation("key-target", "target/x", "text", tokens["target"], max_tokens=256)
    events = ends(run(make_runner(evaluations={SHORT.key: [added]}), [trial]))
    assert {key for key, _, _ in losses(events[trial.trial_id])} == {"key-target"}
    assert folder.weights_path.exists()


def test_missing_and_damaged_tokens_fail_their_trials_alone(make_runner: MakeRunner, tmp_path: Path, catalog: dict[str, Path]) -> None:
    damaged = tmp_path / "damaged.tokens"
    body = bytearray(catalog["content-code"].read_bytes())
    body[100] ^= 1
    damaged.write_bytes(body)
    files = {**catalog, "content-gone": tmp_path / "gone.tokens", "content-damaged": damaged}
    good = [make_trial(0.25), make_trial(0.75)]
    bad = [make_trial(missing=name) for name in ("gone", "damaged", "unknown")]
    final = ends(run(make_runner(catalog=files), [good[0], *bad, good[1]]))
    for trial in good:
        assert isinstance(final[trial.trial_id], Completed)
    for trial, word in zip(bad, ("gone.tokens", "checksum", "unknown"), strict=True):
        event = final[trial.trial_id]
        assert isinstance(event, Failed)
        assert event.failure.kind is FailureKind.DATA
        assert word in event.failure.message


def test_a_diverged_member_fails_and_the_rest_of_its_pack_completes(make_runner: MakeRunner, tmp_path: Path) -> None:
    trials = [make_trial(seed=seed, source=MEDIUM) for seed in range(2)]
    runner = make_runner(pack_size=2)
    runner.submit(trials)
    for event in runner.events():
        if isinstance(event, Progress) and event.tokens:
            runner.cancel([trial.trial_id for trial in trials])
    path = folder_of(tmp_path, trials[0]).path / "checkpoint.safetensors"
    checkpoint = load_checkpoint(path)
    name = next(name for name, tensor in checkpoint.tensors.items() if name.startswith("model.") and tensor.is_floating_point())
    save_checkpoints({path: replace(checkpoint, tensors={**checkpoint.tensors, name: checkpoint.tensors[name] * math.nan})})
    final = ends(run(make_runner(pack_size=2), trials))
    poisoned = final[trials[0].trial_id]
    assert isinstance(poisoned, Failed)
    assert poisoned.failure.kind is FailureKind.DIVERGED
    assert 0 < poisoned.failure.tokens < MEDIUM.tokens
    assert isinstance(final[trials[1].trial_id], Completed)
    log = folder_of(tmp_path, trials[1]).read_log()
    assert [line["event"] for line in log] == ["training", "stopped", "training", "finished"], "not in the pack of the diverged one"


def test_a_rate_that_no_proxy_survives_is_a_divergence(make_runner: MakeRunner) -> None:
    absurd, sane = make_trial(rate=1e30), make_trial()
    final = ends(run(make_runner(), [absurd, sane]))
    event = final[absurd.trial_id]
    assert isinstance(event, Failed)
    assert event.failure.kind is FailureKind.DIVERGED
    assert isinstance(final[sane.trial_id], Completed)


def test_cancelled_trials_end_as_cancelled_and_go_on_from_their_checkpoint(make_runner: MakeRunner, tmp_path: Path) -> None:
    runner = make_runner(pack_size=2)
    running = [make_trial(seed=seed, source=LONG) for seed in range(2)]
    queued = [make_trial(seed=seed, source=LONG) for seed in range(10, 18)]
    runner.submit([*running, *queued])
    seen: list[TrialEvent] = []
    for event in runner.events():
        seen.append(event)
        if isinstance(event, Progress) and event.tokens >= 20 * STEP:
            runner.cancel([trial.trial_id for trial in (*running, *queued)])
    final = ends(seen)
    assert set(final) == {trial.trial_id for trial in (*running, *queued)}
    assert {event.failure.kind for event in final.values() if isinstance(event, Failed)} == {FailureKind.CANCELLED}
    assert not [event for event in final.values() if isinstance(event, Completed)]
    stopped = [trial for trial in running if (folder_of(tmp_path, trial).path / "checkpoint.safetensors").exists()]
    assert stopped, "no checkpoint was left to go on from"

    again = make_runner(pack_size=2)
    again.submit(stopped[:1])
    for event in again.events():
        if isinstance(event, Progress) and event.tokens:
            assert event.tokens >= 20 * STEP
            again.cancel([event.trial_id])
    begun = [line["tokens"] for line in folder_of(tmp_path, stopped[0]).read_log() if line["event"] == "training"]
    assert begun[0] == STEP
    assert begun[1] >= 20 * STEP


def test_one_member_is_cancelled_and_the_rest_of_its_pack_goes_on(make_runner: MakeRunner, tmp_path: Path) -> None:
    stopped, kept = (make_trial(seed=seed, source=MEDIUM) for seed in range(2))
    runner = make_runner(pack_size=2)
    # Planned with a third, so that on two slots these two still share a pack.
    runner.submit([stopped, kept, make_trial(seed=2, source=MEDIUM), make_trial(seed=3, source=MEDIUM)])
    seen: list[TrialEvent] = []
    for event in runner.events():
        seen.append(event)
        if isinstance(event, Progress) and event.tokens and event.trial_id == stopped.trial_id:
            runner.cancel([stopped.trial_id])
    final = ends(seen)
    event = final[stopped.trial_id]
    assert isinstance(event, Failed)
    assert event.failure.kind is FailureKind.CANCELLED
    assert event.failure.tokens > 0
    assert isinstance(final[kept.trial_id], Completed)
    assert [line["event"] for line in folder_of(tmp_path, kept).read_log()] == ["training", "finished"], "it was not taken up again"
    assert seen.index(final[stopped.trial_id]) < seen.index(final[kept.trial_id]), "told when it stopped, not when its pack ended"


def test_more_trials_than_places_take_turns_and_each_is_told_when_it_ends(make_runner: MakeRunner, tmp_path: Path) -> None:
    """One pack of two places; the third trial takes the place of the first that ends, while the second still trains."""
    first, second, third = (make_trial(seed=seed, source=MEDIUM) for seed in range(3))
    ahead = make_runner(pack_size=1)
    ahead.submit([first])
    for event in ahead.events():
        if isinstance(event, Progress) and event.tokens >= 40 * STEP:
            ahead.cancel([first.trial_id])
    runner = make_runner(pack_size=2)
    runner._slots = 1  # type: ignore[attr-defined]  # on the cluster of two cores, too
    runner.submit([first, second, third])
    seen = list(runner.events())
    final = ends(seen)
    assert all(isinstance(event, Completed) for event in final.values())
    order = [event.trial_id for event in seen if isinstance(event, Completed)]
    assert order == [first.trial_id, second.trial_id, third.trial_id]
    starts = {trial.trial_id: seen.index(Started(trial.trial_id)) for trial in (first, second, third)}
    ended = {trial_id: seen.index(event) for trial_id, event in final.items()}
    assert starts[third.trial_id] < ended[second.trial_id], "the place of the first was free before the second ended"
    log = {trial.trial_id: folder_of(tmp_path, trial).read_log() for trial in (first, second, third)}
    assert len({lines[-1]["pid"] for lines in log.values()}) == 1
    assert all([line["event"] for line in lines][-2:] == ["training", "finished"] for lines in log.values())


def test_a_trial_that_ended_may_be_submitted_again_while_its_pack_goes_on(make_runner: MakeRunner, tmp_path: Path) -> None:
    stopped, kept = (make_trial(seed=seed, source=MEDIUM) for seed in range(2))
    runner = make_runner(pack_size=2)
    runner._slots = 1  # type: ignore[attr-defined]
    runner.submit([stopped, kept])
    seen: list[TrialEvent] = []
    for event in runner.events():
        seen.append(event)
        if isinstance(event, Progress) and event.tokens and event.trial_id == stopped.trial_id and not ends(seen):
            runner.cancel([stopped.trial_id])
        if isinstance(event, Failed):
            assert event.failure.kind is FailureKind.CANCELLED
            seen.clear()
            runner.submit([stopped])
    final = ends(seen)
    assert set(final) == {stopped.trial_id, kept.trial_id}
    assert all(isinstance(event, Completed) for event in final.values())


def test_a_source_without_evaluations_is_refused(make_runner: MakeRunner) -> None:
    runner = make_runner(evaluations={})
    with pytest.raises(ConfigError, match="no evaluations"):
        runner.submit([make_trial()])
    assert list(runner.events()) == []


def test_close_stops_what_is_under_way_after_a_checkpoint(make_runner: MakeRunner, tmp_path: Path) -> None:
    runner = make_runner()
    trial = make_trial(source=LONG)
    runner.submit([trial])
    for event in runner.events():
        if isinstance(event, Progress) and event.tokens:
            break
    runner.close()
    runner.close()
    assert (folder_of(tmp_path, trial).path / "checkpoint.safetensors").exists()
    with folder_of(tmp_path, trial).lock() as free:
        assert free, "the trial is still being trained"
    assert list((tmp_path / "store" / "control").iterdir()) == []


def test_a_trial_that_another_process_holds_is_waited_for(make_runner: MakeRunner, tmp_path: Path) -> None:
    held, free = make_trial(seed=1), make_trial(seed=2)
    runner = make_runner()
    with folder_of(tmp_path, held).lock() as locked:
        assert locked
        runner.submit([held, free])
        # The free member of the pack does not wait for the other: its result is on disk before the lock is given back.
        events = runner.events()
        while folder_of(tmp_path, free).read_outcome() is None:
            next(events)
        assert folder_of(tmp_path, held).read_outcome() is None
    assert set(ends(list(events))) == {held.trial_id, free.trial_id}


@pytest.mark.ray
def test_both_runners_train_the_same_proxy(
    ray_cluster: None, tmp_path: Path, catalog: dict[str, Path], evaluations: dict[str, list[Evaluation]]
) -> None:
    from workers.ray_runner import RayRunner

    trials = [make_trial(share) for share in (0.25, 0.75)]
    results = []
    for kind, store in ((LocalRunner, "local"), (RayRunner, "ray")):
        runner = kind(tmp_path / store, catalog, evaluations, pack_size=2)
        results.append({key: losses(event) for key, event in ends(run(runner, trials)).items()})
        runner.close()
    assert results[0] == results[1]


@pytest.mark.ray
def test_workers_have_the_allocator_settings_from_their_first_instruction(ray_cluster: None) -> None:
    import ray

    from workers.ray_runner import WORKER_ENVIRONMENT

    @ray.remote(num_cpus=1, runtime_env={"env_vars": WORKER_ENVIRONMENT})
    def environment_at_exec() -> dict[str, str]:
        # What the kernel handed to the process, not what Python may have set since.
        entries = Path("/proc/self/environ").read_bytes().decode().split("\0")
        return dict(entry.split("=", 1) for entry in entries if "=" in entry)

    seen = ray.get(environment_at_exec.remote())
    assert {name: seen.get(name) for name in WORKER_ENVIRONMENT} == WORKER_ENVIRONMENT


@pytest.mark.ray
@pytest.mark.parametrize(
    ("address", "error"),
    [("127.0.0.1:1", RunError), ("nonsense", ConfigError), ("127.0.0.1:port", ConfigError), ("127.0.0.1:99999", RunError)],
)
def test_an_address_that_does_not_answer_is_an_error_with_a_remedy(address: str, error: type[Exception]) -> None:
    from workers.ray_runner import probe

    with pytest.raises(error) as caught:
        probe(address)
    assert "ray.address" in str(caught.value)


@pytest.mark.ray
def test_an_address_where_something_else_answers_is_given_up_in_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    from workers import ray_runner

    monkeypatch.setattr(ray_runner, "PROBE_SECONDS", 4.0)
    with socket.create_server(("127.0.0.1", 0)) as server, pytest.raises(RunError, match="within 4 seconds"):
        ray_runner.probe(f"127.0.0.1:{server.getsockname()[1]}")


@pytest.mark.ray
def test_a_running_cluster_is_found_by_those_who_have_its_token(ray_cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    from workers.ray_runner import probe

    address = ray.get_runtime_context().gcs_address
    assert address.startswith("127.0.0.1:"), "the cluster listens beyond this machine"
    resources = probe(address)
    assert resources["CPU"] == ray.cluster_resources()["CPU"]
    assert resources["nodes"] == 1
    assert resources["memory"] > 0
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 64)
    with pytest.raises(RunError):
        probe(address)
