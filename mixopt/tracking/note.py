"""The answer in words: what to train on, how sure that is, what holds it back. Markdown for people, MLflow and `answer.md`.

The first sentence is the answer; tables follow in the order in which a reviewer asks. Everything comes from the record, so the answer can be
written again at any time.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mixopt.history import History
from mixopt.proposal import Effect, Proposal
from mixopt.tracking.findings import ARM_TITLES, Findings, read_findings
from mixopt.verification import MEAN_BITS_PER_BYTE, OBJECTIVE, Comparison

# Domains named in the first sentence; the table has them all.
NAMED_DOMAINS = 4
_METRIC_TITLES = {MEAN_BITS_PER_BYTE: "mean of the objective's metrics"}


def write_answer(path: Path, history: History, search_id: str) -> Path:
    """Writes the answer of a search as Markdown; a reader never sees half of it.

    Raises:
        DataError: the record does not hold the search.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(answer_markdown(read_findings(history, search_id)), encoding="utf-8")
    os.replace(temporary, path)
    return path


def answer_markdown(findings: Findings) -> str:
    """The answer, or how far the search is while there is none."""
    parts = [f"# {findings.search.name}", answer_sentence(findings)]
    proposal = findings.proposal
    if proposal is not None:
        parts += [
            _mixture_table(findings, proposal),
            _verification(findings),
            _constraints(findings, proposal),
            _effects(findings, proposal),
        ]
    parts += [_evidence(findings), _verification_by_metric(findings), _next_steps(findings)]
    return "\n\n".join(part for part in parts if part) + "\n"


def answer_sentence(findings: Findings) -> str:
    """One sentence: the mixture and its predicted effect, or the state of the search."""
    proposal = findings.proposal
    if proposal is None:
        return f"No proposal yet: {_progress(findings)}."
    weights = sorted(proposal.mixture.as_dict().items(), key=lambda item: (-item[1], item[0]))
    named = ", ".join(f"{weight:.1%} {name}" for name, weight in weights[:NAMED_DOMAINS])
    rest = len(weights) - NAMED_DOMAINS
    others = f", {sum(weight for _, weight in weights[NAMED_DOMAINS:]):.1%} in {rest} other domain{'s' * (rest > 1)}" if rest > 0 else ""
    effect = proposal.objective
    how = "better than" if effect.high < 0 else "worse than" if effect.low > 0 else "not clearly different from"
    return (
        f"**Train on {named}{others}.** Predicted {how} the natural mixture: {_number(effect.mean)} {findings.objective_unit} "
        f"of the objective (90% interval {_number(effect.low)} to {_number(effect.high)}; negative is better)."
    )


def _mixture_table(findings: Findings, proposal: Proposal) -> str:
    natural, weights = findings.context["natural"], proposal.mixture.as_dict()
    caps = {domain["name"]: float(domain["max_epochs"]) for domain in findings.context["domains"]}
    rows = []
    for name in sorted(weights, key=lambda name: (-weights[name], name)):
        low, high = proposal.near_optimal.get(name, (weights[name], weights[name]))
        epochs = f"{proposal.epochs[name]:.2f} of {caps[name]:g}"
        rows.append([_cell(name), f"**{weights[name]:.1%}**", f"{low:.1%} to {high:.1%}", f"{natural[name]:.1%}", epochs])
    table = _table(["domain", "proposal", "near-optimal", "natural", "epochs"], rows)
    return f"## Mixture\n\nShares of tokens. Near-optimal: the prediction cannot tell such weights from the optimum.\n\n{table}"


def _effects(findings: Findings, proposal: Proposal) -> str:
    if not proposal.effects:
        return ""
    rows = []
    for metric, effect in sorted(proposal.effects.items()):
        verdict = "better" if effect.high < 0 else "worse" if effect.low > 0 else "unclear"
        reason = proposal.screened.get(metric)
        rows.append([_cell(metric), *_effect(effect), verdict, "screened out: " + _cell(reason) if reason else ""])
    table = _table(["metric", "difference", "90% interval", "", "remark"], rows)
    extra = [metric for metric in proposal.screened if metric not in proposal.effects]
    lines = "".join(f"\n- {_cell(metric)} is screened out: {_cell(proposal.screened[metric])}" for metric in sorted(extra))
    return (
        f"## Predicted effects\n\nProposal minus natural, bits per byte, in proxies of {_source(findings, 'search')}; negative is better.\n\n{table}"
        + (f"\n{lines}" if lines else "")
    )


def _constraints(findings: Findings, proposal: Proposal) -> str:
    notes = [f"- {sentence}" for sentence in proposal.binding]
    for name, (tokens, note) in sorted((findings.context.get("unique") or {}).items()):
        if note:
            why = "so it repeats less than the target run would" if note == "floored" else "so it repeats more than the target run would"
            notes.append(f"- {_cell(name)}: the proxy saw {tokens:,} unique tokens ({note}), {why}")
    return "## What holds it back\n\n" + "\n".join(notes) if notes else ""


def _verification(findings: Findings) -> str:
    verification = findings.verification
    if verification is None:
        return "## Verification\n\nNot verified: no larger proxies were trained on this mixture."
    recommended = ARM_TITLES.get(verification.recommended, verification.recommended)
    text = f"## Verification\n\n{verification.sentence} Recommended: **{_cell(recommended)}**, because {verification.reason}."
    rows = [_comparison(row) for row in verification.comparisons if row.metric == OBJECTIVE]
    if rows:
        text += f"\n\nObjective of the proposal minus the other's, in {verification.objective_unit}; negative is better.\n\n"
        text += _table(["against", "difference", f"{verification.confidence:.0%} interval", "per seed"], rows)
    return text


def _verification_by_metric(findings: Findings) -> str:
    verification = findings.verification
    rows = [row for row in (verification.comparisons if verification else ()) if row.metric != OBJECTIVE]
    if verification is None or not rows:
        return ""
    cells = [[_cell(_METRIC_TITLES.get(row.metric, row.metric)), *_comparison(row)] for row in rows]
    table = _table(["metric", "against", "difference", f"{verification.confidence:.0%} interval", "per seed"], cells)
    return f"## Verification by metric\n\nProposal minus the other, bits per byte; negative is better.\n\n{table}"


def _comparison(row: Comparison) -> list[str]:
    """Other arm, mean, interval, differences per seed."""
    seeds = ", ".join(_number(value) for value in row.values)
    return [_cell(ARM_TITLES.get(row.baseline, row.baseline)), _number(row.mean), f"{_number(row.low)} to {_number(row.high)}", seeds]


def _evidence(findings: Findings) -> str:
    lines = [f"- {_progress(findings)}"]
    if findings.proposal is not None:
        evidence: Mapping[str, Any] = findings.proposal.evidence
        best = findings.proposal.best_measured
        if "objective" in best:
            lines.append(
                f"- best measured mixture: {_cell(str(best.get('label') or best.get('trial_id', '')))}, {_number(best['objective'])} {findings.objective_unit}"
            )
        for name, value in sorted((evidence.get("spearman") or {}).items()):
            if name == "objective" or name.startswith("target/"):
                lines.append(f"- rank correlation of predicted and measured {_cell(name)}, out of fold: {value:.2f}")
        if evidence.get("surrogate"):
            lines.append(f"- surrogate {_cell(str(evidence['surrogate']))}, pull toward natural {evidence.get('pull', 0):g}")
        guard = evidence.get("guard") or {}
        if guard.get("sentence"):
            lines.append(f"- {guard['sentence']}")
    return "## Evidence\n\n" + "\n".join(lines)


def _next_steps(findings: Findings) -> str:
    if findings.proposal is None:
        return ""
    return (
        "## Use it\n\n`mixopt export DIR --to megatron` writes it in the syntax of a trainer (`mixopt list` names the formats). "
        f"Search {findings.search.search_id}, experiment {findings.context.get('experiment_hash', '')}."
    )


def _progress(findings: Findings) -> str:
    counts = Counter((record.stage, record.state.value) for record in findings.trials)
    stages = []
    for stage in ("search", "verification"):
        states = ", ".join(f"{count} {state}" for (of, state), count in sorted(counts.items()) if of == stage)
        if states:
            stages.append(f"{stage} trials {states}")
    return f"search {findings.search.state}; " + ("; ".join(stages) or "no trials")


def _source(findings: Findings, stage: str) -> str:
    _, size, tokens = findings.context["sources"][stage]
    return f"size {size} and {tokens:,} tokens"


def _effect(effect: Effect) -> list[str]:
    return [_number(effect.mean), f"{_number(effect.low)} to {_number(effect.high)}"]


def _number(value: float) -> str:
    return f"{value:+.3g}".replace("-", "−")


def _cell(text: str) -> str:
    """Text that cannot end a table's cell or become markup."""
    return " ".join(text.split()).replace("|", "\\|").replace("_", "\\_").replace("*", "\\*")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    align = ["---"] + ["---:"] * (len(head) - 1)
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, align, *rows))
