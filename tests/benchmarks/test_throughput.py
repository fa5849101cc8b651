"""The benchmark of throughput: it runs, its rows are whole, and its ratios are those of its numbers."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from proxy_models.config import proxy_config
from workers.memory import pack_memory_bytes

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"
ASKED = {"size", "tokens_per_step", "members", "implementation", "tokens_per_second", "share_of_peak", "ratio_to_transformers", "device"}
TINY = ["--sizes", "nano", "--tokens", "64", "--windows", "32", "--vocab", "256", "--corpus-tokens", "2048"]
TINY += ["--members", "2", "--repeats", "1", "--seconds", "0.05", "--cores", "1"]


def run_benchmark(tmp_path: Path, *arguments: str) -> tuple[list[dict[str, Any]], str]:
    path = tmp_path / "rows.json"
    command = [sys.executable, str(BENCHMARKS / "throughput.py"), *TINY, *arguments, "--json", str(path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=500, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return json.loads(path.read_text()), ended.stdout


@pytest.mark.slow
def test_packs_and_the_data_path_are_measured(tmp_path: Path) -> None:
    rows, printed = run_benchmark(tmp_path, "--implementations", "mixopt", "data path")
    assert [(row["implementation"], row["size"], row["members"]) for row in rows] == [
        ("mixopt", "nano", 2),
        ("data path", "nano", 2),
        ("data path", "micro", 64),
    ]
    assert all(row.keys() >= ASKED and row["error"] is None and row["tokens_per_second"] > 0 for row in rows)
    assert 0 < rows[0]["share_of_peak"] < 1.5
    assert rows[0]["loss_steps"] >= 2
    assert rows[0]["first_loss_nats"] == pytest.approx(5.55, abs=0.2)  # log 256
    assert rows[1]["times_training"] == pytest.approx(rows[1]["tokens_per_cpu_second"] / rows[0]["tokens_per_cpu_second"])
    assert "about 0 minutes" in printed
    assert "not yet measured" in printed


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="transformers, the extra 'bench', is not installed")
def test_transformers_is_measured(tmp_path: Path) -> None:
    rows, _ = run_benchmark(tmp_path, "--implementations", "transformers")
    names = ["transformers", "transformers, default allocator", "transformers, fused AdamW"]
    assert [row["implementation"] for row in rows][:3] == names  # a fourth where torch's own choice of a library is not the fastest
    assert all(row["error"] is None and row["tokens_per_second"] > 0 for row in rows)
    assert rows[0]["ratio_to_transformers"] == 1.0
    # The same weights in the same order of data: how memory is allocated changes nothing, the fused optimizer almost nothing.
    assert rows[0]["loss_nats"] == rows[1]["loss_nats"]
    assert rows[0]["loss_nats"] == pytest.approx(rows[2]["loss_nats"], abs=0.05)


@pytest.fixture
def measure(benchmark_module: Any) -> Any:
    return benchmark_module("speed.measure")


def test_rows_are_medians_and_ranges_of_rounds(measure: Any) -> None:
    shape = measure.Shape("nano", 128, 1024, 8192)
    bench = measure.Bench(ROOT, [], "cpu", 3, 1.0, 2, 1 << 20)

    def running(name: str, kind: str, members: int, rates: list[float], losses: list[float] | None = None) -> Any:
        one = measure.Running(measure.Line(name, kind, members, ROOT))
        stretches = [measure.Stretch(tokens=int(1000 * rate), steps=4, wall_seconds=1000.0, cpu_seconds=500.0) for rate in rates]
        one.rounds = {1: {number: [stretch] for number, stretch in enumerate(stretches)}}
        one.last_words = {"losses_nats": [losses] * members} if losses else {}
        return one

    broken = measure.Running(measure.Line("mixopt", "mixopt", 16, ROOT), error="left out: too long")
    lines = [
        running("mixopt", "mixopt", 1, [100.0, 120.0, 110.0], [9.0, 8.0, 7.0]),
        running("mixopt", "mixopt", 4, [200.0, 300.0, 220.0], [9.0, 8.5]),
        broken,
        running("transformers", "transformers", 1, [50.0, 100.0, 55.0], [9.1, 8.1, 7.1]),
        running("data path", "data path", 4, [2000.0, 3000.0, 4000.0]),
    ]
    peak = shape.flops_per_token * 800
    alone, pack, failed, reference, data = measure.rows_of(bench, shape, lines, dict.fromkeys(range(3), peak))
    assert (alone.tokens_per_second, alone.tokens_per_second_min, alone.tokens_per_second_max) == (110.0, 100.0, 120.0)
    assert alone.tokens_per_cpu_second == 220.0
    assert alone.share_of_peak == pytest.approx(220 / 800)
    assert (pack.ratio_to_transformers, pack.ratio_to_transformers_min, pack.ratio_to_transformers_max) == (4.0, 3.0, 4.0)
    assert pack.ratio_to_one_member == 2.0
    assert reference.ratio_to_transformers == 1.0
    assert (failed.error, failed.tokens_per_second) == ("left out: too long", None)
    assert data.times_training == pytest.approx(3000 / 220)
    assert data.share_of_peak is None
    # Losses are compared after as many steps as the shortest run took.
    assert [(row.loss_steps, row.first_loss_nats, row.loss_nats) for row in (alone, pack)] == [(2, 9.0, 8.0), (2, 9.0, 8.5)]


def test_a_process_that_dies_costs_its_own_line_only(measure: Any, tmp_path: Path) -> None:
    from speed.corpus import write_corpus

    domains = write_corpus(tmp_path, 256, tokens=2048)
    bench = measure.Bench(ROOT, domains, "cpu", 1, 0.05, 1, 2048)
    shape = measure.Shape("nano", 32, 64, 256)
    lines = [measure.Line("data path", "data path", 1, ROOT), measure.Line("nothing", "no such kind", 1, ROOT)]
    working, dead = measure.measure_shape(bench, shape, lines, 1e11)
    assert working.error is None
    assert working.tokens_per_second > 0
    assert "no such kind" in dead.error
    assert dead.tokens_per_second is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sizes", "nano", "giant"], "Unknown size giant; known sizes: nano"),
        (["--device", "tpu"], "--device is cpu, cuda or cuda:N, not tpu."),
        (["--device", "cuda:99"], "No GPU cuda:99 is here: what is asked of an H200 is not yet measured."),
        (["--engine", "."], "holds no proxy_models; --engine is the root of a checkout."),
        (["--members", "4", "0"], "are at least 1."),
        (["--seconds", "0"], "--seconds is more than 0."),
        (["--json", "."], "--json . is a folder."),
        (["--json", "file/rows.json"], "--json file/rows.json cannot be written ("),
        (["--tokens", "100", "--windows", "64"], "a step holds whole windows"),
        (["--implementations", "nothing"], "--implementations names what lines begin with"),
    ],
)
def test_a_slip_is_told_in_a_sentence_before_anything_is_measured(
    benchmark_module: Any,
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    throughput = benchmark_module("throughput")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setattr(throughput, "Bench", None)  # whoever measures fails
    assert throughput.main(arguments) == 2
    assert message in capsys.readouterr().err


def test_a_shape_that_fails_is_told_by_the_exit_code(
    benchmark_module: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    throughput = benchmark_module("throughput")
    row = benchmark_module("speed.table").Row("nano", 32, 64, 256, 2, "mixopt", "workers", 1, "cpu")

    def measure_shape(bench: Any, shape: Any, lines: Any, peak: float) -> list[Any]:
        if shape.tokens_per_step == 128:
            raise throughput.ProcessError("the peak ended")
        return [row]

    monkeypatch.setattr(throughput.Bench, "peak", lambda bench: 1e11)
    monkeypatch.setattr(throughput, "measure_shape", measure_shape)
    arguments = [*TINY, "--implementations", "mixopt", "--json", str(tmp_path / "rows.json")]
    assert throughput.main(arguments) == 0
    assert throughput.main([*arguments, "--tokens", "64", "128"]) == 1
    assert "the peak ended" in capsys.readouterr().err
    assert len(json.loads((tmp_path / "rows.json").read_text())) == 1, "what the other shape measured is kept"


def test_what_is_asked_of_a_gpu_is_compared_in_one_shape(benchmark_module: Any) -> None:
    table = benchmark_module("speed.table")

    def row(name: str, members: int, window: int, rate: float | None) -> Any:
        return table.Row("micro", window, 1024, 8192, members, name, "workers", 1, "cuda", tokens_per_second=rate)

    rows = [row("mixopt", 64, 128, 9e6), row("transformers", 1, 128, 3e5), row("mixopt", 64, 512, 8e6), row("transformers", 1, 512, 2e5)]
    assert table._gpu_ratio(rows, "transformers") == "measured 30.00"
    assert table._gpu_ratio([rows[0].with_values(tokens_per_second=None), *rows[1:]], "transformers") == "not yet measured"


def test_memory_of_a_pack_is_the_planners(benchmark_module: Any) -> None:
    plan = benchmark_module("speed.plan")
    shape = plan.Shape("small", 128, 1024, 8192)
    pack = pack_memory_bytes(proxy_config("small", 8192), 128, 1024, 16)
    assert plan.Line("mixopt", "mixopt", 16, ROOT, processes=(1, 2)).memory_bytes(shape) == 2 * pack
    logits = 1024 * 8192 * 4
    assert plan.Line("transformers", "transformers", 1, ROOT).memory_bytes(shape) > 5 * logits
