"""`auto` over several sizes: what one point is told does not depend on its neighbours; members that cannot be fitted are left out and said."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from mixopt.answer.measured import measured_at
from mixopt.errors import DataError
from mixopt.mixture import FloatArray
from mixopt.surrogates.cross_validation import noise_at
from mixopt.surrogates.stacked import Stacked
from mixopt.surrogates.stacked_sources import LAW, PROCESS, RATIO, members_for
from mixopt.swarm import Points, Swarm
from mixopt.trial import Source

DOMAINS = ("a", "b", "c")
COUNTS = (16, 10, 8)


def swarm(sizes: tuple[str, ...], shift: float = 0.0, costs: tuple[float, ...] | None = None) -> Swarm:
    rng = np.random.default_rng(0)
    parts = []
    for number, (size, count) in enumerate(zip(sizes, COUNTS, strict=False)):
        weights = rng.dirichlet(np.ones(3), count)
        losses = 1 + 0.3 / (number + 1) + (0.1 + weights @ [[1.0], [0.5], [0.1]]) ** -0.4 + 0.01 * rng.normal(size=(count, 1))
        ids = [f"{size}-{row:02d}" for row in range(count)]
        source = Source("given", size, 10**9)
        table = Swarm.from_arrays(DOMAINS, weights[:, None], ("one",), losses - shift, source, trial_ids=ids).table
        parts.append(table if costs is None else table.with_columns(flops=pl.lit(costs[number])))
    return Swarm(DOMAINS, pl.concat(parts))


def points(sizes: tuple[str, ...], weights: FloatArray | None = None) -> Points:
    weights = np.random.default_rng(1).dirichlet(np.ones(3), len(sizes)) if weights is None else weights
    return Points(DOMAINS, weights[:, None], tuple(Source("given", size, 10**9) for size in sizes))


def test_a_point_is_told_the_same_whatever_is_asked_beside_it() -> None:
    fitted = Stacked().fit(swarm(("70M", "160M", "410M")), ["one"])
    mixed = points(("70M", "2B", "410M", "2B"))
    posterior = fitted.posterior(mixed)
    draws = posterior.sample(4000, seed=0)
    np.testing.assert_allclose(draws.mean(axis=0), posterior.mean, atol=0.1 * posterior.std.max())
    np.testing.assert_allclose(draws.std(axis=0), posterior.std, rtol=0.1)
    for row, source in enumerate(mixed.sources):
        alone = Points(DOMAINS, mixed.schedules[[row]], (source,))
        np.testing.assert_allclose(fitted.mean(alone)[0], fitted.mean(mixed)[row], rtol=1e-9)
        np.testing.assert_allclose(fitted.posterior(alone).mean[0], posterior.mean[row], rtol=1e-9)
        np.testing.assert_allclose(fitted.posterior(alone).std[0], posterior.std[row], rtol=1e-6)
        np.testing.assert_allclose(noise_at(fitted, alone)[0], noise_at(fitted, mixed)[row], rtol=1e-9)


def test_sizes_of_unknown_parameters_do_without_the_law() -> None:
    runs = swarm(("small", "middle", "large"), costs=(1.0, 3.0, 10.0))
    fitted = Stacked().fit(runs, ["one"])
    assert fitted.names == (PROCESS, RATIO)
    assert "small" in fitted.left_out or "large" in fitted.left_out or "middle" in fitted.left_out
    with pytest.raises(DataError, match="No run was at"):
        fitted.mean(points(("huge",)))
    sizes = {"small": 70e6, "middle": 160e6, "large": 410e6}
    assert members_for(runs.points().sources, sizes) == (PROCESS, RATIO, LAW)


def test_metrics_of_both_signs_do_without_the_ratio() -> None:
    sizes = ("70M", "160M")
    plain, shifted = swarm(sizes), swarm(sizes, shift=2.4)
    assert (np.sign(shifted.values(["one"])).min(), np.sign(shifted.values(["one"])).max()) == (-1, 1)
    fitted = Stacked().fit(shifted, ["one"])
    usual = Stacked().fit(plain, ["one"])
    assert RATIO not in fitted.names
    assert RATIO in usual.names
    assert "changes its sign" in fitted.left_out
    assert fitted.weights.sum(axis=0) == pytest.approx(1)
    asked = points((sizes[-1],) * 20)
    assert np.corrcoef(fitted.mean(asked)[:, 0], usual.mean(asked)[:, 0])[0, 1] > 0.95


def test_where_too_little_was_measured_the_largest_other_size_is_told() -> None:
    """Not the last in the alphabet, which is 70M; and by the parameters that the user says where names do not say them."""
    wanted = Source("given", "1B", 10**9)
    runs = swarm(("70M", "160M"))
    assert {source.size for source in measured_at(runs, wanted).points().sources} == {"160M"}
    named = swarm(("tiny", "nano"))
    sizes = {"tiny": 1e6, "nano": 4e6}
    assert {source.size for source in measured_at(named, wanted, sizes).points().sources} == {"nano"}
