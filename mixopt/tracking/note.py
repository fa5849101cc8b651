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

# Domains named in the first sentence; the table has them all.
NAMED_DOMAINS = 4


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
    text = f"## Verification\n\n{verification['sentence']}"
    if verification.get("recommended"):
        text += f" Recommended: **{_cell(ARM_TITLES.get(verification['recommended'], verification['recommended']))}**."
    rows = [[title, *numbers] for title, metric, *numbers in _comparisons(verification) if metric == "objective"]
    if rows:
        text += f"\n\nObjective of the proposal minus the baseline's, in {findings.objective_unit}; negative is better.\n\n"
        text += _table(["baseline", "difference", "90% interval", "per seed"], rows)
    return text


def _verification_by_metric(findings: Findings) -> str:
    rows = [row for row in _comparisons(findings.verification or {}) if row[1] != "objective"]
    if not rows:
        return ""
    table = _table(["baseline", "metric", "difference", "90% interval", "per seed"], rows)
    return f"## Verification by metric\n\nProposal minus baseline, bits per byte; negative is better.\n\n{table}"


def _comparisons(verification: Mapping[str, Any]) -> list[list[str]]:
    """Baseline, metric, difference, interval, differences per seed; one row per comparison."""
    rows = []
    for row in verification.get("comparisons", ()):
        seeds = ", ".join(_number(value) for value in row.get("values", ()))
        title = _cell(ARM_TITLES.get(row["baseline"], row["baseline"]))
        rows.append([title, _cell(row["metric"]), *_effect(Effect(row["mean"], row["low"], row["high"])), seeds])
    return rows


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
