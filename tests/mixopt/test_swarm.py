"""The swarm table: arrays by name, end points, digests."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from mixopt.errors import DataError
from mixopt.swarm import SCHEMA, Swarm
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


def test_another_schema_is_refused() -> None:
    with pytest.raises(DataError, match="version 1"):
        Swarm(("a",), pl.DataFrame({"trial_id": ["x"]}))
