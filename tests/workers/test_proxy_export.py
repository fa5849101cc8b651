"""A trained proxy as a folder: what is in it, that it loads as it is, and what is refused."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import re
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import workers.proxy_export
from mixopt.corpus.manifest import Manifest
from mixopt.corpus.tokenizer import PROBE, CorpusTokenizer, load_tokenizer, train_tokenizer
from mixopt.errors import ConfigError, DataError, RunError
from mixopt.history import TrialRecord
from mixopt.mixture import Mixture, Schedule
from mixopt.proxy_config import ProxyConfig as ProxySettings
from mixopt.runner import Evaluation
from mixopt.trial import Source, Trial, TrialDomain, TrialState, trial_identity
from proxy_models.checkpoint import load_checkpoint
from proxy_models.config import proxy_config
from proxy_models.model import PackedProxy
from proxy_models.token_store import TokenWriter
from workers.control import DriverControl
from workers.convert import proxy_of, recipe_for
from workers.proxy_card import model_card
from workers.proxy_comparison import Comparison, compare
from workers.proxy_export import check_format, export_proxy
from workers.train_pack import PackJob, run_pack
from workers.trial_folder import TrialFolder

with_transformers = pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="transformers is not installed")
SOURCE = Source("trained", "nano", 4096)
TEXTS = [f"def f{number}(x):\n    return x * {number}  # naïve 数据 🚀\n" for number in range(200)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrialRecord]:
    """An output folder with one nano proxy, trained for 32 steps, its tokenizer and its manifest."""
    store = tmp_path_factory.mktemp("output")
    train_tokenizer(TEXTS, 320, store / "tokens" / "tokenizer.json")
    tokenizer = load_tokenizer(store / "tokens" / "tokenizer.json")
    Manifest(store / "tokens", "tokenizer.json", tokenizer.hash, tokenizer.vocab_size, {}, {}).save()
    path = store / "tokens" / "a.tokens"
    with TokenWriter(path, tokenizer.vocab_size, tokenizer.hash) as writer:
        for text in TEXTS:
            writer.add([*tokenizer.encode_batch([text])[0], tokenizer.end_id], text_bytes=len(text.encode()))
        writer.close("content-a")
    trial = _trial(tokenizer)
    control = DriverControl(store / "control")
    evaluation = Evaluation("key", "valid/a", "text", path, 64)
    (result,) = run_pack(PackJob("pack", store, control.folder, (trial,), {"content-a": path}, (evaluation,)))
    assert result.outcome is not None
    return store, TrialRecord(trial, "search", 0, TrialState.COMPLETED, 0, result.outcome, None, datetime.now(UTC))


def _trial(tokenizer: CorpusTokenizer) -> Trial:
    settings = ProxySettings(window=64, tokens_per_step=128, tokens=SOURCE.tokens)
    recipe = recipe_for(settings, "nano", tokenizer.vocab_size)
    schedule = Schedule.constant(Mixture(("a|b",), (1.0,)))
    domains = (TrialDomain("a|b", "content-a", 2048),)
    identity = trial_identity(schedule, SOURCE, 0, recipe, domains, tokenizer.hash, "1")
    return Trial(identity, schedule, SOURCE, 0, recipe, domains, tokenizer.hash, "1", "natural")


@pytest.fixture
def export(trained: tuple[Path, TrialRecord], tmp_path: Path) -> Callable[..., Any]:
    def run(target: Path = tmp_path / "proxy", record: TrialRecord | None = None, store: Path | None = None, **options: Any) -> Any:
        return export_proxy(store or trained[0], record or trained[1], target, {"key": "valid/a"}, "natural", **options)

    return run


@with_transformers
def test_the_folder_loads_as_it_is_and_writes_and_reads_as_the_proxy(export: Callable[..., Any], trained: tuple[Path, TrialRecord]) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    exported = export()
    assert exported.new
    assert "differ from the proxy's by at most" in exported.note
    names = {
        "README.md",
        "config.json",
        "generation_config.json",
        "mixopt.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert {path.name for path in exported.folder.iterdir()} == names
    assert [path.name for path in exported.folder.parent.iterdir()] == [exported.folder.name], "nothing is left beside it"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(exported.folder), AutoTokenizer.from_pretrained(exported.folder)
    own = load_tokenizer(trained[0] / "tokens" / "tokenizer.json")
    for text in (PROBE, TEXTS[3], "<|end|>"):
        ids = tokenizer(text)["input_ids"]
        assert ids == own.encode_batch([text])[0]
        assert tokenizer.decode(ids) == text
    assert tokenizer.eos_token_id == tokenizer.bos_token_id == model.config.eos_token_id == own.end_id
    store, record = trained
    pack = PackedProxy(proxy_config("nano", own.vocab_size), [0])
    pack.load_member_state(0, load_checkpoint(TrialFolder(store, record.trial.trial_id).weights_path).part("model"))
    ids_BT = torch.tensor([own.encode_batch([TEXTS[5]])[0]])
    with torch.no_grad():
        assert float((model(ids_BT).logits - pack.logits(ids_BT[None])[0]).abs().max()) < 1e-4


@with_transformers
def test_the_code_on_the_card_runs_and_the_card_says_what_it_is(export: Callable[..., Any], trained: tuple[Path, TrialRecord]) -> None:
    folder = export(verify=False).folder
    card = (folder / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    with contextlib.redirect_stdout(io.StringIO()) as output:
        exec(code.replace("PATH OF THIS FOLDER", str(folder)), {})
    assert output.getvalue().startswith("The")
    trial, outcome = trained[1].trial, trained[1].outcome
    assert outcome is not None
    end = next(m for m in outcome.measurements if m.tokens == outcome.tokens)
    for words in (
        trial.trial_id,
        trial.tokenizer_hash,
        f"| valid/a | {end.bits_per_byte:.4f} | {end.loss_nats:.4f} |",
        "a\\|b | 100.00%",
        "have not been compared",
    ):
        assert words in card
    facts = json.loads((folder / "mixopt.json").read_text())
    assert (facts["trial"]["trial_id"], facts["outcome"]["tokens"]) == (trial.trial_id, 4096)


@pytest.mark.parametrize(
    ("beginning", "says"),
    [
        ({"kind": "continued"}, " tokens, after those of trial `parent-id`, whose weights it began with, to rank"),
        (
            {"kind": "upcycled", "reinitialized": 0.5},
            "made of the dense layers of trial `parent-id` (50% of their hidden units drawn anew), to",
        ),
    ],
)
def test_the_card_says_what_a_proxy_began_with(trained: tuple[Path, TrialRecord], beginning: dict[str, Any], says: str) -> None:
    record = trained[1]
    card = _card(record)
    assert "after" not in card.split("## Where")[0]
    begun = replace(record.trial, recipe={**record.trial.recipe, "beginning": beginning}, inputs=("parent-id",))
    card = _card(replace(record, trial=begun))
    assert says in card
    assert "{'kind'" not in card


def test_the_card_says_what_was_scored_where_there_were_prompts(trained: tuple[Path, TrialRecord]) -> None:
    record = trained[1]
    assert record.outcome is not None
    assert "Prompts" not in _card(record)
    diagnostics = {**record.outcome.diagnostics, "scored_tokens": {"content-a": 1000, "content-b": 24}}
    card = _card(replace(record, outcome=replace(record.outcome, diagnostics=diagnostics)))
    assert "- Prompts were seen and not learned: the loss was taken on 1,024 of 4,096 tokens.\n" in card


def test_the_card_says_that_the_router_has_collapsed(trained: tuple[Path, TrialRecord]) -> None:
    record = trained[1]
    assert record.outcome is not None
    diagnostics = record.outcome.diagnostics
    even, fallen = ({"balance": {**diagnostics["balance"], "recent_rows": [rows]}} for rows in ([100] * 8, [400, 400, 0, 0, 0, 0, 0, 0]))
    cards = [_card(replace(record, outcome=replace(record.outcome, diagnostics={**diagnostics, **rows}))) for rows in (even, fallen)]
    assert "router" not in cards[0]
    assert "- Its router has collapsed (layer 1: 6 of 8 experts dead, one expert sees 100% of the tokens)" in cards[1]


def _card(record: TrialRecord) -> str:
    return model_card(record, proxy_of(record.trial), {"key": "valid/a"}, "natural", True, "Compared.")


def test_the_same_again_changes_nothing_and_what_is_there_is_kept(export: Callable[..., Any], tmp_path: Path) -> None:
    folder = export(verify=False).folder
    before = (folder / "mixopt.json").stat().st_mtime_ns
    again = export(verify=False)
    assert not again.new
    assert (folder / "mixopt.json").stat().st_mtime_ns == before
    with pytest.raises(ConfigError, match="holds something else"):
        export(verify=False, with_tokenizer=False)
    (tmp_path / "mine").mkdir()
    assert export(tmp_path / "mine", verify=False).new, "an empty folder is taken"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("years")
    with pytest.raises(ConfigError, match="holds something else"):
        export(tmp_path / "other")
    with pytest.raises(ConfigError, match="is a file"):
        export(tmp_path / "other" / "thesis.txt")
    assert (tmp_path / "other" / "thesis.txt").read_text() == "years"


@with_transformers
def test_a_folder_that_is_there_is_compared_when_that_is_asked_for(export: Callable[..., Any]) -> None:
    folder = export(verify=False).folder
    again = export(verify=True)
    assert not again.new
    assert "differ from the proxy's by at most" in again.note
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.1}))
    with pytest.raises(DataError, match=r"no longer the proxy.*Remove that folder"):
        export(verify=True)
    (folder / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(DataError, match=r"cannot be loaded.*Remove that folder"):
        export(verify=True)


def test_a_place_that_cannot_be_written_is_told(export: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot be written.*--out"):
        export(tmp_path / "file" / "proxy", verify=False)


def test_without_its_tokenizer(export: Callable[..., Any], trained: tuple[Path, TrialRecord], tmp_path: Path) -> None:
    folder = export(with_tokenizer=False, verify=False).folder
    assert not {"tokenizer.json", "generation_config.json"} & {path.name for path in folder.iterdir()}
    assert "The tokenizer is not in this folder" in (folder / "README.md").read_text()
    assert json.loads((folder / "config.json").read_text())["eos_token_id"] is None
    stranger = replace(trained[1], trial=replace(trained[1].trial, tokenizer_hash="0" * 64))
    with pytest.raises(DataError, match=r"not the tokenizer.*--no-tokenizer"):
        export(tmp_path / "stranger", stranger)


def test_weights_that_are_gone_damaged_or_of_another_shape_are_told(
    export: Callable[..., Any], trained: tuple[Path, TrialRecord], tmp_path: Path
) -> None:
    store, record = trained
    with pytest.raises(DataError, match=r"weights of trial .* are gone"):
        export(store=tmp_path / "empty")
    other = TrialFolder(tmp_path / "other", record.trial.trial_id)
    other.path.mkdir(parents=True)
    weights = TrialFolder(store, record.trial.trial_id).weights_path.read_bytes()
    other.weights_path.write_bytes(weights[:-100])
    with pytest.raises(DataError, match="cannot be used"):
        export(store=tmp_path / "other", with_tokenizer=False)
    other.weights_path.write_bytes(weights)
    larger = replace(record, trial=replace(record.trial, source=Source("trained", "micro", 4096)))
    with pytest.raises(DataError, match="cannot be used"):
        export(record=larger, store=tmp_path / "other", with_tokenizer=False)
    assert not (tmp_path / "proxy").exists()


@with_transformers
def test_a_folder_that_gives_other_logits_never_gets_its_name(
    export: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import proxy_models.transformers_layout as layout

    monkeypatch.setattr(
        layout, "_feed_forward", lambda place, *matrices, ours=layout._feed_forward: ours(place, matrices[0].flip(1), matrices[1])
    )
    with pytest.raises(RunError, match="not the same model"):
        export()
    assert list(tmp_path.iterdir()) == []


def test_where_transformers_is_not_installed(export: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers.proxy_export, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"--verify needs.*pip install"):
        export(verify=True)
    exported = export()
    assert "pip install" in exported.note
    assert (exported.folder / "model.safetensors").exists()


def test_other_formats_are_told_the_nearest() -> None:
    check_format("transformers")
    with pytest.raises(ConfigError, match="Did you mean 'transformers'"):
        check_format("transformer")
    with pytest.raises(ConfigError, match="`mixopt export`"):
        check_format("megatron")


@with_transformers
def test_tokens_behind_a_tie_of_two_experts_are_not_compared(tmp_path: Path) -> None:
    """Without a router all experts are tied: nothing can be compared, and that is no equality."""
    from safetensors.torch import save_file

    from proxy_models.transformers_layout import transformers_layout

    config = proxy_config("nano", 64)
    state = PackedProxy(config, [0]).member_state(0)
    decided = {**state}
    state["layers.0.moe.router"] = torch.zeros_like(state["layers.0.moe.router"])
    results = []
    for number, weights in enumerate((decided, state)):
        architecture, tensors = transformers_layout(config, weights, 16, None)
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(architecture))
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        results.append(compare(folder, config, weights, 16))
    assert results[0].equal
    assert (results[0].compared + results[0].tied, results[1].compared) == (64, 0)
    assert not results[1].equal
    assert np.isnan(results[1].difference)


def test_what_counts_as_equal_grows_with_logits() -> None:
    assert Comparison(9e-5, 5.0, 10, 0, "5").equal
    assert not Comparison(1.1e-4, 5.0, 10, 0, "5").equal
    assert Comparison(1.9e-4, 20.0, 10, 0, "5").equal
    assert "3 behind a tie" in Comparison(9e-5, 5.0, 10, 3, "5").sentence
