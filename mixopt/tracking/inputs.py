"""The data that runs of a search were trained and scored on, as MLflow's dataset inputs.

A dataset is a name and a content hash, so a domain that changed shows as another dataset of the same name, and MLflow's filter by dataset finds
every run that used these documents. Token and document counts are its profile. The main trade-off: the digest is of the documents, not
of the few windows of them that a proxy saw; those follow from the trial's seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from mixopt.tracking.findings import Findings

TRAINING, EVALUATION = "training", "evaluation"
# MLflow refuses digests of more than 36 characters (mlflow/utils/validation.py); 16 hexadecimal digits tell a team's corpora apart.
DIGEST_CHARACTERS = 16


@dataclass(frozen=True)
class Input:
    """One dataset of a run.

    Attributes:
        name: of the domain or target; held-out text of a domain is `valid/<domain>`, a target `target/<name>`.
        digest: first digits of the content hash.
        context: "training" or "evaluation".
        source: where the documents come from, as the experiment file says; empty: not known.
        facts: documents, tokens, bytes.
    """

    name: str
    digest: str
    context: str
    source: str
    facts: tuple[tuple[str, int], ...]


def search_inputs(findings: Findings) -> tuple[Input, ...]:
    """Everything that the search may train on, then everything that it is scored on."""
    return _domains(findings, findings.domains) + _held_out(findings)


def trial_inputs(findings: Findings, weights: Mapping[str, float]) -> tuple[Input, ...]:
    """The domains that a trial gives weight to, then the sets that its objective counts; the others are told by the search only.

    Each input of each run costs MLflow three milliseconds, and every trial is scored on the same sets.
    """
    counted = (findings.context.get("objective") or {}).get("weights") or {}
    scored = [item for item in _held_out(findings) if item.name in counted]
    return _domains(findings, [name for name in findings.domains if weights.get(name, 0.0) > 0]) + tuple(scored)


def _domains(findings: Findings, names: Sequence[str]) -> tuple[Input, ...]:
    sources = _sources(findings, "domains")
    known = {domain["name"]: domain for domain in findings.context["domains"]}
    facts = {"documents": "prepared_documents", "tokens": "prepared_tokens", "bytes": "prepared_bytes"}
    return tuple(
        Input(
            name=name,
            digest=known[name]["content_hash"][:DIGEST_CHARACTERS],
            context=TRAINING,
            source=sources.get(name, ""),
            facts=tuple((fact, int(known[name][key])) for fact, key in facts.items() if key in known[name]),
        )
        for name in names
    )


def _held_out(findings: Findings) -> tuple[Input, ...]:
    """Held-out text of the domains and targets; nothing for a record that an earlier version wrote, which does not say what they held."""
    domains, targets = _sources(findings, "domains"), _sources(findings, "targets")
    sets = [(f"valid/{d['name']}", d["held_out"], domains.get(d["name"], "")) for d in findings.context["domains"] if "held_out" in d]
    sets += [(f"target/{t['name']}", t, targets.get(t["name"], "")) for t in findings.context.get("targets") or ()]
    return tuple(
        Input(
            name=name,
            digest=body["content_hash"][:DIGEST_CHARACTERS],
            context=EVALUATION,
            source=source,
            facts=tuple((fact, int(body[fact])) for fact in ("documents", "tokens", "bytes")),
        )
        for name, body, source in sets
    )


def _sources(findings: Findings, section: str) -> dict[str, str]:
    """Name -> where the documents are, from the resolved experiment file. Read as plain YAML: another version may have written it."""
    entries = (yaml.safe_load(findings.search.experiment_yaml) or {}).get(section) or ()
    return {str(entry["name"]): _place(entry.get("path") or entry.get("hub") or "") for entry in entries}


def _place(value: Any) -> str:
    """Paths or addresses as they are; a data set of the hub by its id, configuration and split."""
    if isinstance(value, Mapping):
        parts = [str(value[key]) for key in ("dataset", "config", "split") if value.get(key)]
        return f"hf://datasets/{'/'.join(parts)}"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
