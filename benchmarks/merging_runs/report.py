"""What the benchmark of merging says: all rows, the differences that answer whether merged proxies pay, and both as tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from merging_runs.measure import Measured
from merging_runs.rank import MAIN, Difference, Row, Truth, break_even, difference_of, regression_rows, rows_of
from merging_runs.study import Study

MANY = 100
"""Mixtures of the second question: merged proxies at a quarter of the cost of trained ones."""
FEWEST = 8
"""Mixtures from which on equal costs are compared: of fewer, a search learns little anyhow."""
QUARTER = 4
PLAIN = ("", "linear")
"""Operators of ensembles and trained proxies, and of the merge that is the default: what is told by target, and beside trained proxies."""


@dataclass(frozen=True)
class BreakEven:
    """From how many mixtures on components and scoring cost less than training every mixture; None: never."""

    size: str
    horizon: int
    components: int
    break_even_mixtures: int | None


@dataclass(frozen=True)
class Report:
    rows: list[Row]
    differences: list[Difference]
    break_even: list[BreakEven]


def report_of(study: Study) -> Report:
    """Of what is there by now."""
    truths = {arm: truth for arm in study.arms if (truth := study.truth(arm)) is not None}
    measured = {arm: study.measured(arm) for arm in study.arms}
    short = {
        arm: [one for trials in study.trials[arm].short.values() if (one := study.trained(arm, trials, study.probe)) is not None]
        for arm in study.arms
    }
    rows: list[Row] = []
    differences: list[Difference] = []
    even: list[BreakEven] = []
    for arm, truth in truths.items():
        own = study.trained(arm, study.trials[arm].trained, study.probe)
        assert own is not None, "whoever is scored on the full sets is scored on the probe"
        others = [one for other in study.arms if other.size == arm.size for one in measured[other] if not truth.is_of(one)]
        for one in measured[arm]:
            rows += rows_of(one, truth, per_target=one.operator in PLAIN)
        for one in (*short[arm], *(one for one in others if one.operator in PLAIN and _is_shorter(one, truth))):
            rows += [row for row in rows_of(one, truth, per_target=not one.general) if row.subset == "wide"]
        rows += regression_rows(None, truth, own)
        for one in measured[arm]:
            if one.operator in PLAIN:
                rows += regression_rows(one, truth, own)
        shorter = [one for one in others if one.operator in PLAIN and _is_shorter(one, truth) and one.schedule == truth.schedule]
        differences += differences_of([one for one in (*measured[arm], *shorter) if one.operator in PLAIN], short[arm], truth)
        if measured[arm] and (arm.schedule, arm.rate_scale) == ("constant", 1.0):
            even.append(BreakEven(arm.size, arm.horizon, len(study.domains.names), break_even(measured[arm][0], own)))
    return Report(rows, differences, even)


def _is_shorter(measured: Measured, truth: Truth) -> bool:
    """Components at the usual constant rate, of no more tokens than the mixtures that are to be ranked, which may have another schedule."""
    return measured.tokens <= truth.horizon and measured.schedule == "constant" and measured.rate_scale == truth.rate_scale == 1


def differences_of(measured: Sequence[Measured], short: Sequence[Measured], truth: Truth) -> Iterator[Difference]:
    """Against short runs whose cost is that of the components for so many mixtures, and against those that cost four times as much for a hundred."""
    for one in measured:
        for trained in short:
            equal = break_even(one, trained)
            if (
                equal is not None
                and FEWEST <= equal <= MANY
                and (found := difference_of("equal cost", one, trained, truth, equal)) is not None
            ):
                yield found
            cost = (one.shared_flops + MANY * one.each_flops) / (MANY * trained.each_flops)
            if 0.8 / QUARTER <= cost <= 1.25 / QUARTER:
                found = difference_of("a quarter of the cost for 100", one, trained, truth, MANY)
                if found is not None:
                    yield found


def print_report(report: Report) -> None:
    """The means over targets of all evaluators, then the differences, then break-even."""
    print(
        f"{'ranked mixtures':32} {'evaluator':11} {'operator':28} {'beta':>4} {'weights':7} {'tokens':>7} {'schedule':8} {'subset':12} {'n':>3} {'spearman':>8} "
        f"{'90% interval':>14} {'top':>6} {'ceiling':>7} {'moved':>6} {'routes':>6} {'FLOPs':>8}"
    )
    for row in report.rows:
        if row.metric == MAIN:
            truth = f"{row.size}, {row.horizon:,}, {row.schedule}" + ("" if row.rate_scale == 1 else f", rate {row.rate_scale:.2g}")
            print(
                f"{truth:32} {row.evaluator:11} {row.operator:28} {_cell(row.general, 2):>4} {row.weights:7} {row.tokens:7} {row.proxy_schedule:8} {row.subset:12} "
                f"{row.mixtures:3} {row.spearman:8.2f} {row.spearman_low:6.2f} to {row.spearman_high:4.2f} {row.top_quartile_spearman:6.2f} "
                f"{_cell(row.ceiling, 2):>7} {_cell(row.displacement, 3):>6} {_cell(row.agreement, 2):>6} {row.search_flops:8.1e}"
            )
    print()
    for one in report.differences:
        print(
            f"{one.size}, {one.horizon:,} tokens, {one.evaluator} {one.operator} of {one.tokens:,}, beta {_cell(one.general, 2)}, {one.weights}: {one.spearman:.2f} against "
            f"{one.trained_spearman:.2f} of runs of {one.trained_tokens:,} tokens ({one.case}, {one.at_mixtures} mixtures, cost ratio "
            f"{one.cost:.2f}): {one.difference:+.2f}, {one.difference_low:+.2f} to {one.difference_high:+.2f}"
        )
    print()
    for even in report.break_even:
        print(f"{even.size}, {even.horizon:,} tokens: {even.components} components pay from {even.break_even_mixtures} mixtures on.")


def _cell(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
