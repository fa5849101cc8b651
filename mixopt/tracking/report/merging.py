"""The section of the report on merged and ensembled proxies: whether they were trusted, what was tried, and what they say beside trained ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mixopt.tracking.averages import gate_sentence
from mixopt.tracking.findings import Findings
from mixopt.tracking.report.blocks import Notes, Prose, Section, Table


def merging_sections(findings: Findings) -> list[Section]:
    """The section, where the search asked for such proxies."""
    gate = findings.gate
    if gate is None:
        return []
    blocks: list[Any] = [Prose(gate_sentence(findings)), _attempts_table(gate)]
    last = gate["attempts"][-1]
    for evaluator, sentences in last["sentences"].items():
        blocks += [Prose(f"{evaluator.capitalize()}:"), Notes(sentences)]
    reasons = [f"Components {number}: {sentence}" for number, one in enumerate(gate["attempts"], 1) for sentence in one.get("why", ())]
    if reasons:
        blocks.append(Notes(reasons))
    if gate["ended"]:
        blocks.append(Notes(gate["ended"]))
    if last["refused"]:
        blocks.append(Notes([f"{evaluator} could not be judged: {why}" for evaluator, why in last["refused"].items()]))
    ranks = _ranks_table(last)
    return [Section("merging", "Merged proxies", [*blocks, *([ranks] if ranks is not None else [])])]


def _attempts_table(gate: Mapping[str, Any]) -> Table:
    rows = []
    for number, attempt in enumerate(gate["attempts"], start=1):
        making = attempt["making"]
        settings = [f"{making['tokens']:,}", f"{making['general']:.0%}", "frozen" if making["frozen_router"] else "trained"]
        scores = ", ".join(
            f"{verdict['evaluator']} {verdict['score']:.2f} of {verdict['needed']:.2f}{'' if verdict['trusted'] else ' (not trusted)'}"
            for verdict in attempt["verdicts"]
        )
        rows.append([str(number), attempt["remedy"] or "as the file says", *settings, f"{attempt['flops']:.2e}", scores])
    head = ["components", "changed", "tokens each", "general data", "routers", "FLOPs", "score, of what is asked"]
    return Table("Components that were trained, and how their averages rank the mixtures of the gate", head, rows, words=[1, 4, 6])


def _ranks_table(attempt: Mapping[str, Any]) -> Table | None:
    """Rank correlation with the trained proxies, by metric."""
    verdicts = attempt["verdicts"]
    if not verdicts:
        return None
    rows = []
    for place, metric in enumerate(verdicts[0]["metrics"]):
        shown = [verdict["metrics"][place] for verdict in verdicts]
        rows.append(
            [metric["of"], *(f"{one['spearman']:.2f} ({one['low']:.2f} to {one['high']:.2f})" for one in shown), f"{metric['ceiling']:.2f}"]
        )
    head = ["metric", *(verdict["evaluator"] for verdict in verdicts), "a perfect one"]
    caption = "Spearman with the trained proxies at the mixtures of the gate, with 90% intervals over mixtures"
    return Table(caption, head, rows, folded="Rank correlation by metric")
