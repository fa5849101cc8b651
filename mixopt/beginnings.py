"""What the trials of a search begin with, in words: from the search's stored context, for everything that shows it.

The context names the run that trials begin with and how it was trained. The main trade-off: it describes the base at both sizes of a search, though most
readers ask about the first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mixopt.trial import Trial

BASE_LABEL = "base"
"""Label of trials that were trained for others to begin with."""

# Domains of a base's mixture that a sentence names.
NAMED_DOMAINS = 4


def base_json(trial: Trial, mixture: str | None) -> dict[str, Any]:
    """A base for a search's context.

    Args:
        mixture: its name, as natural; None: told by weights.
    """
    weights = trial.schedule.average().as_dict()
    return {
        "trial": trial.trial_id,
        "size": trial.source.size,
        "tokens": trial.source.tokens,
        "seed": trial.seed,
        "mixture": mixture,
        "weights": {name: round(weight, 6) for name, weight in weights.items() if weight > 0},
    }


def base_sentence(base: Mapping[str, Any]) -> str:
    """Which run it is, as part of a sentence: `1a2b3c4d (nano, 1,000,000 tokens of the natural mixture, seed 0)`."""
    if base["mixture"]:
        mixture = f"the {base['mixture']} mixture"
    else:
        largest = sorted(base["weights"].items(), key=lambda item: (-item[1], item[0]))
        mixture = ", ".join(f"{weight:.1%} {name}" for name, weight in largest[:NAMED_DOMAINS])
        mixture += " and others" if len(largest) > NAMED_DOMAINS else ""
    return f"{base['trial'][:8]} ({base['size']}, {base['tokens']:,} tokens of {mixture}, seed {base['seed']})"


def beginning_sentence(context: Mapping[str, Any]) -> str:
    """What the trials of a search begin with; empty where that is from scratch."""
    beginning = context.get("beginning")
    if not beginning:
        return ""
    bases = beginning["bases"]
    text = f"Every trial begins with the weights of trial {base_sentence(bases['search'])}"
    if beginning["kind"] == "upcycled":
        text += (
            f", whose dense layers become experts; {beginning['reinitialized']:.0%} of the hidden units of every routed expert are drawn anew "
            "by the trial's seed"
        )
    text += "; optimizer and learning-rate schedule begin anew, and a trial's seed decides the order of its data."
    check = bases.get("verification")
    if check and check["trial"] != bases["search"]["trial"]:
        text += f" Verification runs begin with trial {base_sentence(check)}."
    return text


def trial_beginning(trial: Trial) -> str:
    """What one trial begins with, in few words: `scratch`, `continued from 1a2b3c4d`."""
    if not trial.inputs:
        return "scratch"
    if trial.recipe.get("merge"):
        how = "merged from" if trial.source.evaluator == "merged" else "ensemble of"
        return f"{how} {len(trial.recipe['merge']['weights'])} components of {str(trial.recipe['merge']['base'])[:8]}"
    kind = (trial.recipe.get("beginning") or {}).get("kind", "begun")
    return f"{kind} from {', '.join(parent[:8] for parent in trial.inputs)}"
