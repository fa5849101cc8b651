"""Training a pack: golden curves, members that do not touch each other, and runs that end the same however often they are interrupted."""

import dataclasses
import json
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from proxy_models.checkpoint import CHECKPOINT_NAME, WEIGHTS_NAME, load_checkpoint
from proxy_models.config import ProxyConfig, proxy_config
from proxy_models.evaluate import EvaluationSpec, score_weights
from proxy_models.products import product_library
from proxy_models.sampler import DomainStream
from proxy_models.specs import spec_hash
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

VOCAB = 64
WINDOW = 16
CONFIG = ProxyConfig("tiny", VOCAB, 32, 2, 2, n_experts=4, top_k=2, n_shared_experts=1, d_expert=16)
SETTINGS = TrainSettings(tokens=20 * 64, window=WINDOW, tokens_per_step=64, checkpoint_seconds=1e9)
GOLDEN = Path(__file__).parents[1] / "golden" / "proxy_loss_curves.json"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three domains that count upwards in steps of their own, with some noise, and two held-out sets."""
    folder = tmp_path_factory.mktemp("corpus")
    for index, name in enumerate(("ones", "threes", "fives")):
        write(folder / name, np.random.default_rng(index), stride=2 * index + 1, count=40, scored_from=0)
    write(folder / "text", np.random.default_rng(7), stride=1, count=6, scored_from=0)
    write(folder / "pairs", np.random.default_rng(8), stride=3, count=6, scored_from=20)
    return folder


def write(path: Path, generator: np.random.Generator, stride: int, count: int, scored_from: int) -> None:
    with TokenWriter(path, VOCAB, "tok") as writer:
        for _ in range(count):
            ids = (generator.integers(VOCAB) + stride * np.arange(30)) % (VOCAB - 1) + 1
            ids = np.where(generator.random(30) < 0.1, generator.integers(1, VOCAB, 30), ids)
            writer.add([*ids, 0], text_bytes=60 - 2 * scored_from, scored_from=scored_from)
        writer.close(path.name)


def member(corpus: Path, name: str, seed: int = 0, rate: float = 3e-3, weights: tuple[float, ...] = (0.5, 0.3, 0.2)) -> MemberSpec:
    domains = tuple(DomainStream(key, corpus / key, 400) for key in ("ones", "threes", "fives"))
    return MemberSpec(name, seed, rate, domains, (weights,))


def evaluations(corpus: Path) -> list[EvaluationSpec]:
    return [EvaluationSpec("t", corpus / "text", "text", 150, 50), EvaluationSpec("p", corpus / "pairs", "completion", None, 40)]


def trained(
    corpus: Path, folder: Path, members: list[MemberSpec], settings: TrainSettings = SETTINGS, **options: object
) -> list[MemberOutcome]:
    folders = {one.member_id: folder / one.member_id for one in members}
    return train_pack(CONFIG, settings, members, evaluations(corpus), folders, **options)  # type: ignore[arg-type]


def result(outcome: MemberOutcome) -> MemberResult:
    assert isinstance(outcome, MemberResult), outcome
    return outcome


def weights(folder: Path) -> Mapping[str, torch.Tensor]:
    return load_checkpoint(folder / WEIGHTS_NAME).tensors


def same_weights(first: Path, second: Path) -> bool:
    a, b = weights(first), weights(second)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def timeless(outcome: MemberOutcome) -> MemberResult:
    return dataclasses.replace(result(outcome), seconds=0.0)


@pytest.fixture(scope="module")
def trio(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[MemberSpec], list[MemberResult]]:
    folder = tmp_path_factory.mktemp("trio")
    members = [
        member(corpus, "a", 0),
        member(corpus, "b", 1, weights=(0.0, 0.5, 0.5)),
        member(corpus, "c", 2, rate=1e-2, weights=(1.0, 0.0, 0.0)),
    ]
    return folder, members, [result(outcome) for outcome in trained(corpus, folder, members)]


def curves(results: list[MemberResult]) -> dict[str, dict[str, Any]]:
    return {
        one.member_id: {
            "training_loss_nats": one.diagnostics["training_loss"],
            "measured_nats": [[key, tokens, nats] for key, tokens, nats, _ in one.measurements],
        }
        for one in results
    }


def test_golden_loss_curves(trio: tuple[Path, list[MemberSpec], list[MemberResult]]) -> None:
    """Training and evaluation losses of 20 steps.

    Another number of threads moved them by 5e-7 nats, 10% more weight decay by up to 3e-2, a 3% higher rate by 2e-2 to 8e-2. The tolerance
    of 1e-3 is far from both ends. To accept a change, delete the file, run this test once (it writes the file and fails), review the
    difference, and raise ENGINE_VERSION.
    """
    made = curves(trio[2])
    if not GOLDEN.exists():
        GOLDEN.write_text(json.dumps({"tolerance_nats": 1e-3, "members": made}, indent=1) + "\n")
        pytest.fail(f"wrote {GOLDEN.name}; review it and run again")
    golden = json.loads(GOLDEN.read_text())
    assert made.keys() == golden["members"].keys()
    for name, expected in golden["members"].items():
        for curve in ("training_loss_nats", "measured_nats"):
            assert [point[:-1] for point in made[name][curve]] == [point[:-1] for point in expected[curve]]
            losses = [point[-1] for point in made[name][curve]]
            assert losses == pytest.approx([point[-1] for point in expected[curve]], abs=golden["tolerance_nats"])


def test_the_proxy_learns_what_it_was_shown(corpus: Path, tmp_path: Path) -> None:
    """Counting in ones is learned from the domain that does so and not from those that do not; margins are a tenth of what was seen."""
    settings = dataclasses.replace(SETTINGS, tokens=100 * 64)
    members = [member(corpus, "ones", weights=(1.0, 0.0, 0.0)), member(corpus, "others", weights=(0.0, 0.5, 0.5))]
    ones, others = (result(outcome) for outcome in trained(corpus, tmp_path, members, settings))
    end = {one.member_id: {key: nats for key, tokens, nats, _ in one.measurements if tokens == one.tokens} for one in (ones, others)}
    assert end["ones"]["t"] < math.log(VOCAB) - 0.1
    assert end["ones"]["t"] < end["others"]["t"] - 0.1
    assert end["others"]["p"] < end["ones"]["p"] - 0.1


def test_what_a_result_says(corpus: Path, trio: tuple[Path, list[MemberSpec], list[MemberResult]]) -> None:
    folder, _, results = trio
    first, second, _ = results
    assert first.tokens == 20 * 64
    assert first.flops == first.tokens * CONFIG.training_flops_per_token(WINDOW)
    assert first.realized == {"ones": (0.5,), "threes": (24 / 80,), "fives": (16 / 80,)}
    assert second.realized["ones"] == (0.0,)
    assert first.diagnostics["epochs"] == {"fives": 16 / 25, "ones": 40 / 25, "threes": 24 / 25}
    assert [tokens for key, tokens, _, _ in first.measurements if key == "t"] == [128, 320, 640, 1280]
    assert first.diagnostics["gradient_norm"]["max"] >= first.diagnostics["gradient_norm"]["median"] > 0
    for least, largest in zip(*(first.diagnostics["expert_load"][name] for name in ("least", "largest")), strict=True):
        assert 0 <= least <= 1 / 4 <= largest <= 1 / 2  # each token goes to two different experts
    assert first.diagnostics["compute"] == {"products": product_library()}  # last digits depend on it
    assert first.seconds > 0
    assert MemberResult.from_json(json.loads(json.dumps(first.to_json()))) == first
    scores = score_weights(CONFIG, folder / "a" / WEIGHTS_NAME, evaluations(corpus), WINDOW)
    end = [(key, nats, bits) for key, tokens, nats, bits in first.measurements if tokens == first.tokens]
    assert [score.key for score in scores] == [key for key, _, _ in end]
    assert [score.loss_nats for score in scores] == pytest.approx([nats for _, nats, _ in end], rel=1e-5)
    assert [score.bits_per_byte for score in scores] == pytest.approx([bits for _, _, bits in end], rel=1e-5)


@pytest.mark.parametrize("change", ["seed", "learning_rate", "weights", "unique_tokens"])
def test_changing_one_member_changes_only_that_member(
    corpus: Path, tmp_path: Path, trio: tuple[Path, list[MemberSpec], list[MemberResult]], change: str
) -> None:
    folder, members, results = trio
    changes: dict[str, dict[str, Any]] = {
        "seed": {"seed": 99},
        "learning_rate": {"learning_rate": 3.1e-3},
        "weights": {"weights": ((0.0, 0.4, 0.6),)},
        "unique_tokens": {"domains": tuple(dataclasses.replace(one, unique_tokens=160) for one in members[1].domains)},
    }
    others = [members[0], dataclasses.replace(members[1], **changes[change]), members[2]]
    outcomes = trained(corpus, tmp_path, others)
    assert [timeless(outcomes[k]) == timeless(results[k]) for k in range(3)] == [True, False, True]
    assert [same_weights(tmp_path / name, folder / name) for name in "abc"] == [True, False, True]


def test_a_member_does_not_depend_on_its_place_or_company(
    corpus: Path, tmp_path: Path, trio: tuple[Path, list[MemberSpec], list[MemberResult]]
) -> None:
    folder, members, results = trio
    last, first = trained(corpus, tmp_path, [members[2], members[0]])
    assert (timeless(first), timeless(last)) == (timeless(results[0]), timeless(results[2]))
    assert same_weights(tmp_path / "a", folder / "a")


def test_the_order_of_domains_does_not_matter(
    corpus: Path, tmp_path: Path, trio: tuple[Path, list[MemberSpec], list[MemberResult]]
) -> None:
    folder, members, _ = trio
    one = members[0]
    turned = dataclasses.replace(one, domains=one.domains[::-1], weights=(one.weights[0][::-1],))
    identities = [spec_hash("1", CONFIG, SETTINGS, spec, evaluations(corpus)) for spec in (one, turned)]
    assert identities[0] == identities[1]
    trained(corpus, tmp_path, [turned, members[1]])
    assert same_weights(tmp_path / "a", folder / "a")


def test_what_was_trained_before_keeps_its_name() -> None:
    """A specification of before settings were added to it: pinned, because checkpoints and kept weights are known by it. What is added
    since counts where it is set."""
    config, settings = proxy_config("nano", 4096), TrainSettings(tokens=1_000_000, window=512, tokens_per_step=1024)
    streams = (DomainStream("one", Path("a"), 64_000), DomainStream("two", Path("b"), 128_000))
    spec = MemberSpec("m", 3, 3e-3, streams, ((0.25, 0.75),))
    sets = [EvaluationSpec("k", Path("c"), "text", 5120, 1536)]
    pinned = "bca515699bc60ac3192e5d26b45178923554ba9b94acc4b5d833dc35fd77e52d"
    assert spec_hash("1", config, settings, spec, sets) == pinned
    assert spec_hash("1", config, dataclasses.replace(settings, checkpoint_seconds=5.0), spec, sets) == pinned
    for changed in ({"auxiliary_loss": 0.01}, {"bias_update_rate": 0.0}):
        assert spec_hash("1", dataclasses.replace(config, **changed), settings, spec, sets) != pinned  # type: ignore[arg-type]


class Stopper:
    """Stops all members, or those named, before the step that follows `steps` more."""

    def __init__(self, steps: int, names: str | None = None) -> None:
        self.left, self.names = steps, names

    def __call__(self, ids: Collection[str]) -> Collection[str]:
        self.left -= 1
        return () if self.left >= 0 else [name for name in ids if self.names is None or name in self.names]


def stopped(outcomes: list[MemberOutcome]) -> list[int]:
    """Steps at which members were stopped, where all were."""
    assert all(isinstance(outcome, MemberStopped) for outcome in outcomes), outcomes
    return [outcome.tokens // 64 for outcome in outcomes]  # type: ignore[union-attr]


@pytest.mark.parametrize("stops", [[7], [0, 1, 10, 5]])
def test_resumed_equals_uninterrupted_bitwise(
    corpus: Path, tmp_path: Path, trio: tuple[Path, list[MemberSpec], list[MemberResult]], stops: list[int]
) -> None:
    folder, members, results = trio
    for steps in stops:
        stopped(trained(corpus, tmp_path, members, should_stop=Stopper(steps)))
    step = sum(stops)
    seen: list[int] = []
    outcomes = trained(corpus, tmp_path, members, on_progress=lambda progress: seen.append(progress["a"]))
    assert seen == [64 * done for done in range(step + 1, 21)]
    assert [timeless(outcome) for outcome in outcomes] == [timeless(one) for one in results]
    assert all(same_weights(tmp_path / name, folder / name) for name in "abc")


def test_mup_resumes_like_any_other_and_never_from_the_standard_parametrization(
    corpus: Path, tmp_path: Path, trio: tuple[Path, list[MemberSpec], list[MemberResult]], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, members, standard = trio
    stopped(
        trained(corpus, tmp_path / "cut", members, should_stop=Stopper(5))
    )  # checkpoints of the standard parametrization, ignored below
    monkeypatch.setattr(f"{__name__}.CONFIG", dataclasses.replace(CONFIG, parametrization="mup"))
    whole = trained(corpus, tmp_path / "whole", members)
    assert stopped(trained(corpus, tmp_path / "cut", members, should_stop=Stopper(7))) == [7, 7, 7]
    resumed = trained(corpus, tmp_path / "cut", members)
    assert [timeless(one) for one in resumed] == [timeless(one) for one in whole]
    assert all(same_weights(tmp_path / "cut" / name, tmp_path / "whole" / name) for name in "abc")
    assert all(result(one).measurements != other.measurements for one, other in zip(whole, standard, strict=True))


def test_a_dense_proxy_trains_and_resumes_like_any_other(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dense = ProxyConfig("tiny-dense", VOCAB, 32, 2, 2, n_experts=0, top_k=0, n_shared_experts=3, d_expert=16)
    monkeypatch.setattr(f"{__name__}.CONFIG", dense)
    members = [member(corpus, "a"), member(corpus, "b", seed=1)]
    whole = trained(corpus, tmp_path / "whole", members)
    assert stopped(trained(corpus, tmp_path / "cut", members, should_stop=Stopper(7))) == [7, 7]
    resumed = trained(corpus, tmp_path / "cut", members)
    assert [timeless(one) for one in resumed] == [timeless(one) for one in whole]
    assert all(same_weights(tmp_path / "cut" / name, tmp_path / "whole" / name) for name in "ab")
    first = result(whole[0])
    assert first.diagnostics["expert_load"] == {"least": [], "largest": []}
    assert first.flops == first.tokens * dense.training_flops_per_token(WINDOW)


def test_members_at_different_steps_go_on_together(
    corpus: Path, tmp_path: Path, trio: tuple[Path, list[MemberSpec], list[MemberResult]]
) -> None:
    """The checkpoints of two members come from another moment than that of the third, as after a kill between two renames."""
    _folder, members, results = trio
    four = [*members, member(corpus, "d", 3)]
    for steps, names in ((5, "ab"), (4, "cd")):
        some = [one for one in four if one.member_id in names]
        assert stopped(trained(corpus, tmp_path, some, should_stop=Stopper(steps))) == [steps] * 2
    order: list[str] = []
    outcomes = trained(corpus, tmp_path, four, on_progress=lambda progress: order.append("".join(sorted(progress))))
    assert order == ["abcd"] * 15 + ["cd"]
    assert [timeless(outcome) for outcome in outcomes[:3]] == [timeless(one) for one in results]


def test_periodic_checkpoints_survive_a_crash(
    corpus: Path, tmp_path: Path, trio: tuple[Path, list[MemberSpec], list[MemberResult]]
) -> None:
    folder, members, _ = trio

    def crash(progress: Mapping[str, int]) -> None:
        if progress["a"] == 11 * 64:
            raise KeyboardInterrupt

    every_step = dataclasses.replace(SETTINGS, checkpoint_seconds=0.0)
    with pytest.raises(KeyboardInterrupt):
        trained(corpus, tmp_path, members, every_step, on_progress=crash)
    assert load_checkpoint(tmp_path / "a" / CHECKPOINT_NAME).facts["step"] == 10
    trained(corpus, tmp_path, members)
    assert all(same_weights(tmp_path / name, folder / name) for name in "abc")


@pytest.mark.parametrize("damage", ["truncated", "foreign"])
def test_unusable_checkpoints_are_ignored(
    corpus: Path, tmp_path: Path, trio: tuple[Path, list[MemberSpec], list[MemberResult]], damage: str
) -> None:
    folder, members, _ = trio
    spec = members if damage == "truncated" else [dataclasses.replace(one, seed=one.seed + 50) for one in members]
    assert stopped(trained(corpus, tmp_path, spec, should_stop=Stopper(6))) == [6, 6, 6]
    if damage == "truncated":
        for name in "abc":
            path = tmp_path / name / CHECKPOINT_NAME
            path.write_bytes(path.read_bytes()[:-100])
    seen: list[int] = []
    trained(corpus, tmp_path, members, on_progress=lambda progress: seen.append(progress["a"]))
    assert seen[0] == 64
    assert all(same_weights(tmp_path / name, folder / name) for name in "abc")


def test_a_finished_member_is_not_trained_again_until_finish(corpus: Path, tmp_path: Path) -> None:
    members = [member(corpus, "a"), member(corpus, "b", 1)]
    first = trained(corpus, tmp_path, members)
    steps: list[int] = []
    renamed = dataclasses.replace(members[0], member_id="other name")
    folders = {"other name": tmp_path / "a", "b": tmp_path / "b"}
    again = train_pack(CONFIG, SETTINGS, [renamed, members[1]], evaluations(corpus), folders, on_progress=lambda progress: steps.append(1))
    assert steps == []
    assert [one.member_id for one in again] == ["other name", "b"]
    assert dataclasses.replace(result(again[0]), member_id="a") == first[0]
    assert again[1] == first[1]
    (tmp_path / "b" / WEIGHTS_NAME).unlink()
    trained(corpus, tmp_path, members, on_progress=lambda progress: steps.append(1))
    assert len(steps) == 20
    finish(tmp_path / "a")
    assert [path.name for path in (tmp_path / "a").iterdir()] == [WEIGHTS_NAME]


@pytest.mark.parametrize("rate", [1e18, 3e37])  # where this was written: a loss that is NaN, and a finite loss with a gradient that is
def test_a_diverged_member_is_a_failure_and_the_others_go_on(
    corpus: Path, tmp_path: Path, trio: tuple[Path, list[MemberSpec], list[MemberResult]], rate: float
) -> None:
    _folder, members, results = trio
    bad = member(corpus, "bad", 5, rate=rate)
    outcomes = trained(corpus, tmp_path, [members[0], bad, members[2]])
    failure = outcomes[1]
    assert isinstance(failure, MemberFailure)
    assert failure.kind == "diverged"
    assert "became" in failure.message
    assert 0 < failure.tokens < SETTINGS.tokens
    assert not (tmp_path / "bad" / WEIGHTS_NAME).exists()
    assert (timeless(outcomes[0]), timeless(outcomes[2])) == (timeless(results[0]), timeless(results[2]))


def test_a_pack_of_which_all_diverge_ends(corpus: Path, tmp_path: Path) -> None:
    outcomes = trained(corpus, tmp_path, [member(corpus, "x", rate=1e38), member(corpus, "y", rate=1e38)])
    assert [one.kind for one in outcomes if isinstance(one, MemberFailure)] == ["diverged", "diverged"]


def test_a_loss_that_is_not_finite_when_measured_is_a_failure(corpus: Path, tmp_path: Path) -> None:
    """One step: only the evaluation after it can see that the weights are ruined."""
    one_step = dataclasses.replace(SETTINGS, tokens=64, schedule="constant")
    bad, good = trained(corpus, tmp_path, [member(corpus, "bad", rate=1e38), member(corpus, "good", 1)], one_step)
    assert isinstance(bad, MemberFailure)
    assert (bad.kind, bad.tokens) == ("diverged", 64)
    assert bad.message.startswith("Loss on t became")
    assert not (tmp_path / "bad" / WEIGHTS_NAME).exists()
    assert [tokens for _, tokens, _, _ in result(good).measurements] == [64, 64]


def test_what_checkpoints_are_bound_to_is_what_it_was() -> None:
    """The hash of part 3 for a default specification: a field that joins later must be left out of it at its default."""
    streams = (DomainStream("k", Path("k"), 4096), DomainStream("l", Path("l"), 8192))
    one = MemberSpec("a", 7, 3e-3, streams, ((0.25, 0.75),))
    settings = TrainSettings(tokens=1_000_000, window=512, tokens_per_step=1024)
    held_out = [EvaluationSpec("t", Path("t"), "text", 4096, 1024)]
    before = "e51225b65e8b31fbcdec9e962a4a1cd2cf02e43f444c343fc62f8111c42e8276"
    assert spec_hash("1", proxy_config("nano", 4096), settings, one, held_out) == before
    assert spec_hash("1", proxy_config("nano", 4096, "mup"), settings, one, held_out) != before


def test_phases_are_trained_in_turn(corpus: Path, tmp_path: Path) -> None:
    phased = dataclasses.replace(member(corpus, "a"), weights=((1.0, 0.0, 0.0), (0.0, 0.5, 0.5)), fractions=(0.25, 0.75))
    (outcome,) = trained(corpus, tmp_path, [phased])
    assert result(outcome).realized == {"ones": (1.0, 0.0), "threes": (0.0, 0.5), "fives": (0.0, 0.5)}


def test_rate_schedules() -> None:
    settings = TrainSettings(tokens=100 * 64, window=16, tokens_per_step=64, schedule="constant", warmup_fraction=0.1, decay_fraction=0.2)
    constant = [settings.rate_scale(step) for step in range(100)]
    assert constant[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert constant[10:] == [1.0] * 90
    wsd = [dataclasses.replace(settings, schedule="wsd").rate_scale(step) for step in range(100)]
    assert wsd[:80] == constant[:80]
    assert wsd[80:] == pytest.approx([(20 - index) / 21 for index in range(20)])
    no_warmup = dataclasses.replace(settings, warmup_fraction=0.0)
    assert no_warmup.rate_scale(0) == 1.0


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"tokens_per_step": 60}, "multiple of window"),
        ({"tokens": 63}, "less than one step"),
        ({"schedule": "cosine"}, "'constant' or 'wsd'"),
        ({"warmup_fraction": 1.5}, "between 0 and 1"),
        ({"clip": 0.0}, "clip"),
    ],
)
def test_wrong_settings_are_refused(change: dict[str, object], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        dataclasses.replace(SETTINGS, **change)  # type: ignore[arg-type]


def test_wrong_packs_are_refused(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="repeat"):
        trained(corpus, tmp_path, [member(corpus, "a"), member(corpus, "a", 1)])
    with pytest.raises(ValueError, match="places is 0"):
        trained(corpus, tmp_path, [member(corpus, "a")], places=0)
    small = dataclasses.replace(CONFIG, vocab_size=32)
    (failure,) = train_pack(small, SETTINGS, [member(corpus, "a")], [], {"a": tmp_path})
    assert isinstance(failure, MemberFailure)
    assert "vocabulary of 64" in failure.message
    with pytest.raises(ValueError, match="vocabulary of 64"):
        train_pack(small, SETTINGS, [], evaluations(corpus), {})
