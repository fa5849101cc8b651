"""What makes two searches the same."""

from __future__ import annotations

from collections.abc import Mapping

from mixopt.factory import TrialFactory
from mixopt.groups.rules import rules_identity
from mixopt.trial import JsonValue, content_digest


def search_identity(
    factory: TrialFactory, objective: Mapping[str, JsonValue], strategy: str, options: Mapping[str, JsonValue], seed: int
) -> str:
    """Content hash of a search.

    It covers the space (domains by name and content, their tokens, caps and bounds in the target corpus, the budget, what the rules on
    groups and the limits on the whole mean for domains), the objective, the strategy, and all that its trials share. Groups without rules are labels
    and stay out. It leaves out the number of trials, batches, verification, tracking, Ray and paths, so that changing those continues the search.
    Trials that begin with others' weights bring these trials in.

    Args:
        factory: makes the trials of this search; gives domains, source, recipe, tokenizer and engine.
        objective, options: JSON values; `objective` names targets by content hash and weight, `options` holds the surrogate.
    """
    space = [
        # Repetition enters only where there is any, so that searches from before it was known keep their identity.
        [d.name, d.content_hash, d.target_tokens, d.max_epochs, list(d.bounds), *([d.repeats] if d.repeats != 1 else [])]
        for d in sorted(factory.domains.domains, key=lambda domain: domain.name)
    ]
    groups = rules_identity(factory.domains.group_paths, factory.domains.units, factory.domains.rules)
    return content_digest(
        {
            **({"groups": groups} if groups else {}),
            **({"constraints": factory.domains.constraints.identity()} if factory.domains.constraints else {}),
            **({"inputs": sorted(factory.inputs)} if factory.inputs else {}),
            "space": space,
            "budget_tokens": factory.domains.budget_tokens,
            "objective": dict(objective),
            "strategy": [strategy, dict(options)],
            "source": factory.source.key,
            "recipe": dict(factory.recipe),
            "tokenizer": factory.tokenizer_hash,
            "engine": factory.engine_version,
            "seed": seed,
        }
    )
