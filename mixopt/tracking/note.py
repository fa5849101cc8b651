"""The answer in words: what to train on, how sure that is, what holds it back. Markdown for people, MLflow and `answer.md`.

The first sentence is the answer; tables follow in the order in which a reviewer asks. Everything comes from the record, so the answer can be
written again at any time.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mixopt.beginnings import beginning_sentence
from mixopt.domains import unique_tokens_of
from mixopt.groups.rules import weights_per_level
from mixopt.history import History
from mixopt.proposal import Effect, Proposal
from mixopt.tracking.averages import averaged_sentence, gate_sentence, predicting_evaluator
from mixopt.tracking.findings import ARM_TITLES, Findings, read_findings
from mixopt.verification import MEAN_BITS_PER_BYTE, OBJECTIVE, PROPOSAL, Comparison, Verification, spoken

# Domains named in the first sentence; the table has them all.
NAMED_DOMAINS = 4
# Collapsed routers named in the answer; the report has them all.
NAMED_COLLAPSES = 3
# Domains of which a point more changes the objective most; the report has them all.
STEEPEST = 3
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
            _levels(findings, proposal),
            _verification(findings),
            _constraints(findings, proposal),
            _effects(findings, proposal),
        ]
    parts += [_evidence(findings), _verification_by_metric(findings), _next_steps(findings)]
    return "\n\n".join(part for part in parts if part) + "\n"


def answer_sentence(findings: Findings) -> str:
    """What to train on, which mixture that is, and what is predicted of the proposal; or the state of the search."""
    proposal = findings.proposal
    if proposal is None:
        return f"No proposal yet: {progress_sentence(findings)}."
    weights = sorted(recommended_mixture(findings, proposal)[1].items(), key=lambda item: (-item[1], item[0]))
    named = ", ".join(f"{weight:.1%} {name}" for name, weight in weights[:NAMED_DOMAINS])
    rest = len(weights) - NAMED_DOMAINS
    others = f", {sum(weight for _, weight in weights[NAMED_DOMAINS:]):.1%} in {rest} other domain{'s' * (rest > 1)}" if rest > 0 else ""
    effect = proposal.objective
    how = "better than" if effect.high < 0 else "worse than" if effect.low > 0 else "not clearly different from"
    return (
        f"**Train on {named}{others}.** {_standing(findings, proposal)} Predicted {how} the natural mixture: the proposal's objective is "
        f"{signed(effect.mean)} {findings.objective_unit} (90% interval {signed(effect.low)} to {signed(effect.high)}; negative is better)."
    )


def recommended_mixture(findings: Findings, proposal: Proposal) -> tuple[str, Mapping[str, float]]:
    """Arm to use and its weights: what verification recommends, else the proposal."""
    verification = findings.verification
    if verification is None or verification.recommended not in verification.arms:
        return PROPOSAL, proposal.mixture.as_dict()
    return verification.recommended, verification.arms[verification.recommended]


def _standing(findings: Findings, proposal: Proposal) -> str:
    """Which mixture is recommended and why; without verification, how little is known."""
    if findings.verification is not None:
        return f"This is {spoken(findings.verification.recommended)}, because {findings.verification.reason}."
    doubt = " and its predicted gain over the best measured mixture is inside the noise"
    inside = bool((proposal.evidence.get("guard") or {}).get("inside_noise"))
    return f"This is the proposal. No larger proxies have tested it{doubt * inside}."


def _mixture_table(findings: Findings, proposal: Proposal) -> str:
    """Weights of the mixture to use, next to the proposal where that is another one."""
    arm, weights = recommended_mixture(findings, proposal)
    proposed, natural = proposal.mixture.as_dict(), findings.context["natural"]
    domains = {domain["name"]: domain for domain in findings.context["domains"]}
    budget_tokens = float(findings.context["budget_tokens"])
    rows = []
    for name in sorted(weights, key=lambda name: (-weights[name], name)):
        low, high = proposal.near_optimal.get(name, (proposed[name], proposed[name]))
        epochs = f"{weights[name] * budget_tokens / unique_tokens_of(domains[name]):.2f} of {float(domains[name]['max_epochs']):g}"
        also = [] if arm == PROPOSAL else [f"{proposed[name]:.1%}"]
        rows.append([_cell(name), f"**{weights[name]:.1%}**", *also, f"{low:.1%} to {high:.1%}", f"{natural[name]:.1%}", epochs])
    head = ["domain", ARM_TITLES.get(arm, arm), *([] if arm == PROPOSAL else ["proposal"]), "near-optimal", "natural", "epochs"]
    return f"## Mixture\n\nShares of tokens. {_near_optimal(findings, proposal)}\n\n{_table(head, rows)}{_inventory(findings)}"


def _inventory(findings: Findings) -> str:
    """Where the token counts of the target corpus are no plain numbers of the user's: an estimate must not pass for a count."""
    domains, sentences = findings.context["domains"], []
    for source, sentence in (
        ("estimated", "Estimated from bytes, so their weights in the natural mixture and epochs are estimates too: {}."),
        ("counted", "Counted by tokenizing the prepared text, in tokens of the proxies' tokenizer: {}."),
    ):
        names = [_cell(domain["name"]) for domain in domains if domain.get("token_count_source", "given") == source]
        if names:
            sentences.append(sentence.format(", ".join(names)))
    repeated = [f"{_cell(domain['name'])} {domain['repeats']:g} times" for domain in domains if domain.get("repeats", 1) != 1]
    if repeated:
        sentences.append(f"The inventory holds every document more than once, and epochs count unique ones: {', '.join(repeated)}.")
    pairs = [_cell(domain["name"]) for domain in domains if domain.get("kind") == "completion"]
    if pairs:
        sentences.append(f"Pairs, whose prompts count as seen and of which only completions are trained on and scored: {', '.join(pairs)}.")
    return "".join(f"\n\n{sentence}" for sentence in sentences)


def _levels(findings: Findings, proposal: Proposal) -> str:
    """The mixture to use by groups, and how each group was searched where the experiment file says so."""
    arm, weights = recommended_mixture(findings, proposal)
    paths = {domain["name"]: domain.get("group", "") for domain in findings.context["domains"]}
    levels = weights_per_level(paths, weights, findings.context["natural"])
    if not levels:
        return ""
    rules = {group["path"]: group_rule(group) for group in findings.context.get("groups", ())}
    ruled = any(rules.values())
    rows = []
    for row in levels:
        name = "\N{NO-BREAK SPACE}" * 2 * (row.level - 1) + _cell(row.path)
        cells = [name, f"**{row.weight:.1%}**", f"{row.share:.1%}", f"{row.natural:.1%}"]
        rows.append([*cells, _cell(rules.get(row.path, ""))] if ruled else cells)
    head = ["group", ARM_TITLES.get(arm, arm), "of its parent", "natural", *(["rule"] if ruled else [])]
    names = " / ".join(findings.context.get("levels") or ())
    return f"## Weights per level\n\nShares of tokens{f', by {_cell(names)}' if names else ''}.\n\n{_table(head, rows, words=int(ruled))}"


def group_rule(group: Mapping[str, Any]) -> str:
    """What the experiment file asks of a group."""
    parts = []
    if "shares" in group:
        given = group["shares"]
        split = "natural shares" if given == "natural" else ", ".join(f"{name} {share:.3g}" for name, share in given.items())
        parts.append(f"split given: {split}")
    if "bounds" in group:
        parts.append("bounds {:g} to {:g}".format(*group["bounds"]))
    return "; ".join(parts)


def _near_optimal(findings: Findings, proposal: Proposal) -> str:
    within = proposal.evidence.get("near_optimal_within")
    margin = "a margin" if within is None else f"{within:.3g} {findings.objective_unit}"
    return (
        "Near-optimal: how far a domain's weight can move from the proposal's, the others adjusting within their caps, before the predicted "
        f"objective is worse by {margin}, which is the doubt about it."
    )


def _effects(findings: Findings, proposal: Proposal) -> str:
    if not proposal.effects:
        return ""
    rows = []
    for metric, effect in sorted(proposal.effects.items()):
        verdict = "better" if effect.high < 0 else "worse" if effect.low > 0 else "unclear"
        reason = proposal.screened.get(metric)
        rows.append([_cell(metric), *_effect(effect), verdict, "screened out: " + _cell(reason) if reason else ""])
    remarked = any(row[-1] for row in rows)
    head = ["metric", "difference", "90% interval", "verdict", "remark"]
    table = _table(head, rows, words=2) if remarked else _table(head[:-1], [row[:-1] for row in rows], words=1)
    extra = [metric for metric in proposal.screened if metric not in proposal.effects]
    lines = "".join(f"\n- {_cell(metric)} is screened out: {_cell(proposal.screened[metric])}" for metric in sorted(extra))
    return (
        f"## Predicted effects\n\nProposal minus natural, {findings.loss_unit}, in {_predicted_in(findings)}; negative is better.\n\n{table}"
        + (f"\n{lines}" if lines else "")
        + _negated(findings)
    )


def _predicted_in(findings: Findings) -> str:
    evaluator = predicting_evaluator(findings)
    return f"{evaluator + ' ' if evaluator else ''}proxies of {_source(findings, 'search')}"


def _negated(findings: Findings) -> str:
    """Which metrics a reader must not take for losses."""
    names = findings.context.get("negated") or ()
    return f"\n\nMore is better, so these are stored and shown negated: {', '.join(map(_cell, names))}." if names else ""


def _constraints(findings: Findings, proposal: Proposal) -> str:
    brings = {
        relaxation.constraint: f" ({relaxation.change}: objective {signed(relaxation.gain.mean)})" for relaxation in proposal.relaxations
    }
    notes = [f"- {sentence}{brings.get(sentence, '')}" for sentence in proposal.binding]
    steepest = sorted(proposal.sensitivities.items(), key=lambda item: (-abs(item[1].mean), item[0]))[:STEEPEST]
    if steepest:
        changes = ", ".join(f"{_cell(name)} {signed(effect.mean)}" for name, effect in steepest)
        notes.append(f"- one more percentage point of a domain, all others giving in proportion, changes the objective most for: {changes}")
    unique = findings.context.get("unique") or {}
    for kind, why in (("floored", "less"), ("capped", "more")):
        tokens = {name: count for name, (count, note) in sorted(unique.items()) if note == kind}
        if tokens:
            notes.append(
                f"- {_unique(tokens)} ({kind}), so they repeat {'it' if len(tokens) == 1 else 'these'} {why} than the target run would"
            )
    return "## What holds the proposal back\n\n" + "\n".join(notes) if notes else ""


def _unique(tokens: Mapping[str, int]) -> str:
    """One sentence for all domains of a kind, with one number where it is the same."""
    if len(tokens) == 1:
        ((name, count),) = tokens.items()
        return f"the proxies saw {count:,} unique tokens of {_cell(name)}"
    counts = set(tokens.values())
    if len(counts) == 1:
        return f"the proxies saw {counts.pop():,} unique tokens of each of {len(tokens)} domains: {', '.join(map(_cell, tokens))}"
    listed = ", ".join(f"{_cell(name)} {count:,}" for name, count in tokens.items())
    return f"the proxies saw few unique tokens of {len(tokens)} domains: {listed}"


def _verification(findings: Findings) -> str:
    verification = findings.verification
    if verification is None:
        return "## Verification\n\nNot verified: no larger proxies were trained on this mixture."
    text = f"## Verification\n\n{verification.conclusion}"
    rows = [[_rival(verification, row), *_comparison(row)] for row in _distinct(verification) if row.metric == OBJECTIVE]
    if rows:
        text += f"\n\nObjective of the proposal minus the other's, in {verification.objective_unit}; negative is better.\n\n"
        text += _table(["against", "difference", f"{verification.confidence:.0%} interval", "per seed"], rows)
    if verification.infeasible:
        outside = ", ".join(ARM_TITLES.get(name, name) for name in verification.infeasible)
        text += f"\n\nNever recommended, because outside the bounds, epoch caps or given splits: {outside}."
    return text


def _distinct(verification: Verification) -> list[Comparison]:
    """The comparisons, each mixture once."""
    return [row for row in verification.comparisons if row.baseline in verification.rivals]


def _rival(verification: Verification, row: Comparison) -> str:
    return _cell(" = ".join(ARM_TITLES.get(name, name) for name in verification.rivals[row.baseline]))


def _verification_by_metric(findings: Findings) -> str:
    """One row per metric and one column per other mixture."""
    verification = findings.verification
    rows = [row for row in (_distinct(verification) if verification else ()) if row.metric != OBJECTIVE]
    if verification is None or not rows:
        return ""
    metrics = list(dict.fromkeys(row.metric for row in rows))
    columns = {row.baseline: _rival(verification, row) for row in rows}
    cells = {(row.metric, row.baseline): f"{signed(row.mean)} ({signed(row.low)} to {signed(row.high)})" for row in rows}
    body = [[_cell(_METRIC_TITLES.get(metric, metric)), *(cells.get((metric, name), "") for name in columns)] for metric in metrics]
    table = _table(["metric", *(f"against {title}" for title in columns.values())], body)
    interval = f"mean over seeds and its {verification.confidence:.0%} interval"
    return f"## Verification by metric\n\nProposal minus the other, {findings.loss_unit}, {interval}; negative is better.\n\n{table}"


def _comparison(row: Comparison) -> list[str]:
    """Mean, interval, differences per seed."""
    return [signed(row.mean), f"{signed(row.low)} to {signed(row.high)}", ", ".join(signed(value) for value in row.values)]


def _earlier_words(earlier: Mapping[str, Any]) -> str:
    like, others = earlier["like_trials"], earlier["other_sources"]
    parts = [f"{like} like its own trials"] if like else []
    parts += [f"{others} of sources of their own, which only the surrogate sees"] if others else []
    by_source: Mapping[str, int] = earlier.get("by_source", {})
    listed = f" ({', '.join(f'{count} of {_cell(key)}' for key, count in by_source.items())})" if len(by_source) > 1 else ""
    return f"runs of the warm start: {', and '.join(parts) or 'none fit'}{listed}"


def _evidence(findings: Findings) -> str:
    lines = [f"- {progress_sentence(findings)}"]
    if averaged_sentence(findings):
        lines.append(f"- {averaged_sentence(findings)}")
    if findings.gate is not None:
        lines.append(f"- {_cell(gate_sentence(findings))}")
    if beginning_sentence(findings.context):
        lines.append(f"- {_cell(beginning_sentence(findings.context))}")
    if findings.proposal is not None:
        evidence: Mapping[str, Any] = findings.proposal.evidence
        best = findings.proposal.best_measured
        if evidence.get("calibration_trials"):
            lines.append(
                f"- {evidence['calibration_trials']} runs of its calibration, at mixtures and seeds that the search did not ask for"
            )
        earlier = evidence.get("earlier_runs")
        if earlier:
            lines.append(f"- {_earlier_words(earlier)}")
        if "objective" in best:
            runs = f", mean of {best['runs']} runs" if best.get("runs", 1) > 1 else ""
            label = _cell(str(best.get("label") or best.get("trial_id", "")))
            lines.append(f"- best measured mixture: {label}, {signed(best['objective'])} {findings.objective_unit}{runs}")
        ranks = {name: value for name, value in sorted((evidence.get("spearman") or {}).items()) if not name.startswith("valid/")}
        if ranks:
            listed = ", ".join(f"{_cell(name)} {value:.2f}" for name, value in ranks.items())
            lines.append(f"- rank correlation of predicted and measured, each mixture predicted without itself: {listed}")
        if evidence.get("surrogate"):
            lines.append(f"- surrogate: {_cell(_words(str(evidence['surrogate'])))}; pull toward natural: {evidence.get('pull', 0):g}")
        gain, resolvable = evidence.get("expected_gain"), evidence.get("resolvable") or {}
        if gain is not None and resolvable.get("objective") is not None:
            lines.append(
                f"- what more trials of this size can bring: {max(gain, 0.0):.2g} {findings.objective_unit} at most, as far as the surrogate knows; "
                f"{resolvable['seeds']} seeds of each mixture tell apart {resolvable['objective']:.2g}"
            )
        guard = evidence.get("guard") or {}
        if guard.get("sentence"):
            lines.append(f"- {_cell(guard['sentence'])}")
    if findings.collapsed:
        lines.append(f"- {_cell(collapsed_sentence(findings))}")
    return "## Evidence\n\n" + "\n".join(lines)


def collapsed_sentence(findings: Findings) -> str:
    """Which trials have a collapsed router; what their losses are worth."""
    found = findings.collapsed
    named = [f"{record.trial.trial_id[:8]} ({record.trial.label}, {how})" for record, how in found[:NAMED_COLLAPSES]]
    rest = f", and {len(found) - NAMED_COLLAPSES} more" if len(found) > NAMED_COLLAPSES else ""
    return (
        f"the router has collapsed in {len(found)} of {len(findings.balances)} trials, whose losses are those of smaller proxies: "
        f"{'; '.join(named)}{rest}"
    )


def _words(name: str) -> str:
    """A class or module name as people write it: GaussianProcess and gaussian_process are "Gaussian process"."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).replace("_", " ").lower()
    return spaced[:1].upper() + spaced[1:]


def _next_steps(findings: Findings) -> str:
    if findings.proposal is None:
        return ""
    return (
        "## Use it\n\n`mixopt export DIR --to megatron` writes it in the syntax of a trainer (`mixopt list` names the formats). "
        f"Search {findings.search.search_id}, experiment {findings.context.get('experiment_hash', '')}."
    )


def progress_sentence(findings: Findings) -> str:
    counts = Counter((record.stage, record.state.value) for record in findings.trials)
    stages = []
    for stage in ("base", "components", "search", "verification"):
        states = ", ".join(f"{count} {state}" for (of, state), count in sorted(counts.items()) if of == stage)
        if states:
            stages.append(f"{stage} trials: {states}")
    return f"search {findings.search.state}; " + ("; ".join(stages) or "no trials")


def _source(findings: Findings, stage: str) -> str:
    _, size, tokens = findings.context["sources"][stage]
    return f"size {size} and {tokens:,} tokens"


def _effect(effect: Effect) -> list[str]:
    return [signed(effect.mean), f"{signed(effect.low)} to {signed(effect.high)}"]


def signed(value: float) -> str:
    """Three digits, and no more than four after the point: a difference of less is nothing."""
    size = abs(value)
    decimals = 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 1 else 3 if size >= 0.1 else 4
    return f"{value:+,.{decimals}f}".replace("-", "−")


def _cell(text: str) -> str:
    """Text that cannot end a table's cell or become markup."""
    return " ".join(text.split()).replace("|", "\\|").replace("_", "\\_").replace("*", "\\*")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], words: int = 0) -> str:
    """The first column and the last `words` columns are text, the others numbers."""
    align = ["---"] + ["---:"] * (len(head) - 1 - words) + ["---"] * words
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, align, *rows))
