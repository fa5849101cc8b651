"""Laws over size and tokens: derivatives against differences, the terms' meaning, units of repetition, and how sure they are beyond what was run."""

from __future__ import annotations

import numpy as np
import pytest

from mixopt.errors import DataError
from mixopt.mixture import FloatArray
from mixopt.surrogates import get_surrogate
from mixopt.surrogates.bimix import BiMix
from mixopt.surrogates.parametric import Law
from mixopt.surrogates.scales import parameters_of, sources_in
from mixopt.surrogates.scaling_additive import ScalingAdditive
from mixopt.surrogates.scaling_effective import ScalingEffective, share_kept
from mixopt.surrogates.scaling_joint import ScalingJoint
from mixopt.surrogates.sft_law import SftLaw, domain_of_metric
from mixopt.surrogates.sourced_observations import ScaledObservations
from mixopt.swarm import Points, Swarm
from mixopt.trial import Source

DOMAINS = ("code", "law", "web")
LAWS: list[Law] = [ScalingAdditive(), ScalingJoint(), ScalingEffective(), ScalingEffective(repeats=True), BiMix(), SftLaw((0.0, 1.0, 0.0))]


def mixtures(count: int, seed: int, domains: int = 3) -> FloatArray:
    weights = np.random.default_rng(seed).dirichlet(np.full(domains, 0.7), count)
    weights[weights < 0.03] = 0.0
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def swarm_at(source: Source, losses: FloatArray, weights: FloatArray, metrics: tuple[str, ...] = ("valid/code",)) -> Swarm:
    names = [f"{source.key}-{row:03d}" for row in range(len(weights))]
    return Swarm.from_arrays(DOMAINS, weights[:, None], metrics, losses, source, trial_ids=names)


def together(*parts: Swarm) -> Swarm:
    table = parts[0].table
    for one in parts[1:]:
        table = table.vstack(one.table)
    return Swarm(DOMAINS, table)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: type(law).__name__)
def test_derivatives_are_those_of_the_law(law: Law) -> None:
    rng = np.random.default_rng(1)
    epochs = [rng.uniform(0.2, 40, (9, 3))] if isinstance(law, ScalingEffective) and law.repeats else []
    x = np.concatenate([mixtures(9, 2), *epochs, rng.normal(0, 1, (9, 2))], axis=1)
    mean, std = law.prior(x.shape[1])
    theta = mean + 0.4 * std * rng.standard_normal((3, len(mean)))
    _, jacobian = law.evaluate(theta, x)
    for parameter in range(len(mean)):
        step = np.zeros(len(mean))
        step[parameter] = 1e-6
        difference = (law.evaluate(theta + step, x)[0] - law.evaluate(theta - step, x)[0]) / 2e-6
        np.testing.assert_allclose(jacobian[:, :, parameter], difference, rtol=1e-5, atol=1e-6)


def test_repeated_tokens_are_worth_what_the_paper_says() -> None:
    """Value of data relative to as much new data at 1, 2, 4, 16 and 40 epochs (arXiv 2305.16264, from its R)."""
    kept, _ = share_kept(np.log([15.387756]), np.array([[0.5, 1.0, 2.0, 4.0, 16.0, 40.0]]))
    np.testing.assert_allclose(kept[0, 0], [1, 1, 0.984, 0.931, 0.661, 0.379], atol=6e-4)


def test_epochs_are_tokens_seen_over_unique_ones() -> None:
    weights = mixtures(5, 3)
    observed = ScaledObservations.scaled(
        swarm_at(Source("trained", "1M", 1000), weights[:, :1], weights), ["valid/code"], None, {"web": 100, "code": 50, "law": 1e6}
    )
    inputs = observed.inputs(Points(("web", "code", "law"), weights[:, None, [2, 0, 1]], (Source("trained", "1M", 2000),) * 5))
    np.testing.assert_allclose(inputs[:, :3], weights)  # in the order of names: code, law, web
    np.testing.assert_allclose(inputs[:, 3:6], weights * 2000 / np.array([50, 1e6, 100]))
    np.testing.assert_allclose(inputs[:, 6:], [[0.0, np.log(2)]] * 5, atol=1e-12)


def test_repetition_is_learned_from_runs_that_repeat() -> None:
    """Losses of effective tokens with 2,000 unique ones of code: what a law that knows it says of 20 times as many epochs is nearer the truth."""
    unique = {"code": 2e3, "law": 1e9, "web": 1e9}
    worth = np.array([1.0, 0.2, 0.4])

    def truth(weights: FloatArray, tokens: float) -> FloatArray:
        kept = share_kept(np.log([15.0]), weights * tokens / np.array(list(unique.values())))[0][0]
        return np.asarray(1.0 + 30 * (kept * weights @ worth)[:, None] ** -0.3 * tokens**-0.3)

    parts = []
    for seed, tokens in enumerate((3_000, 10_000, 30_000)):
        weights = mixtures(24, seed)
        parts.append(swarm_at(Source("trained", "1M", tokens), truth(weights, tokens), weights))
    asked, beyond = mixtures(60, 9), Source("trained", "1M", 90_000)
    points = Points(DOMAINS, asked[:, None], (beyond,) * 60)
    errors = []
    for options in ({}, {"unique_tokens": unique}):
        found = get_surrogate("scaling_effective", **options).fit(together(*parts), ["valid/code"]).mean(points)
        errors.append(float(np.abs(found / truth(asked, beyond.tokens) - 1).mean()))
    assert errors[1] < 0.01
    assert errors[1] < errors[0] / 2


def test_unknown_unique_tokens_are_refused() -> None:
    weights = mixtures(6, 0)
    with pytest.raises(DataError, match="unique tokens domain 'law'"):
        get_surrogate("scaling_effective", unique_tokens={"code": 1e6, "web": 1e6}).fit(
            swarm_at(Source("trained", "1M", 1000), weights[:, :1], weights), ["valid/code"]
        )


def test_transfer_is_worth_no_more_than_the_tokens_it_comes_from() -> None:
    """With a huge k every other token counts as an own one: the loss does not depend on the mixture."""
    weights = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.3, 0.3, 0.4]])
    x = np.concatenate([weights, np.zeros((3, 2))], axis=1)
    losses, _ = SftLaw((0.0, 1.0, 0.0)).evaluate(np.array([[0.0, 9.0, 0.5, -1.0, 0.0]]), x)
    np.testing.assert_allclose(losses, losses[:, :1].repeat(3, axis=1), rtol=1e-9)


def test_the_law_of_fine_tuning_is_found() -> None:
    """Runs of three budgets; unseen mixtures at a fourth, twice as large: within 3% of the spread on average."""

    def truth(weights: FloatArray, tokens: float) -> FloatArray:
        own, others = weights[:, :1] * tokens, (1 - weights[:, :1]) * tokens
        return np.asarray(0.8 + 3 * (own + np.minimum(2 * others**0.6, others)) ** -0.2)

    parts = []
    for seed, tokens in enumerate((5_000, 20_000, 60_000)):
        weights = mixtures(20, seed)
        parts.append(swarm_at(Source("trained", "7B", tokens), truth(weights, tokens), weights))
    fitted = get_surrogate("sft_law").fit(together(*parts), ["valid/code"])
    asked = mixtures(50, 8)
    expected = truth(asked, 120_000)
    found = fitted.mean(Points(DOMAINS, asked[:, None], (Source("trained", "7B", 120_000),) * 50))
    assert np.abs(found - expected).mean() < 0.03 * np.ptp(expected)


def test_metrics_of_fine_tuning_belong_to_domains() -> None:
    assert domain_of_metric("valid/code", DOMAINS) == "code"
    assert domain_of_metric("law", DOMAINS) == "law"
    assert domain_of_metric("target/qa", DOMAINS, {"target/qa": "web"}) == "web"
    with pytest.raises(DataError, match=r"'target/qa' belongs to no domain.*domain_of"):
        domain_of_metric("target/qa", DOMAINS)


def test_the_law_of_tokens_refuses_runs_of_two_sizes() -> None:
    weights = mixtures(6, 0)
    two = together(*(swarm_at(Source("trained", size, 1000), weights[:, :1], weights) for size in ("1M", "2M")))
    with pytest.raises(DataError, match=r"no term for the size.*1M, 2M.*scaling_effective"):
        get_surrogate("bimix").fit(two, ["valid/code"])


def three_sizes() -> Swarm:
    parts = []
    for seed, (size, tokens) in enumerate((("1M", 10**7), ("4M", 10**7), ("16M", 10**7))):
        weights = mixtures(20, seed)
        losses = 1.5 + 0.8 * float(size.rstrip("M")) ** -0.35 + 0.3 * (0.1 + weights[:, :1]) ** -0.3
        parts.append(swarm_at(Source("trained", size, tokens), losses, weights))
    return together(*parts)


@pytest.mark.parametrize("name", ["scaling_additive", "scaling_joint", "scaling_effective"])
def test_doubt_grows_with_distance_and_is_shared(name: str) -> None:
    """Beyond the sizes that were run the std grows, and mostly as one error of all mixtures: it cancels in their differences."""
    fitted = get_surrogate(name).fit(three_sizes(), ["valid/code"])
    asked = mixtures(10, 5)[:, None]
    std = [fitted.posterior(Points(DOMAINS, asked, (Source("trained", size, 10**7),) * 10)).std.mean() for size in ("16M", "64M", "256M")]
    assert std[0] < std[1] < std[2]
    draws = fitted.posterior(Points(DOMAINS, asked, (Source("trained", "256M", 10**7),) * 10)).sample(2000, seed=0)[:, :, 0]
    assert np.corrcoef(draws.T)[0, 1:].min() > 0.8
    count = 2000
    exact = fitted.posterior(Points(DOMAINS, asked, (Source("trained", "256M", 10**7),) * 10)).std[:, 0]
    assert (np.abs(draws.std(axis=0) / exact - 1) < 5 / np.sqrt(2 * count)).all()  # five sigma


def test_names_of_sizes_are_numbers_or_told() -> None:
    assert parameters_of("1.5B") == 1.5e9
    assert parameters_of("nano", {"nano": 3e5}) == 3e5
    assert parameters_of("70M", {"70M": 18_915_328}) == 18_915_328
    with pytest.raises(DataError, match=r"the size 'nano' has is not known.*sizes: \{nano"):
        parameters_of("nano")
    with pytest.raises(DataError, match=r"0\.0 parameters"):
        parameters_of("nano", {"nano": 0})


def test_sources_come_cheapest_first() -> None:
    weights = mixtures(4, 0)
    parts = [
        swarm_at(Source("trained", size, tokens), weights[:, :1], weights) for size, tokens in (("10M", 100), ("1M", 3000), ("1M", 10))
    ]
    assert [source.tokens for source in sources_in(together(*parts))] == [10, 100, 3000]
