"""Components as people and programs read them: how far each has gone from the base, and what it has learned of its own domain."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console

SHOWN_GROUPS = ("embedding", "attention", "router", "experts")
DEMIX_DISPLACEMENT = 0.1
"""What DeMix (arXiv 2602.00747) measured where merged proxies ranked well."""


@dataclass(frozen=True)
class ComponentRow:
    """One component.

    Attributes:
        displacement: |theta_k - theta_0| / (|theta_k| + |theta_0|), over all parameters; `by_group`: the same by group of parameters.
        own, others: bits per byte on the domain's own held-out set, of this component and of the others in the mean; None: not scored.
    """

    domain: str
    trial: str
    displacement: float
    by_group: Mapping[str, float]
    own: float | None
    others: float | None


@dataclass(frozen=True)
class ComponentsResult:
    """A family that is trained.

    Attributes:
        share, general: of general data in each component, and what it is made of.
        extends: domains by which an earlier family was extended.
        flops: of training and scoring all components; the base is not in it.
        trained, reused: components of this run, and those that were there.
    """

    family_id: str
    base: str
    source: str
    share: float
    general: Mapping[str, float]
    extends: tuple[str, ...]
    flops: float
    trained: int
    reused: int
    rows: tuple[ComponentRow, ...]

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        body = asdict(self)
        return {**body, "extends": list(self.extends), "rows": [asdict(row) for row in self.rows]}


def show_components(result: ComponentsResult, output: Console) -> None:
    """Prints the table and what it says."""
    from mixopt.terminal import print_line, rows_table

    rows = [
        [
            row.domain,
            row.trial[:8],
            f"{row.displacement:.3f}",
            *(f"{row.by_group[group]:.3f}" if group in row.by_group else "" for group in SHOWN_GROUPS),
            _bits(row.own),
            _bits(row.others),
        ]
        for row in result.rows
    ]
    columns = ["domain", "trial", "moved", *SHOWN_GROUPS, "own loss", "others'"]
    title = f"Components of base {result.base[:8]} ({result.source}, {result.share:.0%} general data)"
    output.print(rows_table(title, columns, rows))
    print_line(
        output, "moved: distance from the base over the sum of both lengths. Losses: bits per byte on the domain's own held-out set."
    )
    most = max(row.displacement for row in result.rows)
    if most > DEMIX_DISPLACEMENT:
        print_line(output, f"The farthest has moved {most:.2f}; DeMix saw merged proxies rank well at about {DEMIX_DISPLACEMENT:.1f}.")
    if result.extends:
        print_line(output, f"Extended by {', '.join(result.extends)}: base and general data are those of the earlier family.")
    print_line(output, f"Components: {result.trained} trained now, {result.reused} already in the record.")


def _bits(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
