"""Domains with their token counts in the target corpus, and what follows from them: natural mixture, epochs, caps, UniMax.

Two inventories meet here. The *target* inventory (`target_tokens`) is what the full-scale run draws from; the *prepared* tokens are what the
proxies train on. A proxy sees `target_tokens * proxy_tokens / budget_tokens` unique tokens of a domain, so that it repeats the domain as
often as the target run would (methods: repetition mismatch, arXiv 2606.07597).

Inventories often list a domain after upsampling, every document `repeats` times. Its weight in the natural mixture is then that of the listed
tokens, for that is what the run would draw from; epochs, caps and a proxy's unique tokens are over the unique ones, `target_tokens / repeats`.

Of prompt/completion pairs all tokens count, prompts too, though only completions are trained on: they are seen, and they are what a run of so many tokens pays
for. A share of a mixture is a share of training windows, in which the little filling after the last pair counts as its domain's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from mixopt.constraints.rules import ANYTHING, Constraints
from mixopt.errors import ConfigError, InfeasibleError
from mixopt.groups.rules import GroupRule, Units, check_rules, units_of
from mixopt.mixture import FloatArray, Mixture

if TYPE_CHECKING:
    from mixopt.corpus.config import DomainConfig

# Below this many unique windows a proxy memorizes the domain within a few steps; such domains are floored, and listed as floored.
MINIMUM_UNIQUE_WINDOWS = 64
# Caps may miss the budget by float error and no more: domains that fill it exactly are a mixture, the only one.
CAPS_WITHIN = 1e-9


# Before anything is prepared: mean of 14 domains of real text, from 2.1 (Chinese) to 3.4 (contracts), with a trained tokenizer of 4,096 entries;
# of 8,192 entries a tenth more.
ASSUMED_BYTES_PER_TOKEN = 2.8

TokenCountSource = Literal["given", "counted", "estimated"]


@dataclass(frozen=True)
class Domain:
    """One training domain.

    Attributes:
        content_hash: of the prepared training text.
        prepared_tokens: tokens at hand for proxies.
        target_tokens: tokens of this domain in the target corpus, with the repetition that its inventory already counts.
        group: path of levels as `web/science`, empty for none.
        max_epochs: how often the target run may repeat the domain's unique tokens.
        repeats: how many times `target_tokens` hold every document.
        token_count_source: whether `target_tokens` were given, counted by tokenizing, or estimated from bytes.
        packed_tokens: of a domain of prompt/completion pairs: tokens of all training windows that they fill, filling included; 0 for text.
        bounds: least and largest weight asked for by the user.
    """

    name: str
    content_hash: str
    prepared_tokens: int
    target_tokens: float
    group: str = ""
    max_epochs: float = 4.0
    bounds: tuple[float, float] = (0.0, 1.0)
    repeats: float = 1.0
    token_count_source: TokenCountSource = "given"
    packed_tokens: int = 0

    @property
    def unique_target_tokens(self) -> float:
        """Tokens of the target corpus with every document once."""
        return self.target_tokens / self.repeats


@dataclass(frozen=True)
class UniqueTokens:
    """Unique tokens a proxy may see of one domain. `note` is "floored", "capped" or "" (matches the target run's epochs)."""

    tokens: int
    note: str = ""


@dataclass(frozen=True)
class DomainSet:
    """The domains of a search at a target budget.

    Attributes:
        domains: in the order of the experiment file; names are distinct.
        budget_tokens: tokens of the target run.
        rules: on groups of the domains; see `mixopt.groups.rules`.
        constraints: on the mixture as a whole.

    Raises:
        ConfigError: fewer than two domains, names repeat, or a rule does not fit the groups.
    """

    domains: tuple[Domain, ...]
    budget_tokens: float
    rules: tuple[GroupRule, ...] = ()
    constraints: Constraints = ANYTHING

    def __post_init__(self) -> None:
        if len(self.domains) < 2:
            raise ConfigError(f"A mixture needs at least two domains, got {len(self.domains)}.", "List them under `domains:`.")
        if len(set(self.names)) != len(self.names):
            raise ConfigError(f"Domain names repeat: {', '.join(self.names)}.", "Give every domain its own name.")
        check_rules(self.group_paths, self.rules)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(domain.name for domain in self.domains)

    @property
    def group_paths(self) -> dict[str, str]:
        """Domain -> path of its group."""
        return {domain.name: domain.group for domain in self.domains}

    @cached_property
    def units(self) -> Units:
        """What a search moves: domains, and groups of given shares.

        Raises:
            ConfigError: all domains lie in one such group.
        """
        tokens = {domain.name: domain.target_tokens for domain in self.domains}
        return units_of(self.group_paths, tokens, self.rules)

    @property
    def target_tokens(self) -> FloatArray:
        """Tokens in the target corpus, shape (domains,)."""
        return np.array([domain.target_tokens for domain in self.domains], dtype=np.float64)

    @property
    def unique_target_tokens(self) -> FloatArray:
        """Tokens in the target corpus with every document once, shape (domains,)."""
        return np.array([domain.unique_target_tokens for domain in self.domains], dtype=np.float64)

    def natural(self) -> Mixture:
        """Weights proportional to the tokens of the target corpus."""
        return Mixture.from_array(self.names, self.target_tokens / self.target_tokens.sum())

    def uniform(self) -> Mixture:
        """Equal weights."""
        return Mixture.from_array(self.names, np.full(len(self.domains), 1 / len(self.domains)))

    def unimax(self) -> Mixture:
        """As uniform as the epoch caps allow: UniMax (arXiv 2304.09151, algorithm 1) with each domain's own `max_epochs`.

        Raises:
            InfeasibleError: all domains at their caps together are smaller than the budget.
        """
        limits = self.epoch_limits()
        if limits.sum() < 1 - CAPS_WITHIN:
            raise InfeasibleError(
                f"At their epoch caps all domains together give {limits.sum() * self.budget_tokens:.3g} tokens, "
                f"less than the budget of {self.budget_tokens:.3g}.",
                "Raise `max_epochs` of some domain or lower `budget_tokens`.",
            )
        weights = np.zeros(len(self.domains))
        remaining = 1.0
        order = np.argsort(limits, kind="stable")
        for rank, index in enumerate(order):
            share = remaining / (len(order) - rank)
            weights[index] = min(share, limits[index])
            remaining -= weights[index]
        return Mixture.from_array(self.names, weights / weights.sum())

    def epoch_limits(self) -> FloatArray:
        """Largest weight that keeps each domain within `max_epochs`, shape (domains,); may exceed 1."""
        allowed = np.array([domain.max_epochs for domain in self.domains])
        return np.asarray(allowed * self.unique_target_tokens / self.budget_tokens, dtype=np.float64)

    def epochs(self, mixture: Mixture) -> dict[str, float]:
        """How often the target run repeats each domain's unique tokens under `mixture`."""
        weights = mixture.array(self.names)
        return dict(zip(self.names, (weights * self.budget_tokens / self.unique_target_tokens).tolist(), strict=True))

    def unique_tokens(self, trial_tokens: int, window: int, only: Sequence[str] | None = None) -> dict[str, UniqueTokens]:
        """Unique tokens per domain for a proxy of `trial_tokens`, so that it repeats domains as often as the target run.

        The count is floored at 64 windows and capped by what was prepared. Counts for different `trial_tokens` are nested subsets, because
        the sampler takes the first so many windows of one fixed order.
        """
        result: dict[str, UniqueTokens] = {}
        floor = MINIMUM_UNIQUE_WINDOWS * window
        for domain in self.domains:
            if only is not None and domain.name not in only:
                continue
            matched = int(domain.unique_target_tokens * trial_tokens / self.budget_tokens)
            # A whole number of windows: what the sampler can use, and what identity should depend on.
            wanted = max(matched, floor) // window * window
            # The last token of a window of text is the first of the next, or one more token at the end; windows of pairs share none.
            available = max((domain.packed_tokens or domain.prepared_tokens - 1) // window, 1) * window
            tokens = min(wanted, available)
            note = "capped" if tokens < matched // window * window else "floored" if tokens > matched else ""
            result[domain.name] = UniqueTokens(tokens, note)
        return result


def unique_tokens_of(domain: Mapping[str, Any]) -> float:
    """Unique tokens of a domain of the target corpus, from its entry in a search's stored context; older ones know no repetition."""
    return float(domain["target_tokens"]) / float(domain.get("repeats", 1.0))


def inventory_of(domain: DomainConfig, prepared_tokens: float, prepared_bytes: float) -> tuple[float, TokenCountSource]:
    """Tokens of a domain in the target corpus, and how they are known.

    Counts and estimates are in tokens of the proxies' tokenizer: an estimate takes the bytes per token of the prepared training text, or an
    assumed rate where nothing is known of that yet.
    """
    if domain.bytes is not None:
        bytes_per_token = prepared_bytes / prepared_tokens if prepared_bytes and prepared_tokens else ASSUMED_BYTES_PER_TOKEN
        return domain.bytes / bytes_per_token, "estimated"
    if isinstance(domain.tokens, float):
        return domain.tokens, "given"
    return float(prepared_tokens), "counted"
