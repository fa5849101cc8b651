"""What trials are scored on: held-out sets, at which points and on how much of them, and what that costs."""

from __future__ import annotations

from collections.abc import Sequence

from mixopt.corpus.manifest import Manifest
from mixopt.errors import ConfigError
from mixopt.runner import Evaluation
from mixopt.trial import content_digest

# Losses are measured at an eighth, a quarter, half and all of the tokens; the early points use about a quarter of the end point's windows.
EARLY_POINTS = 3
EARLY_SHARE = 0.25
EVALUATION_SHARE = 0.1
"""Largest part of a trial's training cost that measuring its losses shall take."""
# A forward pass has a third of a training step's FLOPs, but took 0.34 to 0.37 of its CPU time per token (nano and micro, packs of 4, batches of 1,024 to
# 4,096 tokens, one thread beside other work), 0.41 in batches of 512: the loss of a training step shares its exponentials with the backward pass.
FORWARD_COST = 0.4


def refuse_twin_evaluations(manifest: Manifest) -> None:
    """Held-out sets are told apart by what is scored, so none may be scored under two names.

    Raises:
        ConfigError: two held-out sets hold the same text.
    """
    held_out = [(f"the held-out set of domain '{name}'", files.kind, files.valid) for name, files in manifest.domains.items()]
    held_out += [(f"target '{name}'", target.kind, target.file) for name, target in manifest.targets.items()]
    seen: dict[tuple[str, str], str] = {}
    for owner, kind, file in held_out:
        twin = seen.setdefault((file.content_hash, kind), owner)
        if twin != owner:
            raise ConfigError(
                f"{twin[0].upper()}{twin[1:]} and {owner} hold the same text.", "Give one of them other text, or leave the target out."
            )


def evaluation_tokens(trial_tokens: int, sets: int, window: int) -> tuple[int, int]:
    """Tokens per held-out set at the end point and at each early point, so that all evaluation costs a tenth of the training.

    At least two windows at the end and one early, even where that costs more: below that a loss says nothing.
    """
    windows = EVALUATION_SHARE / FORWARD_COST * trial_tokens / sets / window
    early = max(int(windows * EARLY_SHARE / (1 + EARLY_POINTS * EARLY_SHARE)), 1)
    end = max(int(windows - EARLY_POINTS * early), 2)
    return end * window, early * window


def scored_tokens(trial_tokens: int, sets: int, window: int) -> int:
    """Tokens that a trial is scored on at all its points together, where nothing else is asked for."""
    end, early = evaluation_tokens(trial_tokens, sets, window)
    return sets * (end + EARLY_POINTS * early)


def evaluation_cost(evaluations: Sequence[Evaluation], trial_tokens: int) -> float:
    """Cost of measuring a trial at all its points, as a share of its training; sets smaller than their limits cost less."""
    tokens = sum((e.max_tokens or 0) + EARLY_POINTS * (e.curve_tokens or 0) for e in evaluations)
    return FORWARD_COST * tokens / trial_tokens


def plan_evaluations(manifest: Manifest, trial_tokens: int, window: int, end_tokens: int | None) -> tuple[Evaluation, ...]:
    """Held-out sets of the prepared corpus: text or pairs of every domain, and every target.

    Args:
        end_tokens: scored per set at the end point; None keeps the tenth of the training cost.
    """
    held_out = [(f"valid/{name}", files.kind, files.valid) for name, files in manifest.domains.items()]
    held_out += [(f"target/{name}", target.kind, target.file) for name, target in manifest.targets.items()]
    cheap, early = evaluation_tokens(trial_tokens, len(held_out), window)
    end = cheap if end_tokens is None else end_tokens
    return tuple(
        Evaluation(
            key=content_digest([file.content_hash, kind, window, end, early]),
            metric=metric,
            kind=kind,
            path=manifest.absolute(file),
            max_tokens=end,
            curve_tokens=min(early, end),
            curve_key=content_digest([file.content_hash, kind, window, min(early, end), "curve"]),
        )
        for metric, kind, file in held_out
    )
