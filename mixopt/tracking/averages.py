"""What answers say of averages of components: whether they were trusted, how many there are, what predictions of them are worth."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mixopt.components.config import EVALUATORS
from mixopt.tracking.findings import Findings


def predicting_evaluator(findings: Findings) -> str:
    """The evaluator that a proposal's predictions are of, where that is an average of components; else empty."""
    evidence: Mapping[str, Any] = findings.proposal.evidence if findings.proposal is not None else {}
    evaluator = str(evidence.get("source", "")).partition("/")[0]
    return evaluator if evaluator in EVALUATORS else ""


def averaged_sentence(findings: Findings) -> str:
    """What predictions are worth that are of averages of components; empty where they are of trained proxies."""
    evaluator = predicting_evaluator(findings)
    if not evaluator:
        return ""
    return (
        f"Predictions are of {evaluator} proxies, which rank mixtures and do not predict the losses of trained ones: intervals hold what the surrogate does not know of "
        "the averages, not how far these are from training; verification tells."
    )


def gate_sentence(findings: Findings) -> str:
    """Whether merged and ensembled proxies were trusted, and how many there are of each; empty where the search asked for none."""
    if findings.gate is None:
        return ""
    gate, last = findings.gate, findings.gate["attempts"][-1]
    heads = [sentences[0] for sentences in last["sentences"].values()]
    remedies = [attempt["remedy"] for attempt in gate["attempts"] if attempt["remedy"]]
    tried = f" Tried before that verdict: {', '.join(remedies)}." if remedies else ""
    instead = "" if gate["trusted"] else " The search has trained its proxies instead."
    counts = ", ".join(f"{count} {evaluator}" for evaluator, count in findings.averaged.items())
    scored = f" Scored without training: {counts}." if counts else ""
    refused = " ".join(f"{evaluator.capitalize()} proxies could not be judged: {why}" for evaluator, why in last["refused"].items())
    return " ".join(part for part in (*heads, refused) if part) + f"{tried}{instead}{scored}"
