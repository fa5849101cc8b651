"""Counts of expert load against counting by hand: in training whatever becomes of a pack, and on held-out text."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import proxy_models.device.step as device_step
from proxy_models.balancing import Routing
from proxy_models.checkpoint import CHECKPOINT_NAME, WEIGHTS_NAME, load_checkpoint, save_checkpoints
from proxy_models.config import ProxyConfig
from proxy_models.device.engine import EnginePool
from proxy_models.device.precision import Compute
from proxy_models.device.step import DeviceOptions, DeviceStep
from proxy_models.evaluate import EvaluationSet, EvaluationSpec, evaluate, score_weights
from proxy_models.moe import PackedMoE
from proxy_models.pack import Pack
from proxy_models.pack_step import PackStep
from proxy_models.reference import PlainProxy
from proxy_models.sampler import DomainStream
from proxy_models.token_store import TokenWriter
from proxy_models.train import MemberOutcome, MemberResult, MemberSpec, MemberStopped, TrainSettings, train_pack
from tests.proxy_models.late_step import LateStep

VOCAB, WINDOW, STEP, STEPS, RECENT = 32, 8, 16, 22, 3
CONFIG = ProxyConfig("tiny", VOCAB, 64, 2, 2, n_experts=8, top_k=2, n_shared_experts=1, d_expert=8)
SETTINGS = TrainSettings(tokens=STEPS * STEP, window=WINDOW, tokens_per_step=STEP, checkpoint_seconds=1e9)


class OnDevice(DeviceStep):
    options = DeviceOptions(compute=Compute(loss_bytes=2**16), read_every=5)


STEP_TYPES: dict[str, type[PackStep]] = {"cpu": PackStep, "late": LateStep, "device": OnDevice}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    for seed, name in enumerate(("one", "two", "text", "pairs")):
        generator = np.random.default_rng(seed)
        with TokenWriter(folder / name, VOCAB, "tok") as writer:
            for _ in range(40):
                ids = (generator.integers(VOCAB) + (seed + 1) * np.arange(18 + seed)) % (VOCAB - 1) + 1
                writer.add([*ids.tolist(), 0], text_bytes=50, scored_from=15 if name == "pairs" else 0)
            writer.close(name)
    return folder


@pytest.fixture(autouse=True)
def engines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_step, "ENGINES", EnginePool())


class Ledger:
    """Writes down which experts every training pass chose, under whose name, and counts them by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.chosen: dict[tuple[str, int], list[Tensor]] = {}
        self._places: list[tuple[str, int] | None] = []
        train_step, record = Pack.train_step, PackedMoE._record

        def noted_step(pack: Pack) -> None:
            self._places = [None if run is None else (run.spec.member_id, run.step) for run in pack._places]
            for who in filter(None, self._places):
                self.chosen[who] = []
            train_step(pack)

        def noted(moe: PackedMoE, routing: Routing, load_KE: Tensor) -> None:
            record(moe, routing, load_KE)
            for k, who in enumerate(self._places):
                if who is not None:
                    self.chosen[who].append(routing.expert_KNS[k].clone())

        monkeypatch.setattr(Pack, "train_step", noted_step)
        monkeypatch.setattr(PackedMoE, "_record", noted)

    def rows(self, name: str, steps: range) -> list[list[int]]:
        """Rows per layer and expert."""
        counts = [Counter(expert for step in steps for expert in self.chosen[name, step][layer].flatten().tolist()) for layer in range(2)]
        return [[count[expert] for expert in range(8)] for count in counts]


@pytest.fixture
def ledger(monkeypatch: pytest.MonkeyPatch) -> Ledger:
    return Ledger(monkeypatch)


def member(corpus: Path, name: str, rate: float = 3e-3) -> MemberSpec:
    seed = ord(name)
    streams = tuple(DomainStream(key, corpus / key, 300) for key in ("one", "two"))
    return MemberSpec(name, seed, rate, streams, ((0.25, 0.75) if seed % 2 else (0.5, 0.5),))


def sets(corpus: Path) -> list[EvaluationSpec]:
    return [EvaluationSpec("t", corpus / "text", "text", 150, 50), EvaluationSpec("p", corpus / "pairs", "completion", None, 40)]


def trained(corpus: Path, folder: Path, names: str, config: ProxyConfig = CONFIG, **options: object) -> dict[str, MemberOutcome]:
    members = [member(corpus, name, rate=1e30 if name == "x" else 3e-3) for name in names]
    folders = {name: folder / name for name in names}
    outcomes = train_pack(config, SETTINGS, members, sets(corpus), folders, **options)  # type: ignore[arg-type]
    return {outcome.member_id: outcome for outcome in outcomes}


def balance(outcome: MemberOutcome) -> dict[str, object]:
    assert isinstance(outcome, MemberResult), outcome
    found: dict[str, object] = outcome.diagnostics["balance"]
    return found


def assert_counted(outcome: MemberOutcome, ledger: Ledger) -> None:
    name, counted = outcome.member_id, balance(outcome)
    assert counted["last_step_rows"] == ledger.rows(name, range(STEPS - 1, STEPS))
    assert counted["recent_rows"] == ledger.rows(name, range(STEPS - RECENT, STEPS))
    assert counted["recent_steps"] == SETTINGS.recent_steps == RECENT
    assert counted["experts_per_token"] == 2


@pytest.mark.parametrize("step_type", list(STEP_TYPES))
def test_load_in_training_equals_a_count(corpus: Path, tmp_path: Path, ledger: Ledger, step_type: str) -> None:
    """Four members and one that diverges in places for two: they come and go, and all have their last steps at other times."""
    outcomes = trained(corpus, tmp_path, "axbcd", places=2, step_type=STEP_TYPES[step_type])
    for name in "abcd":
        assert_counted(outcomes[name], ledger)


@pytest.mark.parametrize("step_type", list(STEP_TYPES))
@pytest.mark.parametrize("after", [7, STEPS - RECENT, STEPS - 1])
def test_load_survives_an_interruption(corpus: Path, tmp_path: Path, ledger: Ledger, step_type: str, after: int) -> None:
    """Before the last steps, at their beginning and among them; who was with others goes on alone, in another place."""
    asked = 0

    def stop(ids: Collection[str]) -> Collection[str]:
        nonlocal asked
        asked += 1
        return list(ids) if asked > after else []

    stopped = trained(corpus, tmp_path, "abc", step_type=STEP_TYPES[step_type], should_stop=stop)
    assert {type(outcome) for outcome in stopped.values()} == {MemberStopped}
    for names in ("c", "dba"):
        for name, outcome in trained(corpus, tmp_path, names, step_type=STEP_TYPES[step_type]).items():
            assert_counted(outcome, ledger)
            assert name in names


def test_a_checkpoint_of_an_earlier_version_is_gone_on_from(corpus: Path, tmp_path: Path, ledger: Ledger) -> None:
    """It holds no counts; what is counted from there says of how many steps it is."""
    asked = 0

    def stop(ids: Collection[str]) -> Collection[str]:
        nonlocal asked
        asked += 1
        return list(ids) if asked > STEPS - 2 else []

    trained(corpus, tmp_path, "a", should_stop=stop)
    path = tmp_path / "a" / CHECKPOINT_NAME
    checkpoint = load_checkpoint(path)
    kept = {name: tensor for name, tensor in checkpoint.tensors.items() if not name.startswith("balance.")}
    assert len(kept) == len(checkpoint.tensors) - 1
    save_checkpoints({path: replace(checkpoint, tensors=kept)})
    counted = balance(trained(corpus, tmp_path, "a")["a"])
    assert counted["recent_rows"] == ledger.rows("a", range(STEPS - 2, STEPS))
    assert counted["recent_steps"] == 2


def test_what_is_kept_of_a_member_is_what_it_was(corpus: Path, tmp_path: Path) -> None:
    """Weights that another version reads, or that it wrote, hold nothing of the counts."""
    trained(corpus, tmp_path, "a")
    assert not [name for name in load_checkpoint(tmp_path / "a" / WEIGHTS_NAME).tensors if "count" in name or "balance" in name]


def by_hand(weights: Path, config: ProxyConfig, evaluation: EvaluationSet) -> tuple[list[list[int]], list[float], int]:
    """Rows per layer and expert, entropy in nats per layer and how many tokens it is summed over, row by row through the plain model."""
    plain = PlainProxy(config, load_checkpoint(weights).part("model"))
    rows, nats, tokens = [[0] * config.n_experts for _ in range(config.n_layers)], [0.0] * config.n_layers, 0
    for tokens_BS, counts_BT in evaluation.batches("end"):
        for tokens_S, counts_T in zip(tokens_BS, counts_BT, strict=True):
            length = int(np.flatnonzero(counts_T)[-1]) + 1
            with torch.no_grad():
                plain.loss(torch.from_numpy(tokens_S[None, : length + 1]))
            for time in np.flatnonzero(counts_T[:length]).tolist():
                tokens += 1
                for layer in range(config.n_layers):
                    for expert in plain.chosen[layer][0, time].tolist():
                        rows[layer][expert] += 1
                    scores = plain.scores[layer][0, time].double()
                    nats[layer] -= float((scores * scores.log()).sum())
    return rows, nats, tokens


@pytest.mark.parametrize("step_type", ["cpu", "device"])
def test_load_and_entropy_on_held_out_sets_equal_a_count(corpus: Path, tmp_path: Path, step_type: str) -> None:
    """Of text every token, of pairs the completions: a domain of pairs has its experts, too."""
    outcomes = trained(corpus, tmp_path, "abc", places=2, step_type=STEP_TYPES[step_type])
    text, pairs = (EvaluationSet(spec, WINDOW) for spec in sets(corpus))
    for name in "abc":
        counts = {one.spec.key: by_hand(tmp_path / name / WEIGHTS_NAME, CONFIG, one) for one in (text, pairs)}
        counted = balance(outcomes[name])
        assert counted["rows_by_set"] == {key: rows for key, (rows, _, _) in counts.items()}, "padding and prompts left out"
        assert [tokens for _, _, tokens in counts.values()] == [text.rows("end").lengths.sum(), 40 * 7]
        totals = [sum(nats[layer] for _, nats, _ in counts.values()) for layer in range(2)]
        entropy = [nats / sum(tokens for _, _, tokens in counts.values()) / math.log(8) for nats in totals]
        assert counted["entropy"] == pytest.approx(entropy, abs=1e-5)
        assert 0 < min(entropy) < max(entropy) < 1
        for score in score_weights(CONFIG, tmp_path / name / WEIGHTS_NAME, sets(corpus), WINDOW):
            assert score.routed is not None
            assert [list(rows_E) for rows_E in score.routed.rows_LE] == counts[score.key][0]


def test_points_before_the_end_are_not_watched(corpus: Path) -> None:
    from proxy_models.model import PackedProxy

    model = PackedProxy(CONFIG, [0])
    assert evaluate(model, [EvaluationSet(sets(corpus)[0], WINDOW)], "curve")[0][0].routed is None
    assert all(moe.watch is None for moe in model.moe_layers)


def test_a_dense_proxy_has_nothing_to_balance(corpus: Path, tmp_path: Path) -> None:
    outcome = trained(corpus, tmp_path, "a", replace(CONFIG, n_experts=0, top_k=0, n_shared_experts=3))["a"]
    assert isinstance(outcome, MemberResult)
    assert "balance" not in outcome.diagnostics


def test_a_member_with_a_balancing_loss_does_not_depend_on_its_company(corpus: Path, tmp_path: Path) -> None:
    """Nor does what it reports of its experts; its losses are near those without, for they do not hold the balancing loss."""
    config = replace(CONFIG, auxiliary_loss=0.05, bias_update_rate=0.0)
    alone = trained(corpus, tmp_path / "alone", "a", config)["a"]
    together = trained(corpus, tmp_path / "together", "cba", config, places=2)["a"]
    assert isinstance(alone, MemberResult)
    assert isinstance(together, MemberResult)
    assert replace(alone, seconds=0.0) == replace(together, seconds=0.0)
    one, other = (load_checkpoint(tmp_path / name / "a" / WEIGHTS_NAME).tensors for name in ("alone", "together"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not bool(one["model.layers.0.moe.router_bias"].any())
    usual = trained(corpus, tmp_path / "usual", "a")["a"]
    assert isinstance(usual, MemberResult)
    assert alone.diagnostics["training_loss"][0] == usual.diagnostics["training_loss"][0], "the first step is reported as without"
    assert alone.diagnostics["training_loss"][-1] != usual.diagnostics["training_loss"][-1]
