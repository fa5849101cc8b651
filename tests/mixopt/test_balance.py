"""When an expert counts as dead and a router as collapsed."""

from __future__ import annotations

import json

import pytest

from mixopt.balance import Balance, judged


def body(*layers: list[int], entropy: list[float | None] | None = None) -> dict[str, object]:
    return {
        "experts_per_token": 2,
        "last_step_rows": [list(rows) for rows in layers],
        "recent_rows": [list(rows) for rows in layers],
        "recent_steps": 98,
        "entropy": [0.7] * len(layers) if entropy is None else entropy,
        "rows_by_set": {"k": [list(rows) for rows in layers]},
    }


def balance(*layers: list[int]) -> Balance:
    found = Balance.of({"balance": body(*layers)})
    assert found is not None
    return found


def test_an_expert_is_dead_under_a_hundredth_of_an_even_share() -> None:
    """Of 8,000 rows an even share is 1,000, a hundredth of it 10."""
    assert balance([2000, 2000, 2000, 990, 990, 10, 10, 0]).dead_experts == (1,)
    assert balance([2000, 2000, 2000, 990, 991, 10, 9, 0], [1000] * 8).dead_experts == (2, 0)


@pytest.mark.parametrize(
    ("layers", "how"),
    [
        ([[1000] * 8, [3000, 1000, 1000, 1000, 500, 500, 500, 500]], ""),
        ([[1000] * 8, [4000, 4000, 0, 0, 0, 0, 0, 0]], "layer 2: 6 of 8 experts dead, one expert sees 100% of the tokens"),
        ([[1200, 1200, 1200, 1200, 1200, 1000, 995, 5]], "layer 1: 1 of 8 experts dead"),
        ([[3600, 700, 700, 600, 600, 600, 600, 600]], "layer 1: one expert sees 90% of the tokens"),
        ([[3599, 701, 700, 600, 600, 600, 600, 600]], ""),
        ([[1000] * 57 + [0] * 7], ""),  # 7 of 64 are less than an eighth
        ([[1000] * 56 + [0] * 8], "layer 1: 8 of 64 experts dead"),
    ],
)
def test_a_router_collapses_where_experts_are_dead_or_one_sees_nearly_all(layers: list[list[int]], how: str) -> None:
    assert balance(*layers).collapse == how
    assert judged({"balance": body(*layers)})["balance"]["collapsed"] == how


def test_shares_are_of_tokens() -> None:
    found = balance([4000, 2000, 2000, 0])
    assert found.token_shares(found.rows_LE[0]) == [1.0, 0.5, 0.5, 0.0]
    assert found.fullest_shares == (1.0,)
    assert found.token_shares((0, 0, 0, 0)) == [0.0] * 4


def test_the_verdict_is_written_beside_what_was_counted() -> None:
    before = {"steps": 5, "balance": body([1000] * 8)}
    after = judged(before)
    assert after == {"steps": 5, "balance": {**body([1000] * 8), "dead_experts": [0], "collapsed": ""}}
    assert Balance.of(json.loads(json.dumps(after))) == Balance.of(before)
    assert "collapsed" not in before["balance"], "what was passed stays as it was"


@pytest.mark.parametrize("diagnostics", [{}, {"expert_load": {"least": [], "largest": []}}])
def test_what_was_not_counted_is_not_judged(diagnostics: dict[str, object]) -> None:
    assert Balance.of(diagnostics) is None
    assert judged(diagnostics) == diagnostics


def test_an_entropy_that_was_not_finite_is_not_shown() -> None:
    found = Balance.of({"balance": body([1000] * 8, [1000] * 8, entropy=[0.5, None])})
    assert found is not None
    assert found.entropy == ()
