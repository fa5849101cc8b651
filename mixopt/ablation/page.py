"""An ablation on a terminal: for every target what each domain adds or costs, in bits per byte, and how sure that is."""

from __future__ import annotations

from rich.console import Console

from mixopt.ablation.effects import LEVEL
from mixopt.ablation.result import MEAN, Ablation, Effects
from mixopt.terminal import rows_table
from mixopt.tracking.findings import short_metric

UNTOLD = "~"
"""Stands before effects that are not told from none."""


def show_ablation(ablation: Ablation, console: Console) -> None:
    """Prints a table per metric, the mean first, and what the numbers mean."""
    for metric in range(len(ablation.metrics)):
        console.print(rows_table(title(ablation, metric), head(ablation), rows(ablation, metric)))
    for sentence in explained(ablation):
        console.print(sentence, highlight=False, markup=False, soft_wrap=not console.is_terminal)


def title(ablation: Ablation, metric: int) -> str:
    """Of one metric's table, with the losses that its effects lie between."""
    name = "the mean of targets" if ablation.metrics[metric] == MEAN else short_metric(ablation.metrics[metric])
    return f"What domains bring {name}, bits per byte: base {ablation.base[metric]:.4f}, all {ablation.everything[metric]:.4f}"


def head(ablation: Ablation) -> list[str]:
    """Columns of `rows`."""
    return ["domain", *(column for name in ablation.kinds for column in (name, f"{LEVEL:.0%}"))]


def rows(ablation: Ablation, metric: int) -> list[list[str]]:
    """A row per domain, the most helpful first."""
    kinds = list(ablation.kinds.values())
    order = sorted(range(len(ablation.domains)), key=lambda domain: -kinds[0].value[domain][metric])
    return [[ablation.domains[domain], *(cell for kind in kinds for cell in _cells(kind, domain, metric))] for domain in order]


def _cells(kind: Effects, domain: int, metric: int) -> list[str]:
    value, low, high = (_signed(table[domain][metric]) for table in (kind.value, kind.low, kind.high))
    return [value if kind.told(domain, metric) else f"{UNTOLD} {value}", f"{low} to {high}"]


def _signed(value: float) -> str:
    return f"{value:+.4f}".replace("-", "\N{MINUS SIGN}")


def explained(ablation: Ablation) -> list[str]:
    """What the columns are, and what intervals hold and do not."""
    kinds = ablation.kinds.values()
    count = len(kinds) * len(ablation.domains) * len(ablation.metrics)
    untold = sum(
        not kind.told(domain, metric)
        for kind in kinds
        for domain in range(len(ablation.domains))
        for metric in range(len(ablation.metrics))
    )
    shapley = (
        []
        if ablation.shapley is None
        else [
            "Shapley: a domain's share of what all bring to the base together; the shares add up to it. "
            + ("Exact, of all subsets." if not ablation.circles else f"Sampled, by {ablation.circles} circles of the domains.")
        ]
    )
    return [
        "Positive: the loss is lower with the domain. Models are uniform averages of the components of a subset, a stand-in for training on its domains.",
        *shapley,
        "Left out: the loss without the domain less that of all. Alone: the loss of the base less that of the domain's component, in which is what the "
        "general data of every component brings.",
        f"{UNTOLD}: not told from none at {LEVEL:.0%}, {untold} of {count}; by chance {1 - LEVEL:.0%} of those that are none would seem to be something. Intervals hold the "
        "error of the held-out rows and of sampling, not that of the seeds which components were trained with.",
        f"{ablation.subsets} models were measured.",
    ]
