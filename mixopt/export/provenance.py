"""Where an exported mixture comes from: enough to find the search again, to check the data, and to judge the claim.

Written into every export: in the body of data formats, as comments where the syntax has them, in `provenance.json` where it has none. It
holds no time and no path, so that the same mixture always gives the same bytes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import mixopt
from mixopt.export.base import WEIGHT_DECIMALS, ExportInput, decimal_weights, epochs_by_domain
from mixopt.groups.rules import weights_per_level

SIDECAR_NAME = "provenance.json"
NOT_VERIFIED = "Not verified: no larger proxies were trained on this mixture."


def provenance(request: ExportInput) -> dict[str, Any]:
    """The provenance as JSON values; weights are averages over the run where there are several phases."""
    context = request.context
    average = request.schedule.average()
    epochs = epochs_by_domain(context, average)
    weights = decimal_weights(average.as_dict())
    tokenizer = context.get("tokenizer") or {}
    groups = _groups(request, average.as_dict())
    return {
        "search": context.get("name", ""),
        "search_id": request.search_id,
        "experiment_hash": context.get("experiment_hash", ""),
        "mixopt_version": mixopt.__version__,
        "arm": request.arm,
        "verification": request.verification.sentence if request.verification else NOT_VERIFIED,
        "predicted_objective": _predicted(request),
        "objective": dict(context.get("objective") or {}),
        "budget_tokens": float(context["budget_tokens"]),
        **({"beginning": context["beginning"]} if context.get("beginning") else {}),
        **({"averages": averages} if (averages := _averages(context)) else {}),
        **({"groups": groups} if groups else {}),
        "tokenizer": {key: tokenizer[key] for key in ("hash", "vocab_size") if key in tokenizer},
        "domains": {
            domain["name"]: {
                "weight": float(weights.get(domain["name"], "0")),
                "epochs": round(epochs[domain["name"]], 6),
                "max_epochs": float(domain["max_epochs"]),
                "target_tokens": float(domain["target_tokens"]),
                "content_hash": domain["content_hash"],
            }
            for domain in context["domains"]
        },
    }


def provenance_json(request: ExportInput) -> str:
    """The provenance as the text of `provenance.json`."""
    return json.dumps(provenance(request), indent=2, ensure_ascii=False) + "\n"


def provenance_comment(request: ExportInput) -> str:
    """The provenance as lines that start with `#`; every value is JSON on one line, so no name can break out of its comment."""
    lines = ["Made by mixopt. Weights are shares of tokens."]
    for key, value in provenance(request).items():
        if key in ("domains", "groups"):
            lines += [f"{key[:-1]} {json.dumps(name)}: {json.dumps(entry)}" for name, entry in value.items()]
        else:
            lines.append(f"{key}: {json.dumps(value)}")
    return "".join(f"# {line}\n" for line in lines)


def _averages(context: Mapping[str, Any]) -> dict[str, Any]:
    """Which proxies of no training of their own the search asked, and that the exported weights are of data, the components' general share included."""
    found = context.get("components")
    if not found:
        return {}
    return {**found, "weights": "data mixture; the general share of components is in it"}


def _groups(request: ExportInput, weights: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Weight of every group, its share of the group around it, and its natural weight; empty without groups."""
    domains = request.context["domains"]
    paths = {domain["name"]: domain.get("group", "") for domain in domains}
    total = math.fsum(float(domain["target_tokens"]) for domain in domains)
    natural = {domain["name"]: float(domain["target_tokens"]) / total for domain in domains}
    return {
        row.path: {
            "weight": round(row.weight, WEIGHT_DECIMALS),
            "of_parent": round(row.share, WEIGHT_DECIMALS),
            "natural": round(row.natural, 6),
        }
        for row in weights_per_level(paths, weights, natural)
    }


def _predicted(request: ExportInput) -> dict[str, float] | None:
    """The predicted difference to natural, where the exported mixture is the proposal itself."""
    if request.proposal is None or request.proposal.schedule != request.schedule:
        return None
    effect = request.proposal.objective
    return {"mean": effect.mean, "low": effect.low, "high": effect.high}
