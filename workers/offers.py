"""The sources that a search may run trials at: what they are, what a trial of each costs, and what is wrong with them.

Sources of one search share everything but size and tokens. The main trade-off: they are all trained from scratch, since what a continued or
upcycled proxy begins with would have to be trained once for every size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from mixopt.components.config import EVALUATORS
from mixopt.config import Experiment
from mixopt.errors import ConfigError
from mixopt.factory import MakeTrial, TrialFactory
from mixopt.mixture import Schedule
from mixopt.strategies import strategy_names, takes_averages, takes_sources
from mixopt.strategies.base import Offer
from mixopt.surrogates import get_surrogate
from mixopt.surrogates.base import Surrogate, takes_several_sizes, takes_several_sources
from mixopt.trial import Source, Trial
from proxy_models.config import SIZES, proxy_config
from workers.evaluations import FORWARD_COST, scored_tokens

GATE_REPEATS = 2
"""Seeds of natural and uniform that the trials of a gate hold beyond its mixtures: the search's usual beginning, from which noise is known."""


LEFT_TO_USE = 4
"""Trials that a budget has to leave beside components and gate, for averages and for what is learned from them."""


def trial_flops(source: Source, vocab_size: int, window: int, sets: int) -> float:
    """FLOPs of training a trial and of measuring its losses on so many held-out sets, of which few tokens are a fixed part of any trial's cost."""
    scored = scored_tokens(source.tokens, sets, window)
    return proxy_config(source.size, vocab_size).training_flops_per_token(window) * (source.tokens + FORWARD_COST * scored)


def average_flops(experiment: Experiment, evaluator: str, vocab_size: int) -> float:
    """FLOPs of scoring one merged or ensembled trial: the forward passes of the search's held-out sets, or a few operations per token and component."""
    proxy, components = experiment.proxy, len(experiment.domains)
    scored = scored_tokens(proxy.tokens, held_out_sets(experiment), proxy.window)
    if evaluator == "ensemble":
        return 4.0 * scored * components
    config = proxy_config(proxy.size, vocab_size)
    return FORWARD_COST * scored * config.training_flops_per_token(proxy.window) + 2.0 * components * config.parameters().total


def components_flops(experiment: Experiment, tokens: int, vocab_size: int) -> float:
    """FLOPs of training one component per domain for so many tokens, and of scoring it as every trial is."""
    proxy = experiment.proxy
    one = trial_flops(Source("trained", proxy.size, tokens), vocab_size, proxy.window, held_out_sets(experiment))
    return one * len(experiment.domains)


def held_out_sets(experiment: Experiment) -> int:
    """How many sets trials are scored on: one per domain, and the targets."""
    return len(experiment.domains) + len(experiment.targets)


def search_sources(experiment: Experiment, vocab_size: int) -> list[Source]:
    """Those of `search.sources`, the cheapest first, and then `proxy`, where the answer is wanted."""
    proxy, sets = experiment.proxy, held_out_sets(experiment)
    cheaper = [Source("trained", one.size, one.tokens) for one in experiment.search.sources]
    return [*sorted(cheaper, key=lambda one: trial_flops(one, vocab_size, proxy.window, sets)), Source("trained", proxy.size, proxy.tokens)]


def check_sources(experiment: Experiment) -> None:
    """Looks at `search.sources` before a document is read.

    Raises:
        ConfigError: an unknown size, a source named twice, one that is also the verification's, one that costs as much as `proxy` does, too few
            tokens, trials that do not begin from scratch, or a strategy or surrogate of one source.
    """
    proxy, check, given = experiment.proxy, experiment.verification, experiment.search.sources
    if experiment.search.evaluators:
        _check_takes(experiment, "search.evaluators", several_sizes=False)
        _check_affords(experiment)
    if not given:
        return
    for place, one in enumerate(given):
        if one.size not in SIZES:
            raise ConfigError(f"`search.sources.{place}.size` is '{one.size}', which is no size.", f"Choose one of {', '.join(SIZES)}.")
        if one.tokens < 8 * proxy.tokens_per_step:
            raise ConfigError(
                f"`search.sources.{place}.tokens` are {one.tokens:,}, fewer than 8 steps of {proxy.tokens_per_step}.",
                "Raise them, or lower `proxy.tokens_per_step`.",
            )
    vocab_size, sets = experiment.tokenizer.vocab_size, held_out_sets(experiment)
    sources = search_sources(experiment, vocab_size)
    costs = [trial_flops(source, vocab_size, proxy.window, sets) for source in sources]
    if len(set(sources)) < len(sources):
        raise ConfigError(
            f"`search.sources` names a source twice: {', '.join(source.key for source in sources)}.", "`proxy` is one of them."
        )
    if costs[-2] >= costs[-1]:
        raise ConfigError(
            f"A trial of {sources[-2].key} costs as much as one of {sources[-1].key}, where the answer is wanted.",
            "`search.sources` are cheaper than `proxy`; exchange them, or leave it out.",
        )
    if check.enabled and Source("trained", check.size, check.tokens) in sources:
        raise ConfigError(
            f"`verification` trains the same proxies as `search.sources` ({check.size}, {check.tokens:,} tokens).",
            "Give it a larger size or more tokens, or set `enabled: false`.",
        )
    if proxy.beginning.kind != "scratch":
        raise ConfigError(
            f"`search.sources` are given, and trials are {proxy.beginning.kind}.",
            "Leave one out: trials of several sources begin from scratch.",
        )
    _check_takes(experiment, "search.sources", several_sizes=len({source.size for source in sources}) > 1)


def _check_affords(experiment: Experiment) -> None:
    """Whether the budget leaves something beside components and the trials of the gate.

    Raises:
        ConfigError: it does not.
    """
    proxy, vocab_size = experiment.proxy, experiment.tokenizer.vocab_size
    one = trial_flops(Source("trained", proxy.size, proxy.tokens), vocab_size, proxy.window, held_out_sets(experiment))
    components = components_flops(experiment, experiment.component_tokens, vocab_size) / one
    trials, gate, share = experiment.search.trials, experiment.components.gate + GATE_REPEATS, experiment.components.most_share
    if components > share * trials:
        raise ConfigError(
            f"{len(experiment.domains)} components cost as much as {components:.3g} trials, more than `components.most_share` ({share:g}) of {trials} allows.",
            f"Set `search.trials` to {math.ceil(components / share)} or more, or lower `components.tokens`.",
        )
    least = math.ceil(components) + gate + LEFT_TO_USE
    if least > trials:
        raise ConfigError(
            f"`search.trials` is {trials}, and {len(experiment.domains)} components cost as much as {components:.3g} trials, beside {gate} of the gate.",
            f"Set `search.trials` to {least} or more, lower `components.tokens`, or leave `search.evaluators` out.",
        )


def _check_takes(experiment: Experiment, place: str, several_sizes: bool) -> None:
    """Whether strategy and surrogate take trials of several sources. Raises ConfigError as `check_sources`."""
    surrogate = get_surrogate(experiment.search.surrogate)
    if not takes_several_sources(surrogate) or (several_sizes and not takes_several_sizes(surrogate)):
        what = "source" if not takes_several_sources(surrogate) else "size"
        raise ConfigError(
            f"`{place}` are given, but the surrogate '{experiment.search.surrogate}' takes runs of one {what} only.",
            "Set `surrogate: auto`, `multi_source_gp`, or, beside evaluators, `expert_ensemble`.",
        )
    takes = takes_averages if place == "search.evaluators" else takes_sources
    if not takes(experiment.search.strategy):
        able = ", ".join(name for name in strategy_names() if takes(name))
        raise ConfigError(
            f"`{place}` are given, and the strategy '{experiment.search.strategy}' runs trials of `proxy` only.",
            f"Leave them out, or take one of the strategies {able}.",
        )


def foreseen_offers(experiment: Experiment) -> tuple[Offer, ...]:
    """The offers of a search before anything is prepared; they make no trials."""
    vocab_size, trainer = experiment.tokenizer.vocab_size, experiment.trainer
    if trainer is not None:
        return (Offer(Source("command", trainer.name, trainer.tokens), _unmade, 1.0),)
    window, sets, proxy = experiment.proxy.window, held_out_sets(experiment), experiment.proxy
    averages = [Source(name, proxy.size, experiment.component_tokens) for name in reversed(EVALUATORS)]
    foreseen = tuple(
        replace(_offer(one, _unmade, vocab_size, window, sets), cost=average_flops(experiment, one.evaluator, vocab_size))
        for one in averages
        if one.evaluator in experiment.search.evaluators
    )
    return foreseen + tuple(_offer(source, _unmade, vocab_size, window, sets) for source in search_sources(experiment, vocab_size))


def _unmade(schedule: Schedule, seed: int, label: str) -> Trial:
    raise AssertionError("a trial's identity needs prepared tokens")


def surrogate_for(name: str, offers: Sequence[Offer]) -> Surrogate:
    """The surrogate of that name, which knows how large the proxies of each source are if there are several."""
    plain = get_surrogate(name)
    if len(offers) == 1 or not takes_several_sizes(plain):
        return plain
    return get_surrogate(name, sizes={offer.source.size: offer.parameters for offer in offers})


def offers_of(factories: Sequence[TrialFactory], sets: int) -> tuple[Offer, ...]:
    """What each factory offers, in the same order: cheapest first, the one where the answer is wanted last.

    Args:
        sets: that trials are scored on.
    """
    return tuple(_offer(one.source, one.make, int(one.recipe["vocab_size"]), int(one.recipe["window"]), sets) for one in factories)


def _offer(source: Source, make: MakeTrial, vocab_size: int, window: int, sets: int) -> Offer:
    parameters = proxy_config(source.size, vocab_size).parameters()
    return Offer(source, make, trial_flops(source, vocab_size, window, sets), parameters.active)
