"""A gate's verdict on a terminal: the sentences, and every correlation with what it could be at best."""

from __future__ import annotations

from rich.console import Console

from mixopt.merging.remedies import Attempt
from mixopt.merging.verdict import Ranked, Verdict
from mixopt.terminal import rows_table
from mixopt.tracking.findings import short_metric

HEAD = ["ranking of", "mixtures", "Spearman", "90%", "perfect", ""]


def show_verdict(verdict: Verdict, console: Console, attempt: Attempt | None = None) -> None:
    """Prints a verdict and, where it does not trust, what is tried next."""
    console.print(rows_table(f"How {verdict.evaluator} proxies rank mixtures that were trained", HEAD, rank_rows(verdict)))
    for sentence in (*verdict.reasons, *(attempt.reasons if attempt else ())):
        console.print(sentence, highlight=False, markup=False, soft_wrap=not console.is_terminal)


def rank_rows(verdict: Verdict) -> list[list[str]]:
    """A row for the objective, the best mixtures, the mean of the metrics, and each metric."""
    mean = [verdict.mean] if any(row.counted for row in verdict.metrics) else []
    rows = [verdict.objective, *([verdict.top] if verdict.top else []), *mean, *verdict.metrics]
    return [_row(row) for row in rows]


def _row(row: Ranked) -> list[str]:
    numbers = [f"{row.mixtures}", f"{row.spearman:.2f}", f"{row.low:.2f} to {row.high:.2f}", f"{row.ceiling:.2f}"]
    return [short_metric(row.of), *numbers, "" if row.counted else "not counted, noise"]
