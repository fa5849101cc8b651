"""The figures: drawn from what the record holds, left out where it holds nothing, readable at any number of domains."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixopt.swarm import Swarm
from mixopt.tracking.canvas import NARROW, WIDE, Layout, spread
from mixopt.tracking.figures import (
    FIGURES,
    draw_figures,
    mixture_figure,
    objective_figure,
    predicted_figure,
    verification_figure,
    write_figures,
)
from mixopt.tracking.findings import ARM_TITLES, Findings, read_findings

SEARCH_ID = "5ea7c4" + "0" * 14
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module", params=[2, 6, 20])
def findings(request: pytest.FixtureRequest, recorded: Callable[..., Any]) -> Findings:
    return read_findings(recorded(request.param).finish(12).history, SEARCH_ID)


def test_every_figure_is_written(findings: Findings, tmp_path: Path) -> None:
    paths = draw_figures(tmp_path, findings)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(f"{name}.png" for name in FIGURES)
    assert [path.stem for path in paths] == list(FIGURES)
    assert all(path.read_bytes().startswith(PNG) for path in paths)


@pytest.mark.parametrize("layout", [WIDE, NARROW], ids=["wide", "narrow"])
def test_nothing_sticks_out_of_a_figure(findings: Findings, layout: Layout) -> None:
    for name, draw in FIGURES.items():
        figure = draw(findings, layout)
        for text in figure.texts if layout.narrow else ():  # the page writes title and subtitle itself
            text.set_visible(False)
        width, height = figure.get_size_inches()
        box = figure.get_tightbbox()  # inches; of everything that is drawn
        assert min(box.x0, box.y0) >= 0, name
        assert box.x1 <= width, name
        assert box.y1 <= height, name


@pytest.mark.parametrize("layout", [WIDE, NARROW], ids=["wide", "narrow"])
def test_the_numbers_beside_the_rows_do_not_touch(findings: Findings, layout: Layout) -> None:
    """Legend, column titles, numbers and ticks of the figures with one pair of axes."""
    for name in ("mixture", "epochs", "noise", "cost", "effects", "verification"):
        figure = FIGURES[name](findings, layout)
        figure.canvas.draw()
        (axes,) = figure.axes
        legend = axes.get_legend().get_texts() if axes.get_legend() else []
        texts = [*axes.texts, *legend, *axes.get_yticklabels(), *(axes.get_xticklabels() if name != "effects" else ())]
        boxes = [(text.get_text(), text.get_window_extent()) for text in texts if text.get_text()]
        for index, (first, box) in enumerate(boxes):
            for second, other in boxes[index + 1 :]:
                assert not box.overlaps(other), (name, first, second)


def test_the_mixture_is_sorted_and_written_out(findings: Findings) -> None:
    assert findings.proposal is not None
    weights = findings.proposal.mixture.as_dict()
    figure = mixture_figure(findings)
    (axes,) = figure.axes
    rows = [label.get_text() for label in axes.get_yticklabels()]
    assert sorted(rows, key=lambda name: -weights[name]) == rows
    written = {text.get_text() for text in axes.texts}
    assert {f"{weight:.1%}" for weight in weights.values()} <= written


def test_the_running_best_is_the_least_so_far(findings: Findings) -> None:
    assert findings.proposal is not None
    values = [pair["measured"] for pair in findings.proposal.evidence["predicted"]]
    (axes,) = objective_figure(findings).axes
    drawn = next(line for line in axes.lines if len(line.get_xdata()) == len(values))
    assert list(drawn.get_ydata()) == [min(values[: count + 1]) for count in range(len(values))]


def drawn_dots(axes: Any) -> list[Any]:
    from matplotlib.collections import PathCollection

    return [artist for artist in axes.collections if isinstance(artist, PathCollection)]


def test_one_bad_mixture_does_not_flatten_the_others(findings: Findings) -> None:
    """It is an arrow at the edge with its value; nothing that was measured is left out."""
    assert findings.proposal is not None
    pairs = [dict(pair) for pair in findings.proposal.evidence["predicted"]]
    pairs[3]["measured"] = 1000.0
    shown = replace(findings, proposal=replace(findings.proposal, evidence={"predicted": pairs}))
    (axes,) = objective_figure(shown).axes
    assert axes.get_ylim()[1] < 500
    assert len(drawn_dots(axes)) + sum(line.get_marker() == "^" for line in axes.lines) == len(pairs)
    assert "1000" in {text.get_text() for text in axes.texts}


def test_what_lies_below_the_top_of_the_axis_is_no_arrow(findings: Findings) -> None:
    assert findings.proposal is not None
    wide = replace(findings.proposal, objective=replace(findings.proposal.objective, high=2000.0))
    pairs = [dict(pair) for pair in wide.evidence["predicted"]]
    pairs[3]["measured"] = 1000.0
    (axes,) = objective_figure(replace(findings, proposal=replace(wide, evidence={"predicted": pairs}))).axes
    assert len(drawn_dots(axes)) == len(pairs)


def test_a_mixture_of_two_names_is_one_row_of_the_verification(findings: Findings) -> None:
    verification = findings.verification
    assert verification is not None
    first, second, *others = verification.rivals
    arms = {**verification.arms, second: verification.arms[first]}
    (axes,) = verification_figure(replace(findings, verification=replace(verification, arms=arms))).axes
    rows = [label.get_text() for label in axes.get_yticklabels()]
    names = {ARM_TITLES[name] for name in (*verification.rivals[first], *verification.rivals[second])}
    assert set(re.split(r" =\s", rows[0])) == names
    assert len(rows) == 1 + len(others)


def test_figures_without_evidence_are_left_out(findings: Findings, tmp_path: Path) -> None:
    assert findings.proposal is not None
    bare = replace(findings, proposal=replace(findings.proposal, evidence={}, near_optimal={}, best_measured={}), verification=None)
    assert predicted_figure(bare) is None
    assert objective_figure(bare) is None
    assert [path.stem for path in draw_figures(tmp_path, bare)] == [
        "mixture",
        "epochs",
        "curves",
        "curves-verification",
        "noise",
        "experts",
        "cost",
    ]
    assert draw_figures(tmp_path / "none", replace(bare, proposal=None, trials=(), swarm=Swarm.empty(findings.domains))) == []


def test_the_same_findings_give_the_same_bytes(findings: Findings, tmp_path: Path) -> None:
    first, second = (draw_figures(tmp_path / name, findings) for name in ("first", "second"))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_pyplot_is_not_touched(recorded: Callable[..., Any], tmp_path: Path) -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    write_figures(tmp_path, recorded(6).finish(6).history, SEARCH_ID)
    assert dict(matplotlib.rcParams) == before


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=12), st.floats(0.01, 20))
def test_spread_keeps_order_and_distance_and_does_not_move_what_is_apart(values: list[float], gap: float) -> None:
    placed = spread(values, gap)
    order = sorted(range(len(values)), key=lambda index: values[index])
    for one, next_one in itertools.pairwise(order):
        assert placed[next_one] - placed[one] >= gap - 1e-9
    assert sum(placed) == pytest.approx(sum(values), abs=1e-6)
    if all(values[b] - values[a] > gap for a, b in itertools.pairwise(order)):
        assert placed == pytest.approx(values)
