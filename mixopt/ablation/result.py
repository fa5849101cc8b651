"""The outcome of an ablation as plain values, for pages and records. Positive effects are domains that help.

The main trade-off: what it was computed from, losses of all subsets and folds, is not kept; it is cheap to measure again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

MEAN = "mean"
"""Column of the weighted mean over metrics."""

Table = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Effects:
    """Effects of one kind; every table is (domains, metrics), bits per byte by which the loss falls.

    Attributes:
        value: the effect; low, high: ends of its 90% interval.
        text_std: its error from the held-out rows; sampling_std: from the orders that were sampled, 0 where nothing was.
    """

    value: Table
    low: Table
    high: Table
    text_std: Table
    sampling_std: Table

    def told(self, domain: int, metric: int) -> bool:
        """Whether an effect is told from none."""
        return self.low[domain][metric] > 0 or self.high[domain][metric] < 0


@dataclass(frozen=True)
class Ablation:
    """What each domain brings.

    Attributes:
        metrics: the mean first.
        base, everything: losses, by metric, of the base and of the average of all components.
        leave_one_out: loss without a domain less that of all. add_one_in: loss of the base less that of the domain's component alone, in which is what
            general data of every component brings. shapley: a domain's share of what all bring to the base together; None: not asked for.
        subsets: models that were measured; circles: of sampled orders, 0: exact.
    """

    domains: tuple[str, ...]
    metrics: tuple[str, ...]
    base: tuple[float, ...]
    everything: tuple[float, ...]
    leave_one_out: Effects
    add_one_in: Effects
    shapley: Effects | None
    subsets: int
    circles: int

    @property
    def kinds(self) -> dict[str, Effects]:
        """Title -> effects, the most telling first."""
        shapley = {} if self.shapley is None else {"Shapley": self.shapley}
        return {**shapley, "left out": self.leave_one_out, "alone": self.add_one_in}

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Ablation:
        """Inverts `to_json`, also after a trip through JSON text."""
        tuples = {name: tuple(body[name]) for name in ("domains", "metrics", "base", "everything")}
        effects = {
            name: None if body[name] is None else Effects(**{key: tuple(map(tuple, rows)) for key, rows in body[name].items()})
            for name in ("leave_one_out", "add_one_in", "shapley")
        }
        return cls(**{**body, **tuples, **effects})
