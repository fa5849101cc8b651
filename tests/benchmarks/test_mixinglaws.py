"""The reader of the published tables: what is wrong with them is mended, and mixtures are the same ones at all sizes."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest


@pytest.fixture
def module(benchmark_module: Any) -> ModuleType:
    found: ModuleType = benchmark_module("mixinglaws")
    return found


def write(folder: Path, size: str, lines: list[tuple[str, int, str, float]]) -> None:
    (folder / "data" / "5Mix").mkdir(parents=True, exist_ok=True)
    text = "".join(f"/ckpts//{run}/{step}\t/data//valid.{domain}.bin\t{loss}\n" for run, step, domain, loss in lines)
    (folder / "data" / "5Mix" / f"{size}.txt").write_text(text, encoding="utf-8")


def test_flaws_of_the_tables(module: ModuleType, tmp_path: Path) -> None:
    write(
        tmp_path,
        "70M",
        [
            ("70M_1-0.5-0.5-0-0-0", 100, "Github", 2.0),
            ("70M_1-0.5-0.5-0-0-0", 100, "Github", 2.5),  # again: the first counts
            ("70M_2-0-0.0-0.51-0-0.51", 100, "Github", 3.0),  # sums to 1.02
            ("70M_2-0-0.0-0.51-0-0.51", 200, "Github", 2.9),
            ("base", 100, "Github", 9.0),  # no mixture
        ],
    )
    write(tmp_path, "160M", [("160M_7-0.0-0-0.5-0-0.5", 100, "Github", 1.5)])
    swarm = module.read(tmp_path, "5Mix", ["70M", "160M"], lambda _size, step: step == 100)
    assert swarm.metrics == ("Github",)
    found = dict(zip(swarm.trial_ids, swarm.values(["Github"])[:, 0].tolist(), strict=True))
    assert found == {"70M-001-100": 2.0, "70M-000-100": 3.0, "160M-000-100": 1.5}
    np.testing.assert_allclose(swarm.points().schedules.sum(axis=2), 1.0)
    assert {source.tokens for source in swarm.points().sources} == {100 * 4096 * 256}


def test_checkpoints_without_all_domains_are_left_out(module: ModuleType, tmp_path: Path) -> None:
    write(tmp_path, "70M", [("a-1-0-0-0-0", 1, "X", 2.0), ("a-1-0-0-0-0", 1, "Y", 2.0), ("b-0-1-0-0-0", 1, "X", 3.0)])
    assert module.read(tmp_path, "5Mix", ["70M"], lambda _size, _step: True).values(["X", "Y"]).tolist() == [[2.0, 2.0]]
