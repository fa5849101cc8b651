"""The benchmark of learning rates: best rates by hand, runs that are kept, and what its committed results say."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mixopt.corpus.manifest import DomainFiles, Manifest, TokenFile
from proxy_models.config import default_learning_rate
from proxy_models.token_store import TokenWriter

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "learning_rates.json"
GRID = (1e-3, 2e-3, 4e-3, 8e-3)


def rows_around(module: Any, size: str, parametrization: str, best: float, seed: int = 100, worst: float | None = None) -> list[Any]:
    """Losses on a parabola in log rate; at `worst` the proxy diverged."""
    losses = {rate: 5 + math.log(rate / best) ** 2 for rate in GRID}
    return [
        module.Row("text", size, parametrization, 1024, rate, seed, None if rate == worst else loss, 1.0) for rate, loss in losses.items()
    ]


def test_the_best_rate_is_the_least_point_of_the_parabola_and_its_interval_that_of_the_seeds(benchmark_module: Any) -> None:
    module = benchmark_module("learning_rates")
    rows = rows_around(module, "micro", "mup", 2.2e-3, worst=8e-3) + rows_around(module, "micro", "mup", 2.7e-3, seed=101)
    (best,) = module.bests(rows)
    assert (best.size, best.parametrization, best.lowest, best.seeds) == ("micro", "mup", 2e-3, 2)
    assert [best.low, best.high] == pytest.approx([2.2e-3, 2.7e-3])
    assert best.rate == pytest.approx(math.sqrt(2.2e-3 * 2.7e-3))  # of the mean of two parabolas of equal width


def test_the_base_serves_both_parametrizations_and_an_end_of_the_grid_is_no_best_rate(
    benchmark_module: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    module = benchmark_module("learning_rates")
    rows = [
        *rows_around(module, "nano", "standard", 3e-3),
        *rows_around(module, "small", "standard", 5e-4),
        *rows_around(module, "micro", "mup", 3.3e-3),
        *rows_around(module, "small", "mup", 4.5e-3),
    ]
    by_name = {(best.size, best.parametrization): best.rate for best in module.bests(rows)}
    assert by_name[("nano", "mup")] == by_name[("nano", "standard")] == pytest.approx(3e-3)
    assert by_name[("small", "standard")] is None
    assert by_name[("small", "mup")] == pytest.approx(4.5e-3)
    module.print_results(rows)
    told = capsys.readouterr().out
    assert "lowest at an end of its grid, 0.001" in told
    assert "mup: the best rates of 3 sizes lie within a factor 1.50, within 2." in told


def test_a_seed_counts_where_it_has_the_three_rates(benchmark_module: Any) -> None:
    module = benchmark_module("learning_rates")
    whole = rows_around(module, "nano", "standard", 3e-3)
    second = [row for row in rows_around(module, "nano", "standard", 2.6e-3, seed=101) if row.rate < 5e-3]
    assert {row.rate for row in second} == {1e-3, 2e-3, 4e-3}
    best = module.bests(whole + second)[0]
    assert (best.lowest, best.seeds) == (2e-3, 2)
    assert [best.low, best.high] == pytest.approx([2.6e-3, 3e-3])
    best = module.bests(whole + second[1:2])[0]
    assert (best.seeds, best.rate) == (1, pytest.approx(3e-3))


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    folder = tmp_path / "text" / "tokens"
    folder.mkdir(parents=True)

    def write(name: str, seed: int) -> TokenFile:
        with TokenWriter(folder / name, 64, "tok") as writer:
            generator = np.random.default_rng(seed)
            for _ in range(12):
                writer.add([*(generator.integers(1, 9, 600)), 0], text_bytes=1200, scored_from=0)
            writer.close(name)
        return TokenFile(name, name, 12 * 601, 12 * 1200, 12)

    domains = {name: DomainFiles(write(f"{name}.train", seed), write(f"{name}.valid", seed + 10)) for seed, name in enumerate("ab")}
    Manifest(folder, "tokenizer.json", "hash", 64, domains, {}).save()
    return folder


def test_what_is_trained_is_kept_and_not_trained_again(
    benchmark_module: Any, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = benchmark_module("learning_rates")
    keep = tmp_path / "keep"
    job = module.Job(str(prepared), "text", str(keep), "nano", "standard", 8192, 100, (1e-3, 1e-2))
    module.train(job)
    rows = module.kept(keep)
    assert [(row.rate, row.seed, row.tokens) for row in rows] == [(1e-3, 100, 8192), (1e-2, 100, 8192)]
    assert math.log(8) < rows[1].loss_nats < rows[0].loss_nats < math.log(64) + 0.2
    assert sorted(path.suffix for path in job.path(1e-3).parent.iterdir()) == [".json", ".json"]  # no weights, no checkpoints
    monkeypatch.setattr(module.subprocess, "Popen", lambda *_, **__: pytest.fail("trained twice"))
    options = ["--prepared", str(prepared), "--keep", str(keep), "--sizes", "nano", "--rates", "1e-3", "1e-2", "--seeds", "1"]
    assert module.main([*options, "--tokens", "8192", "--json", str(tmp_path / "rows.json")]) == 0
    assert len(json.loads((tmp_path / "rows.json").read_text())) == 2
    printed = capsys.readouterr().out
    for place in (tmp_path / "rows.json", keep):
        assert module.main(["--show", str(place)]) == 0
        assert capsys.readouterr().out == printed


def test_a_slip_is_told_in_a_sentence(benchmark_module: Any, capsys: pytest.CaptureFixture[str]) -> None:
    module = benchmark_module("learning_rates")
    for arguments, message in (
        (["--sizes", "giant"], "Unknown size giant; known sizes: nano"),
        (["--rates", "0"], "Rates are above 0"),
        (["--tokens", "100"], "--tokens 100 are fewer than 8 steps"),
        (["--json", "."], "--json . is a folder."),
        (["--show", "nowhere.json"], "There is no nowhere.json."),
    ):
        assert module.main(arguments) == 2
        assert message in capsys.readouterr().err


def test_what_was_measured_bears_out_the_default_rates(benchmark_module: Any) -> None:
    """Within the factor of two that is asked of a transfer, for every size that has a best rate."""
    module = benchmark_module("learning_rates")
    found = [best for best in module.bests([module.Row(**row) for row in json.loads(RESULTS.read_text())]) if best.rate is not None]
    assert {(best.size, best.parametrization) for best in found} >= {
        (size, kind) for size in ("nano", "micro", "small") for kind in ("standard", "mup")
    }
    for best in found:
        assert 0.5 < default_learning_rate(best.size, best.parametrization) / best.rate < 2, best
