"""The table of sizes: numbers of the code it describes, speeds with their source, and settings that do not fit refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from mixopt.cost import Machine, Shape
from mixopt.errors import ConfigError
from mixopt.experiment_file import parse_experiment
from mixopt.progress import Silent
from proxy_models.config import RULES, SIZES, proxy_config
from workers.memory import member_memory, pack_memory_bytes
from workers.planning.sizes import Circumstances, circumstances, describe_sizes
from workers.planning.speed import ASSUMED_FLOPS_PER_SECOND

HERE = Machine("this machine", "cpu", 2, 16e9, None)
AROUND = Circumstances(4096, 256, 1024, HERE)


def test_every_size_is_described_by_its_own_numbers() -> None:
    table = describe_sizes(AROUND, False, Silent())
    assert tuple(row.size for row in table.rows) == SIZES
    for row in table.rows:
        config = proxy_config(row.size, 4096)
        counts = config.parameters()
        assert (row.width, row.layers, row.routed_experts, row.active_experts) == (
            config.d_model,
            config.n_layers,
            config.n_experts,
            config.top_k,
        )
        assert (row.total_parameters, row.active_parameters, row.embedding_parameters) == (counts.total, counts.active, counts.embedding)
        assert row.flops_per_token == config.training_flops_per_token(256)
        assert row.member_bytes == member_memory(config, 256, 1024).peak
        assert row.pack_bytes == pack_memory_bytes(config, 256, 1024, row.pack_size)
        assert row.speed.origin == "assumed"
        assert row.tokens_per_second * row.flops_per_token == pytest.approx(ASSUMED_FLOPS_PER_SECOND)
    body = json.loads(json.dumps(table.to_json()))
    assert [row["size"] for row in body["sizes"]] == list(SIZES)
    assert len(body["rules"]) == len(RULES)
    assert all(rule["source"] for rule in body["rules"])


def test_a_speed_says_where_it_comes_from(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def probe_speed(shapes: dict[Shape, int], slots: int, device: str, reporter: object) -> dict[Shape, tuple[float, float]]:
        asked.extend(shape.size for shape in shapes)
        assert slots == 2
        return {shape: (3e9, 2.0) for shape in shapes if shape.size != "small"}

    monkeypatch.setattr("workers.planning.probe.probe_speed", probe_speed)
    around = dataclasses.replace(AROUND, recorded={Shape("nano", 4096, 256, 1024): (7e9, 12)})
    table = describe_sizes(around, True, Silent())
    rows = {row.size: row for row in table.rows}
    assert any("large" in note and "was not measured" in note for note in table.around.notes)
    assert "nano" not in asked, "the record knows it"
    assert asked[:2] == ["nano-dense", "micro-dense"], "the cheapest first"
    assert "large" not in asked, "even a window of it would take too long"
    assert (rows["nano"].speed.origin, rows["nano"].speed.flops_per_second) == ("record", 7e9)
    assert (rows["micro"].speed.origin, rows["small"].speed.origin, rows["large"].speed.origin) == ("probe", "scaled", "scaled")
    assert rows["micro"].tokens_per_second == pytest.approx(3e9 / rows["micro"].flops_per_token)


def experiment_file(folder: Path, **proxy: object) -> dict[str, object]:
    for name in ("web", "code"):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": f"{name} {number} " * 50}) + "\n" for number in range(100)))
    return {
        "name": "sizes",
        "output": "run",
        "budget_tokens": "1B",
        "domains": [{"name": name, "path": f"{name}.jsonl", "tokens": "1B"} for name in ("web", "code")],
        "tokenizer": {"vocab_size": 1024},
        "proxy": {"tokens": 8192, "window": 64, "tokens_per_step": 128, **proxy},
        "ray": {"address": "in-process", "pack_size": 3},
    }


def test_circumstances_are_those_of_the_experiment_unless_they_are_given(tmp_path: Path) -> None:
    experiment = parse_experiment(experiment_file(tmp_path), tmp_path)
    around = circumstances(experiment)
    assert (around.vocab_size, around.window, around.tokens_per_step, around.pack_size) == (1024, 64, 128, 3)
    assert (around.machine.slots, around.recorded) == (1, {})
    given = circumstances(experiment, vocab_size=512, window=32, tokens_per_step=96)
    assert (given.vocab_size, given.window, given.tokens_per_step) == (512, 32, 96)
    plain = circumstances(None)
    assert (plain.vocab_size, plain.window, plain.tokens_per_step, plain.pack_size) == (8192, 512, 1024, None)


def test_steps_that_are_no_whole_windows_are_refused() -> None:
    with pytest.raises(ConfigError, match="1000 is not a multiple of the window, 512"):
        circumstances(None, tokens_per_step=1000)


def test_in_mup_every_size_has_the_rate_of_the_base_and_tensors_have_rules() -> None:
    table = describe_sizes(circumstances(None, 4096, parametrization="mup"), False, Silent())
    assert {row.learning_rate for row in table.rows} == {3e-3}
    body = json.loads(json.dumps(table.to_json()))
    assert body["parametrization"] == "mup"
    assert {name for rule in body["tensor_rules"] for name in rule["tensors"]} >= {"embedding", "router", "expert_in", "expert_out", "norm"}
    standard = describe_sizes(AROUND, False, Silent())
    assert standard.to_json()["tensor_rules"] == []
    assert len({row.learning_rate for row in standard.rows}) == 5
    with pytest.raises(ConfigError, match="no parametrization 'ntk'"):
        circumstances(None, parametrization="ntk")
