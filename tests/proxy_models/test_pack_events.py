"""A member ends the same whatever happens around it: who else is there, how many places there are, who leaves when, what is killed."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy_models.checkpoint import CHECKPOINT_NAME, WEIGHTS_NAME, load_checkpoint, save_checkpoints
from proxy_models.config import ProxyConfig
from proxy_models.evaluate import EvaluationSpec
from proxy_models.pack_step import PackStep
from proxy_models.sampler import DomainStream
from proxy_models.token_store import TokenWriter
from proxy_models.train import (
    MemberFailure,
    MemberOutcome,
    MemberResult,
    MemberSpec,
    MemberStopped,
    TrainSettings,
    finish,
    train_pack,
)
from tests.proxy_models.late_step import LateStep

VOCAB, WINDOW, STEP, STEPS = 32, 8, 16, 8
# No smaller: the smallest products of all go to another library, depending on how many members there are (`evaluate.LEAST_SQUARES`).
CONFIG = ProxyConfig("tiny", VOCAB, 64, 1, 2, n_experts=8, top_k=2, n_shared_experts=1, d_expert=8)
SETTINGS = TrainSettings(tokens=STEPS * STEP, window=WINDOW, tokens_per_step=STEP, checkpoint_seconds=1e9)
STEP_TYPES: dict[str, type[PackStep]] = {"cpu": PackStep, "late": LateStep}
NAMES = "abcdx"
DIVERGING = "x"


@dataclass(frozen=True)
class Scene:
    """Members, what they are scored on, and how each ended alone."""

    members: Mapping[str, MemberSpec]
    evaluations: list[EvaluationSpec]
    outcomes: Mapping[str, MemberResult | MemberFailure]
    weights: Mapping[str, Mapping[str, torch.Tensor]]


def write(path: Path, seed: int) -> Path:
    generator = np.random.default_rng(seed)
    with TokenWriter(path, VOCAB, "tok") as writer:
        for _ in range(30):
            ids = (generator.integers(VOCAB) + (seed + 1) * np.arange(20)) % (VOCAB - 1) + 1
            writer.add([*ids.tolist(), 0], text_bytes=50)
        writer.close(path.name)
    return path


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    folder = tmp_path_factory.mktemp("scene")
    streams = tuple(DomainStream(name, write(folder / name, seed), 200) for seed, name in enumerate(("one", "two")))
    shares = {"a": (0.5, 0.5), "b": (0.0, 1.0), "c": (1.0, 0.0), "d": (0.25, 0.75), "x": (0.5, 0.5)}
    rates = {"a": 3e-3, "b": 3e-3, "c": 1e-2, "d": 1e-3, "x": 1e30}
    members = {name: MemberSpec(name, seed, rates[name], streams, (shares[name],)) for seed, name in enumerate(NAMES)}
    evaluations = [EvaluationSpec("held out", write(folder / "held-out", 5), "text", 60, 30)]
    outcomes: dict[str, MemberResult | MemberFailure] = {}
    weights = {}
    for name, member in members.items():
        (outcome,) = train_pack(CONFIG, SETTINGS, [member], evaluations, {name: folder / "alone" / name})
        assert isinstance(outcome, MemberFailure if name == DIVERGING else MemberResult)
        outcomes[name] = timeless(outcome)
        if name != DIVERGING:
            weights[name] = load_checkpoint(folder / "alone" / name / WEIGHTS_NAME).tensors
    return Scene(members, evaluations, outcomes, weights)


def timeless(outcome: MemberOutcome) -> MemberResult | MemberFailure:
    assert not isinstance(outcome, MemberStopped)
    return dataclasses.replace(outcome, seconds=0.0) if isinstance(outcome, MemberResult) else outcome


@dataclass(frozen=True)
class Session:
    """One process: which members in which order, how many places, how often it saves, and what happens before which of its steps."""

    order: str
    places: int
    step: str
    saves: bool
    stops: Mapping[int, str]
    killed_after: int | None


class Killed(BaseException):
    """Stands in for kill -9: nothing catches it, and nothing is written."""


def play(scene: Scene, session: Session, folder: Path, left: set[str]) -> dict[str, MemberResult | MemberFailure]:
    """Outcomes of the members that came to an end."""
    ended: dict[str, MemberResult | MemberFailure] = {}
    asked, stepped = 0, 0

    def stops(ids: Collection[str]) -> Collection[str]:
        nonlocal asked
        asked += 1
        return [name for name in ids if name in session.stops.get(asked - 1, "")]

    def progress(tokens: Mapping[str, int]) -> None:
        nonlocal stepped
        stepped += 1
        assert len(tokens) <= session.places
        if stepped == session.killed_after:
            raise Killed

    def take(outcome: MemberOutcome) -> None:
        if not isinstance(outcome, MemberStopped):
            assert outcome.member_id not in ended
            ended[outcome.member_id] = outcome
            if isinstance(outcome, MemberResult):
                finish(folder / outcome.member_id)

    chosen = dataclasses.replace(SETTINGS, checkpoint_seconds=0.0 if session.saves else 1e9)
    names = [name for name in session.order if name in left]
    try:
        outcomes = train_pack(
            CONFIG,
            chosen,
            [scene.members[name] for name in names],
            scene.evaluations,
            {name: folder / name for name in names},
            on_progress=progress,
            should_stop=stops,
            places=session.places,
            on_outcome=take,
            step_type=STEP_TYPES[session.step],
        )
    except Killed:
        return ended
    assert [outcome.member_id for outcome in outcomes] == names
    return ended


sessions = st.builds(
    Session,
    order=st.permutations(NAMES).flatmap(lambda order: st.integers(1, len(NAMES)).map(lambda n: "".join(order[:n]))),
    places=st.integers(1, 6),
    step=st.sampled_from(sorted(STEP_TYPES)),
    saves=st.booleans(),
    stops=st.dictionaries(st.integers(0, 14), st.text(NAMES, min_size=1, max_size=3), max_size=3),
    killed_after=st.none() | st.integers(1, 20),
)


@settings(max_examples=25, deadline=None)
@given(events=st.lists(sessions, max_size=3), last=st.integers(1, 6), kind=st.sampled_from(sorted(STEP_TYPES)))
def test_no_sequence_of_events_changes_how_a_member_ends(scene: Scene, events: list[Session], last: int, kind: str) -> None:
    with TemporaryDirectory() as name:
        folder, left = Path(name), set(NAMES)
        ended: dict[str, MemberResult | MemberFailure] = {}
        for session in [*events, Session(NAMES, last, kind, False, {}, None)]:
            new = play(scene, session, folder, left)
            assert not ended.keys() & new.keys()
            ended |= new
            left -= new.keys()
        assert {name: timeless(outcome) for name, outcome in ended.items()} == scene.outcomes
        for name, expected in scene.weights.items():
            found = load_checkpoint(folder / name / WEIGHTS_NAME).tensors
            assert found.keys() == expected.keys()
            assert all(torch.equal(found[key], expected[key]) for key in expected)
            assert [path.name for path in (folder / name).iterdir()] == [WEIGHTS_NAME]
        assert not (folder / DIVERGING / WEIGHTS_NAME).exists()


def trained(scene: Scene, folder: Path, names: str, **options: object) -> list[MemberOutcome]:
    members = [scene.members[name] for name in names]
    return train_pack(CONFIG, SETTINGS, members, scene.evaluations, {name: folder / name for name in names}, **options)  # type: ignore[arg-type]


def test_a_place_is_taken_at_the_next_step_and_the_pack_is_compacted_when_nobody_waits(scene: Scene, tmp_path: Path) -> None:
    seen: list[str] = []
    outcomes = trained(scene, tmp_path, "axbcd", places=2, on_progress=lambda tokens: seen.append("".join(tokens)))
    x_ends = next(step for step, names in enumerate(seen) if "x" not in names)
    assert 0 < x_ends < STEPS, "the diverging member trained for a while"
    # b takes x's place, and c, when a ends, a's; the order of places stays.
    expected = ["ax"] * x_ends + ["ab"] * (STEPS - x_ends) + ["cb"] * x_ends + ["cd"] * (STEPS - x_ends) + ["d"] * x_ends
    assert seen == expected
    assert [timeless(outcome) for outcome in outcomes] == [scene.outcomes[name] for name in "axbcd"]


def test_one_member_is_stopped_and_the_others_lose_no_step(scene: Scene, tmp_path: Path) -> None:
    seen: list[Mapping[str, int]] = []
    stop = iter([(), (), (), ("b", "d")])
    outcomes = trained(
        scene, tmp_path, "abcd", places=3, on_progress=lambda tokens: seen.append(dict(tokens)), should_stop=lambda _: next(stop, ())
    )
    assert outcomes[1] == MemberStopped("b", 3 * STEP)
    assert outcomes[3] == MemberStopped("d", 0), "it never had a place"
    assert [len(tokens) for tokens in seen] == [3] * 3 + [2] * (STEPS - 3)
    assert timeless(outcomes[0]) == scene.outcomes["a"]
    assert timeless(outcomes[2]) == scene.outcomes["c"]
    assert load_checkpoint(tmp_path / "b" / CHECKPOINT_NAME).facts["step"] == 3
    assert not (tmp_path / "d").exists()
    (alone,) = trained(scene, tmp_path, "b")
    assert timeless(alone) == scene.outcomes["b"]


def test_a_divergence_that_is_heard_of_late_counts_the_steps_before_it(scene: Scene, tmp_path: Path) -> None:
    """At step 5 the weights are ruined; the next look at weights is at step 8, and by then two more steps have been issued."""
    asked = iter([()] * 5 + ["ab"])
    trained(scene, tmp_path, "ab", should_stop=lambda _: next(asked))
    path = tmp_path / "a" / CHECKPOINT_NAME
    checkpoint = load_checkpoint(path)
    ruined = {name: tensor * torch.nan if name.startswith("model.") else tensor for name, tensor in checkpoint.tensors.items()}
    save_checkpoints({path: dataclasses.replace(checkpoint, tensors=ruined)})
    seen: list[int] = []
    failure, other = trained(scene, tmp_path, "ab", step_type=LateStep, on_progress=lambda tokens: seen.append(tokens.get("a", 0) // STEP))
    assert isinstance(failure, MemberFailure)
    assert (failure.kind, failure.tokens) == ("diverged", 5 * STEP)
    assert "step 5" in failure.message
    assert seen[:2] == [6, 7], "issued before it was known"
    assert timeless(other) == scene.outcomes["b"]


def test_outcomes_are_told_when_they_come(scene: Scene, tmp_path: Path) -> None:
    told: list[tuple[int, str]] = []
    steps: list[int] = []
    trained(
        scene,
        tmp_path,
        "abcd",
        places=3,
        on_progress=lambda _: steps.append(1),
        on_outcome=lambda o: told.append((len(steps), o.member_id)),
    )
    assert told == [(STEPS, "a"), (STEPS, "b"), (STEPS, "c"), (2 * STEPS, "d")]


def test_a_member_that_is_not_admitted_is_left_out(scene: Scene, tmp_path: Path) -> None:
    asked: list[str] = []

    def admit(name: str) -> bool:
        asked.append(name)
        return name != "b"

    outcomes = trained(scene, tmp_path, "abcd", places=2, admit=admit)
    assert [outcome.member_id for outcome in outcomes] == ["a", "c", "d"]
    assert asked == list("abcd")
    assert not (tmp_path / "b").exists()


def test_a_member_whose_data_vanish_ends_alone(scene: Scene, tmp_path: Path) -> None:
    """One before its place is free; one in the middle of its training."""
    lost = [DomainStream(name, tmp_path / "not there", 200) for name in ("one", "two")]
    waiting = dataclasses.replace(scene.members["b"], domains=tuple(lost))
    members = [scene.members["a"], scene.members["c"], waiting, scene.members["d"]]
    with pytest.MonkeyPatch.context() as patch:
        import proxy_models.sampler as module

        original = module.MemberSampler._read_ahead
        at_hand = scene.members["c"].seed

        def vanish(self: module.MemberSampler, domain_N: object) -> None:
            if (
                self._domains[0]._seed == at_hand and sum(map(sum, self.state().values())) == 3 * SETTINGS.windows_per_step
            ):  # at its fourth step
                raise OSError("Stale file handle")
            original(self, domain_N)  # type: ignore[arg-type]

        patch.setattr(module, "BLOCK_TOKENS", 1)  # nothing is read before the step that needs it
        patch.setattr(module.MemberSampler, "_read_ahead", vanish)
        folders = {member.member_id: tmp_path / member.member_id for member in members}
        outcomes = train_pack(CONFIG, SETTINGS, members, scene.evaluations, folders, places=2)
    assert timeless(outcomes[0]) == scene.outcomes["a"]
    assert timeless(outcomes[3]) == scene.outcomes["d"]
    reading, gone = outcomes[1], outcomes[2]
    assert isinstance(reading, MemberFailure)
    assert (reading.kind, reading.tokens, reading.message) == ("error", 3 * STEP, "OSError: Stale file handle")
    assert isinstance(gone, MemberFailure)
    assert isinstance(gone.error, FileNotFoundError)


def test_a_member_whose_scoring_fails_ends_alone(scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import proxy_models.pack as module

    original = module.evaluate

    def fails_for_c(model: object, *arguments: object) -> object:
        if 2 in model.seeds:  # type: ignore[attr-defined]
            raise RuntimeError("cannot score")
        return original(model, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "evaluate", fails_for_c)
    outcomes = trained(scene, tmp_path, "abcd")
    assert [timeless(outcomes[k]) == scene.outcomes["abcd"[k]] for k in range(4)] == [True, True, False, True]
    failure = outcomes[2]
    assert isinstance(failure, MemberFailure)
    assert (failure.kind, failure.tokens) == ("error", STEP)


def test_a_member_that_cannot_be_saved_ends_alone(scene: Scene, tmp_path: Path) -> None:
    (tmp_path / "b").write_text("a file where its folder should be")
    outcomes = trained(scene, tmp_path, "abc")
    assert timeless(outcomes[0]) == scene.outcomes["a"]
    assert isinstance(outcomes[1], MemberFailure)
    assert timeless(outcomes[2]) == scene.outcomes["c"]


def test_too_little_memory_is_nobodys_own_failure(scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is raised, because fewer places are the remedy; what had ended is told before."""
    import proxy_models.pack as module

    original = module.evaluate
    told: list[str] = []

    def needs_much(model: object, *arguments: object) -> object:
        if told:
            raise MemoryError
        return original(model, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "evaluate", needs_much)
    with pytest.raises(MemoryError):
        trained(scene, tmp_path, "ab", places=1, on_outcome=lambda outcome: told.append(outcome.member_id))
    assert told == ["a"]
