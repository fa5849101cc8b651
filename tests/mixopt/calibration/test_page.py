"""What people read of a calibration: every number with what it rests on, on a terminal and in the report."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from mixopt.calibration.analysis import analyse
from mixopt.calibration.design import Extent
from mixopt.calibration.page import show_calibration
from mixopt.calibration.result import Calibration, Resources
from mixopt.tracking.report.blocks import Table
from mixopt.tracking.report.calibration import calibration_sections


def found(world: Any, extent: Extent | None = None, **settings: Any) -> Calibration:
    made = world(**settings)
    plan = made.plan(extent)
    resources = (Resources(plan.factory.source, 20, 12_345.0, 20_000.0, 4, 9e8, 5e8),)
    return analyse(plan, made.finished(plan.trials), made.scoring(plan), resources)


def printed(calibration: Calibration) -> str:
    console = Console(width=160, record=True, file=open("/dev/null", "w", encoding="utf-8"))  # noqa: SIM115
    show_calibration(calibration, console)
    console.file.close()
    return " ".join(console.export_text().split())


def test_a_terminal_shows_rates_noise_curves_speed_and_memory(world: Any) -> None:
    text = printed(found(world))
    for part in (
        "Learning rates of nano, 100,000 tokens",
        "0.003 own",
        "0.0003 best",
        "judged by runs of nano, 400,000 tokens and of micro, 150,000 tokens",
        "Seed noise of nano",
        "natural (3)",
        "Noise differs between mixtures for",
        "The smallest difference that can be told from noise",
        "at 400K",
        "12.3K",
        "900 MB",
        "500 MB",
    ):
        assert part in text, part


def test_without_a_sweep_no_rates_are_shown(world: Any) -> None:
    text = printed(found(world, Extent((1.0,), draws=1, seeds=3, longer=0, larger=False)))
    assert "Learning rates" not in text
    assert "Through three points the law goes exactly" in text


def test_what_failed_and_what_is_noise_is_said(world: Any) -> None:
    calibration = found(world, noise=1.0)
    rates = tuple(replace(row, loss=None, missing=2, ranking=None) if row.rate == 9e-3 else row for row in calibration.rates)
    text = printed(replace(calibration, rates=rates))
    assert "2 failed" in text
    assert "a (noise)" in text


@pytest.mark.parametrize("swept", [True, False])
def test_the_report_has_the_same_tables(world: Any, swept: bool) -> None:
    extent = None if swept else Extent((1.0,), draws=1, seeds=3, longer=0, larger=False)
    calibration = found(world, extent)
    findings: Any = SimpleNamespace(calibration=calibration)
    (section,) = calibration_sections(findings)
    assert section.anchor == "calibration"
    tables = [block for block in section.blocks if isinstance(block, Table)]
    assert [table.caption.split(" of ")[0].split(" bring")[0] for table in tables] == [
        *(["Learning rates"] if swept else []),
        "Seed noise",
        "What tokens",
        "Speed and memory, as measured",
    ]
    for table in tables:
        assert all(len(row) == len(table.head) for row in table.rows), table.caption
    assert calibration_sections(SimpleNamespace(calibration=None)) == []  # type: ignore[arg-type]


def test_the_summary_says_for_how_many_seeds_it_speaks(world: Any) -> None:
    calibration = found(world)
    assert f"so 3 seeds tell apart differences of {calibration.resolvable(3):.3g} or more" in calibration.summary(3)
    assert "A pack of 4 took 0.90 GB where 0.50 were estimated." in calibration.summary(3)
    assert "Learning rates were not compared." in replace(calibration, rates=calibration.rates[:1]).summary(3)
