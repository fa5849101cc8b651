"""Floors as a user states them: no metric worse than a baseline by more than so much.

A mean forgives: one target may pay for the others. A floor does not. Nothing is fitted here, so that files can be checked before anything runs;
`constraints` makes them limits on predicted losses.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from mixopt.errors import ConfigError

Baseline = Literal["natural", "uniform", "unimax", "best_measured"]
# Every metric that the objective names.
ALL = "all"


@dataclass(frozen=True)
class Floor:
    """No mixture may be worse than the baseline on a metric by more than `by`.

    Attributes:
        metric: its name, or that of a target or domain without `target/` or `valid/`; `all` for each that the objective names.
        baseline: a mixture, or a loss.
        by: in the unit of losses, or in percent of the baseline's loss; below 0 a gain is demanded.

    Raises:
        ConfigError: a baseline that is no number and not known, or numbers that are not finite.
    """

    metric: str
    baseline: Baseline | float = "natural"
    by: float = 0.0
    percent: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.baseline, str) and self.baseline not in get_args(Baseline):
            near = difflib.get_close_matches(self.baseline, get_args(Baseline), n=1, cutoff=0.0)[0]
            raise ConfigError(
                f"Floor on '{self.metric}' has the baseline '{self.baseline}'.",
                f"Did you mean '{near}'? Write {', '.join(get_args(Baseline))}, or a loss.",
            )
        if not math.isfinite(self.by) or (not isinstance(self.baseline, str) and not math.isfinite(self.baseline)):
            raise ConfigError(f"Floor on '{self.metric}' is {self.by} from {self.baseline}.", "Give finite numbers.")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def resolve_floors(floors: Sequence[Floor], metrics: Sequence[str], objective_metrics: Sequence[str]) -> tuple[Floor, ...]:
    """The floors with full names, `all` spelled out.

    Args:
        metrics: every metric that is predicted.
        objective_metrics: those that the objective names, which `all` stands for.

    Raises:
        ConfigError: a metric that is not predicted, with the nearest that is.
    """
    found: list[Floor] = []
    for floor in floors:
        names = tuple(objective_metrics) if floor.metric == ALL and ALL not in metrics else (full_name(floor.metric, metrics),)
        found += [Floor(name, floor.baseline, floor.by, floor.percent) for name in names]
    return tuple(dict.fromkeys(found))


def full_name(metric: str, metrics: Sequence[str]) -> str:
    """The metric of that name, or of the target or domain of that name.

    Raises:
        ConfigError: there is none.
    """
    for name in (metric, f"target/{metric}", f"valid/{metric}"):
        if name in metrics:
            return name
    near = difflib.get_close_matches(metric, metrics, n=1, cutoff=0.0)
    raise ConfigError(
        f"A floor names the metric '{metric}', which is not known.",
        f"Did you mean '{near[0]}'? Known: {', '.join(metrics)}; `{ALL}` is every metric of the objective." if near else "",
    )
