"""How evenly a trial's router used its experts, and whether that is still a Mixture-of-Experts model.

A router that sends every token to the same few experts trains the others no more: the proxy is then smaller than its name says, by how much depends
on the mixture, and its losses compare with nobody's. The definitions are here and nowhere else. The trade-off: only load is judged; the entropy of
a router is shown, but a router may be sure of every choice and use all experts alike.

Legend: L layers with routed experts, E experts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mixopt.trial import JsonValue

DEAD_SHARE = 0.01
"""An expert is dead that got less than this part of an even share of the rows. An assumption: after 1M tokens, with 8 experts and 2 for each token,
that is under 250 of the 200,000 rows that are counted."""
COLLAPSED_DEAD = 1 / 8
"""A router has collapsed where this part of a layer's experts or more is dead: one of 8, 8 of 64."""
COLLAPSED_TOKENS = 0.9
"""It also has where one expert sees this part of all tokens or more: what all tokens share is what a shared expert is for."""
DEFINITION = (
    f"An expert is dead that got less than {DEAD_SHARE:.0%} of an even share of the tokens over the last tenth of training. A router has collapsed where "
    "an eighth of a layer's experts or more are dead, or one of them sees nine of ten tokens."
)


@dataclass(frozen=True)
class Balance:
    """Rows are tokens times the experts that each was sent to.

    Attributes:
        experts_per_token: rows of a token.
        rows_LE: over the last `steps` steps of training, a tenth of them.
        entropy: of the router's softmax, mean over the tokens of the held-out text; 1 is undecided. Empty: not measured.
        by_set: evaluation key -> rows of the finished proxy on that held-out text.
    """

    experts_per_token: int
    rows_LE: tuple[tuple[int, ...], ...]
    steps: int
    entropy: tuple[float, ...]
    by_set: Mapping[str, tuple[tuple[int, ...], ...]]

    @classmethod
    def of(cls, diagnostics: Mapping[str, JsonValue]) -> Balance | None:
        """From the diagnostics of an outcome; None where nothing was counted: dense proxies, and trials of earlier versions."""
        body = diagnostics.get("balance")
        if not body:
            return None
        return cls(
            experts_per_token=int(body["experts_per_token"]),
            rows_LE=_rows(body["recent_rows"]),
            steps=int(body["recent_steps"]),
            # A number that was not finite is stored as null.
            entropy=() if None in body["entropy"] else tuple(float(value) for value in body["entropy"]),
            by_set={str(key): _rows(rows) for key, rows in body["rows_by_set"].items()},
        )

    @property
    def dead_experts(self) -> tuple[int, ...]:
        """Dead experts of each layer."""
        return tuple(sum(rows * len(rows_E) < DEAD_SHARE * sum(rows_E) for rows in rows_E) for rows_E in self.rows_LE)

    @property
    def fullest_shares(self) -> tuple[float, ...]:
        """Share of the tokens that the fullest expert of each layer saw."""
        return tuple(max(self.token_shares(rows_E)) for rows_E in self.rows_LE)

    def token_shares(self, rows_E: tuple[int, ...]) -> list[float]:
        """Share of the tokens that each expert saw; they sum to `experts_per_token`."""
        total = sum(rows_E)
        return [rows * self.experts_per_token / total if total else 0.0 for rows in rows_E]

    @property
    def collapse(self) -> str:
        """In which layers the router has collapsed, and how; empty if it has not."""
        found = []
        for layer, (rows_E, dead, fullest) in enumerate(zip(self.rows_LE, self.dead_experts, self.fullest_shares, strict=True), start=1):
            why = [f"{dead} of {len(rows_E)} experts dead"] if dead >= COLLAPSED_DEAD * len(rows_E) else []
            why += [f"one expert sees {fullest:.0%} of the tokens"] if fullest >= COLLAPSED_TOKENS else []
            if why:
                found.append(f"layer {layer}: {', '.join(why)}")
        return "; ".join(found)


def judged(diagnostics: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """The diagnostics with the verdict, so that whoever reads the record sees it without this module."""
    balance = Balance.of(diagnostics)
    if balance is None:
        return dict(diagnostics)
    verdict = {"dead_experts": list(balance.dead_experts), "collapsed": balance.collapse}
    return {**diagnostics, "balance": {**diagnostics["balance"], **verdict}}


def _rows(rows: JsonValue) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(int(value) for value in rows_E) for rows_E in rows)
