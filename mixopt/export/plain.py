"""YAML and JSON: the mixture as data, for trainers without an exporter of their own and for people.

Both hold the same document. It can express any schedule, and carries its provenance in the body.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from mixopt.export.base import ExportInput, decimal_weights, epochs_by_domain
from mixopt.export.provenance import provenance, provenance_comment

FORMAT_VERSION = 1


def mixture_document(request: ExportInput) -> dict[str, Any]:
    """The mixture as JSON values: phases with positive weights by domain, epochs, domains left out, provenance."""
    phases: list[dict[str, Any]] = [
        {"fraction": fraction, "weights": {name: float(weight) for name, weight in decimal_weights(mixture.as_dict()).items()}}
        for mixture, fraction in zip(request.schedule.mixtures, request.schedule.fractions, strict=True)
    ]
    used = {name for phase in phases for name in phase["weights"]}
    epochs = epochs_by_domain(request.context, request.schedule.average())
    return {
        "format": "mixopt-mixture",
        "version": FORMAT_VERSION,
        "unit": "tokens",
        "budget_tokens": float(request.context["budget_tokens"]),
        "phases": phases,
        "epochs": {name: round(value, 6) for name, value in epochs.items() if name in used},
        "left_out": [name for name in request.schedule.domains if name not in used],
        "provenance": provenance(request),
    }


@dataclass(frozen=True)
class YamlExporter:
    name: str = "yaml"
    description: str = "The mixture with epochs and provenance as one YAML file."
    options: Mapping[str, str] = field(default_factory=dict)
    phases: bool = True

    def render(self, request: ExportInput) -> dict[str, str]:
        body = mixture_document(request)
        del body["provenance"]  # YAML has comments; what a trainer parses stays small
        return {"mixture.yaml": provenance_comment(request) + yaml.safe_dump(body, sort_keys=False, allow_unicode=True)}


@dataclass(frozen=True)
class JsonExporter:
    name: str = "json"
    description: str = "The mixture with epochs and provenance as one JSON file."
    options: Mapping[str, str] = field(default_factory=dict)
    phases: bool = True

    def render(self, request: ExportInput) -> dict[str, str]:
        return {"mixture.json": json.dumps(mixture_document(request), indent=2, ensure_ascii=False) + "\n"}


EXPORTERS = (YamlExporter(), JsonExporter())
