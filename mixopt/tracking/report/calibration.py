"""The section of the report that shows a calibration: which rate ranks, what a seed does, what tokens bring, what a slot takes."""

from __future__ import annotations

from typing import Any

from mixopt.calibration.design import title_of
from mixopt.calibration.page import (
    RESOURCE_HEAD,
    curve_head,
    curve_rows,
    curves_explained,
    noise_explained,
    noise_head,
    noise_rows,
    rate_head,
    rate_rows,
    rates_explained,
    resource_rows,
)
from mixopt.calibration.result import Calibration
from mixopt.tracking.findings import Findings
from mixopt.tracking.report.blocks import Notes, Prose, Section, Table


def calibration_sections(findings: Findings) -> list[Section]:
    """The section, where the search keeps a calibration."""
    found = findings.calibration
    return [] if found is None else [Section("calibration", "Calibration", _blocks(found))]


def _blocks(found: Calibration) -> list[Any]:
    title = title_of(found.source)
    by = "by the search's own first trials" if found.origin == "search" else "by `mixopt calibrate`"
    blocks: list[Any] = [Prose(f"Measured {by}: {found.trials} runs of {title} at the rate of the search.")]
    if len(found.rates) > 1:
        blocks += [
            Prose(found.reason),
            Table(f"Learning rates of {title}", rate_head(found), rate_rows(found), words=[1]),
            Prose(rates_explained(found)),
        ]
    else:
        blocks.append(Prose("Learning rates were not compared; `mixopt calibrate FILE` does."))
    blocks += [
        Table(f"Seed noise of {title}, bits per byte", noise_head(found), noise_rows(found), folded="What a seed does, by mixture"),
        Notes(noise_explained(found)),
    ]
    if found.curves:
        blocks += [
            Table(f"What tokens bring {title}, bits per byte", curve_head(found), curve_rows(found), folded="What more tokens bring"),
            Prose(curves_explained(found)),
        ]
    if found.resources:
        blocks.append(Table("Speed and memory, as measured", RESOURCE_HEAD, resource_rows(found.resources)))
    return blocks
