"""The benchmark of epoch matching: a known optimum is found, regret is what it says, and arms may see what they are said to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from mixopt.corpus.manifest import DomainFiles, Manifest, TokenFile
from mixopt.mixture import FloatArray

Load = Callable[[str], ModuleType]
GRID = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8)


def known_losses(weights: FloatArray, best: float) -> FloatArray:
    """Logarithmic laws, shape (n, 2), whose mean is least at `best`: its slope there is -best / w + (1 - best) / (1 - w)."""
    return np.stack([2.0 - best * np.log(weights), 2.5 - (1 - best) * np.log(1 - weights)], axis=1)


@pytest.mark.parametrize("best", [0.06, 0.15, 0.4])
def test_a_known_optimum_is_found_through_noise(best: float, benchmark_module: Load) -> None:
    optimum = benchmark_module("repetition.optimum")
    weights = np.tile(GRID, 3)
    noise = np.random.default_rng(1).normal(0, 0.003, (len(weights), 2))
    curve = optimum.fit_curve(weights, known_losses(weights, best) + noise, (0.5, 0.5))
    assert curve.best == pytest.approx(best, rel=0.25)
    low, high = curve.best_interval
    assert low <= best <= high
    assert high / low < 3
    for weight in (0.02, 0.3, 0.8):
        truth = known_losses(np.array([weight, best]), best).mean(axis=1)
        regret, least, most = curve.regret(weight)
        assert regret == pytest.approx(truth[0] - truth[1], abs=0.01)
        assert least - 1e-9 <= regret <= most + 1e-9


def corpus(folder: Path, benchmark_module: Load) -> Manifest:
    """Three domains of text that nobody wrote; each is its own held-out text."""
    paths = benchmark_module("speed.corpus").write_corpus(folder, 256, domains=3, tokens=40_000)
    files = [TokenFile(path.name, path.name, 40_000, 160_000, 20) for path in paths]
    return Manifest(folder, "tokenizer.json", "hash", 256, {file.path: DomainFiles(file, file) for file in files}, {})


REST = {"domain1": 1.0, "domain2": 3.0}


def test_arms_differ_in_the_unique_tokens_of_the_scarce_domain(tmp_path: Path, benchmark_module: Load) -> None:
    runs = benchmark_module("repetition.runs")
    manifest = corpus(tmp_path, benchmark_module)
    setting = runs.Setting("domain0", 20_000, 40_000, REST, GRID, window=16, tokens_per_step=64)
    seen = {sight: runs.unique_tokens(setting, runs.Arm(sight, 5_000, sight, (1,)), manifest) for sight in ("matched", "whole", "floored")}
    assert seen["matched"]["domain0"] == 20_000 // 8 // 16 * 16
    assert seen["whole"]["domain0"] == 20_000
    assert seen["floored"]["domain0"] == min(64 * 512, 39_999 // 512 * 512)


def test_an_arm_is_trained_once_and_says_what_it_saw(tmp_path: Path, benchmark_module: Load) -> None:
    runs = benchmark_module("repetition.runs")
    manifest = corpus(tmp_path, benchmark_module)
    setting = runs.Setting("domain0", 16_384, 32_768, REST, (0.25, 0.5), "nano", 16, 64, 256, 64)
    arm = runs.Arm("matched", 4096, "matched", (1, 2))
    told: list[str] = []
    first = list(runs.train_arm(setting, arm, manifest, tmp_path / "work", told.append))
    assert [(run.seed, run.weight) for run in first] == [(1, 0.25), (1, 0.5), (2, 0.25), (2, 0.5)]
    # An eighth of 16,384 unique tokens; a quarter of 4,096 tokens is half an epoch of them, and of the target run 8,192 of 16,384.
    assert [(run.unique_tokens, run.epochs) for run in first] == [(2048, 0.5), (2048, 1.0)] * 2
    assert all(0 < run.scarce_bits_per_byte < 3 and 0 < run.rest_bits_per_byte < 3 for run in first)
    assert len(told) == 2
    assert list(runs.train_arm(setting, arm, manifest, tmp_path / "work", told.append)) == first


def test_regret_is_read_off_the_curve_of_the_target(benchmark_module: Load) -> None:
    """An arm whose optimum is elsewhere pays for it; the target's own optimum costs nothing."""
    benchmark, runs = benchmark_module("epoch_matching"), benchmark_module("repetition.runs")
    setting = runs.Setting("domain0", 1000, 8000, REST, GRID)
    arms = [runs.Arm("whole", 1000, "whole", (1, 2)), runs.Arm("target", 8000, "whole", (1,))]
    best = {"whole": 0.4, "target": 0.1}
    measured = [
        runs.Run("run", arm.name, seed, weight, arm.tokens, 1000, 1.0, *known_losses(np.array([weight]), best[arm.name])[0].tolist(), 1.0)
        for arm in arms
        for seed in arm.seeds
        for weight in GRID
    ]
    found = {(row.arm, row.importance): row for row in benchmark.optima(setting, arms, measured)}
    whole, target = found["whole", 0.5], found["target", 0.5]
    assert target.best_weight == pytest.approx(0.1, rel=0.1)
    assert whole.best_weight == pytest.approx(0.4, rel=0.1)
    assert whole.epochs == pytest.approx(8 * whole.best_weight)
    truth = known_losses(np.array([whole.best_weight, 0.1]), 0.1).mean(axis=1)
    assert whole.regret == pytest.approx(truth[0] - truth[1], rel=0.1)
    assert target.regret == 0
    assert target.spearman == pytest.approx(1)
    assert whole.spearman < 0.5
    assert {importance for _, importance in found} == {0.3, 0.5, 0.7}


def test_without_the_shared_folder_it_says_what_to_set(
    benchmark_module: Load, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("MIXOPT_SHARED", raising=False)
    assert benchmark_module("epoch_matching").main([]) == 2
    assert "MIXOPT_SHARED" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["--scarce", "nonsense"], "is no domain"), (["--seeds", "0"], "at least 1"), (["--grid", ".1", "1"], "at least 4")],
)
def test_wrong_options_are_told_before_anything_is_prepared(
    arguments: list[str],
    said: str,
    benchmark_module: Load,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("MIXOPT_SHARED", str(tmp_path))
    assert benchmark_module("epoch_matching").main([*arguments, "--work", str(tmp_path / "work")]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "work").exists()
