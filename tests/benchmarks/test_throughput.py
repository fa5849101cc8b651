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
def measure(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from speed import measure

    yield measure
    for name in [name for name in sys.modules if name == "speed" or name.startswith("speed.")]:
        del sys.modules[name]


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
