"""The swarm table: arrays by name, end points, digests."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from mixopt.errors import DataError
from mixopt.swarm import ON_CURVE, SCHEMA, Swarm
from mixopt.trial import Source


def rows() -> list[dict]:
    base = {"evaluator": "trained", "size": "nano", "source_tokens": 100, "fractions": [1.0], "flops": 1.0, "seconds": 1.0}
    result = []
    for trial, (seed, weights) in {"t2": (1, [0.2, 0.8]), "t1": (0, [0.6, 0.4])}.items():
        for metric in ("target/y", "valid/x"):
            for tokens in (50, 100):
                loss = weights[0] + (metric == "valid/x") + 10 / tokens
                result.append(
                    base
                    | {
                        "trial_id": trial,
                        "label": "design",
                        "seed": seed,
                        "requested": [[0.5, 0.5]],
                        "realized": [weights],
                        "metric": metric,
                        "tokens": tokens,
                        "loss_nats": 2 * loss,
                        "bits_per_byte": loss,
                    }
                )
    return result


def swarm() -> Swarm:
    return Swarm(("a", "b"), pl.DataFrame(rows(), schema=SCHEMA))


def test_points_hold_realized_mixtures_in_table_order() -> None:
    points = swarm().points()
    assert swarm().trial_ids == ("t2", "t1")
    assert np.allclose(points.schedules, [[[0.2, 0.8]], [[0.6, 0.4]]])
    assert np.allclose(swarm().points(realized=False).schedules, 0.5)
    assert points.sources == (Source("trained", "nano", 100),) * 2


def test_values_are_those_of_the_end_point() -> None:
    assert np.allclose(swarm().values(("valid/x", "target/y")), [[1.3, 0.3], [1.7, 0.7]])


def test_a_metric_that_was_not_measured_is_nan_and_not_zero() -> None:
    assert np.isnan(swarm().values(("valid/none",))).all()


def test_the_digest_ignores_the_order_of_rows_and_sees_every_loss() -> None:
    shuffled = Swarm(("a", "b"), pl.DataFrame(rows()[::-1], schema=SCHEMA))
    assert shuffled.digest() == swarm().digest()
    changed = rows()
    changed[0]["bits_per_byte"] += 1e-9
    assert Swarm(("a", "b"), pl.DataFrame(changed, schema=SCHEMA)).digest() != swarm().digest()


def test_sources_and_trials_can_be_taken_apart() -> None:
    assert len(swarm().at_source(Source("trained", "nano", 100))) == 2
    assert len(swarm().at_source(Source("trained", "micro", 100))) == 0
    assert swarm().select(["t1"]).trial_ids == ("t1",)
    assert len(Swarm.empty(("a",))) == 0


def with_curve_rows(of: str = "t2") -> list[dict]:
    """As trials are recorded now: the end on the curve's rows, too, here .1 above that on all rows."""
    early = [row for row in rows() if row["tokens"] == 50 or row["trial_id"] == of]
    ends = [row for row in early if row["tokens"] == 100]
    return rows() + [row | {"metric": ON_CURVE + row["metric"], "bits_per_byte": row["bits_per_byte"] + 0.1} for row in ends]


def test_curves_end_on_the_rows_they_began_on() -> None:
    both = Swarm(("a", "b"), pl.DataFrame(with_curve_rows(), schema=SCHEMA))
    metrics = ("valid/x", "target/y")
    curves = both.curves(metrics)
    np.testing.assert_allclose(curves.tokens, [[50, 100], [50, 100]])
    np.testing.assert_allclose(curves.values[0], [[1.4, 0.4], [1.4, 0.4]])
    np.testing.assert_allclose(curves.values[1], [[1.8, 0.8], [np.nan, np.nan]], err_msg="an older trial lacks it")
    np.testing.assert_allclose(both.curves(metrics, end="all").values[:, -1], both.values(metrics))
    np.testing.assert_allclose(both.curves(metrics, "loss_nats", end="all").values, 2 * both.curves(metrics, end="all").values)
    assert both.metrics == swarm().metrics == ("target/y", "valid/x"), "not a metric of its own"
    np.testing.assert_allclose(both.values(metrics), swarm().values(metrics))
    assert both.digest() != swarm().digest()


def test_curves_of_other_sources_and_lengths_are_aligned_at_their_ends() -> None:
    late = {"trial_id": "t1", "tokens": 50}
    longer = [row | {"trial_id": "t3", "source_tokens": 800, "tokens": tokens} for row in rows()[:1] for tokens in (100, 200, 400, 800)]
    fewer = [row for row in rows() if not late.items() <= row.items()]
    curves = Swarm(("a", "b"), pl.DataFrame(fewer + longer, schema=SCHEMA)).curves(("target/y",), end="all")
    np.testing.assert_array_equal(curves.tokens, [[np.nan, np.nan, 50, 100], [np.nan, np.nan, np.nan, 100], [100, 200, 400, 800]])
    assert np.isfinite(curves.values[:, :, 0]).tolist() == np.isfinite(curves.tokens).tolist()


def test_no_curves_are_no_arrays() -> None:
    assert Swarm.empty(("a",)).curves(("m",)).values.shape == (0, 0, 1)
    curves = swarm().curves(("valid/none",))
    np.testing.assert_array_equal(curves.tokens, [[100], [100]])
    assert np.isnan(curves.values).all()


def test_another_schema_is_refused() -> None:
    with pytest.raises(DataError, match="version 1"):
        Swarm(("a",), pl.DataFrame({"trial_id": ["x"]}))
