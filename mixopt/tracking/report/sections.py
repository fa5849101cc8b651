"""The sections of the report that argue: the answer, the mixture, whether it was verified, and why the prediction may be believed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mixopt.beginnings import beginning_sentence
from mixopt.components.config import EVALUATORS
from mixopt.groups.rules import weights_per_level
from mixopt.proposal import Proposal
from mixopt.terminal import quantity
from mixopt.tracking.averages import averaged_sentence
from mixopt.tracking.drawings.effects import effect_cells
from mixopt.tracking.drawings.evidence import compared_rows, objective_trials
from mixopt.tracking.drawings.mixture import compared_arms
from mixopt.tracking.findings import ARM_TITLES, Findings, short_metric
from mixopt.tracking.note import answer_sentence, group_rule, progress_sentence, recommended_mixture, signed
from mixopt.tracking.report.blocks import Drawing, Fact, Facts, Heading, Notes, Prose, Section, Table, missing, percent, waiting
from mixopt.verification import MEAN_BITS_PER_BYTE, OBJECTIVE, Comparison, Verification, spoken

STATES = {"finished": "good", "running": "open", "interrupted": "open", "failed": "bad"}
OBJECTIVES = {
    "noise_scaled": "The objective is the weighted mean over the metrics that count of (loss minus natural's loss) / seed noise: 0 is the natural "
    "mixture, negative is better, and 1 is one standard deviation of a seed.",
    "mean": "The objective is the weighted mean loss of the metrics that count, relative to the natural mixture, in {unit}; negative is better.",
    "worst_case": "The objective is the worst metric's (loss minus natural's loss) / seed noise: 0 is the natural mixture, negative is better.",
    "weighted": "The objective is the weighted mean loss of the metrics, relative to the natural mixture, in {unit}; negative is better.",
    "z_scored": "The objective is the weighted mean over the metrics that count of (loss minus natural's loss) / the loss's standard deviation over the "
    "mixtures: 0 is the natural mixture, negative is better.",
}


def answer_section(findings: Findings) -> Section:
    """What to train on, how sure that is, and how far the search has come."""
    strong, _, rest = answer_sentence(findings).replace("**", "", 1).partition("**")
    if findings.proposal is None:
        strong, rest = "", strong
    kind = str((findings.context.get("objective") or {}).get("kind") or "")
    blocks: list[Any] = [
        Prose(f"The search is {findings.search.state}.", kind=f"state {STATES.get(findings.search.state, 'open')}"),
        Prose(rest.strip(), strong=strong, kind="lede"),
        Facts(_facts(findings)),
    ]
    if kind in OBJECTIVES:
        blocks.append(Prose(OBJECTIVES[kind].format(unit=findings.loss_unit)))
    if averaged_sentence(findings):
        blocks.append(Prose(averaged_sentence(findings)))
    if beginning_sentence(findings.context):
        blocks.append(Prose(beginning_sentence(findings.context)))
    if findings.search.state != "finished":
        blocks.append(
            Prose(f"How far it is: {progress_sentence(findings)}. `mixopt search FILE` goes on from here; write the report again then.")
        )
    return Section("answer", "The answer", blocks)


def _facts(findings: Findings) -> list[Fact]:
    proposal, verification = findings.proposal, findings.verification
    facts = []
    if proposal is not None:
        arm, _ = recommended_mixture(findings, proposal)
        facts.append(Fact("Recommended", ARM_TITLES.get(arm, arm), f"for {quantity(float(findings.context['budget_tokens']))} tokens"))
        effect = proposal.objective
        interval = f"90%: {signed(effect.low)} to {signed(effect.high)}"
        facts.append(Fact("Proposal against natural, predicted", signed(effect.mean), f"{findings.objective_unit}; {interval}"))
    if verification is not None:
        bits = next((r for r in verification.comparisons if (r.baseline, r.metric) == ("natural", MEAN_BITS_PER_BYTE)), None)
        if bits is not None:
            interval = f"{verification.confidence:.0%}: {signed(bits.low)} to {signed(bits.high)}"
            facts.append(Fact("Proposal against natural, verified", signed(bits.mean), f"{findings.loss_unit}; {interval}"))
    else:
        facts.append(Fact("Verification", "none", "no larger proxies were trained"))
    trained = [record for record in findings.trials if record.trial.source.evaluator not in EVALUATORS]
    done = sum(record.outcome is not None for record in trained)
    facts.append(Fact("Proxies trained", f"{done:,}", f"of {len(trained):,} asked for"))
    if findings.averaged:
        named = " and ".join(f"{count:,} {evaluator}" for evaluator, count in findings.averaged.items())
        facts.append(Fact("Scored without training", f"{sum(findings.averaged.values()):,}", named))
    return facts


def mixture_section(findings: Findings) -> Section:
    """Shares beside the baselines, per group too, and what holds the proposal back."""
    title, proposal = "Mixture and baselines", findings.proposal
    if proposal is None:
        domains = [[d["name"], d["group"], percent(findings.context["natural"][d["name"]])] for d in findings.context["domains"]]
        table = Table("Domains of the search and their natural shares", ["domain", "group", "natural"], domains, words=[1])
        return Section("mixture", title, [waiting(findings, "A mixture"), table])
    weights = proposal.mixture.as_dict()
    alt = "Share of tokens proposed for each domain, with natural's: " + "; ".join(
        f"{name} {weight:.1%}, natural {findings.context['natural'][name]:.1%}" for name, weight in _sorted(weights)
    )
    hint = Prose("Point at a mark, tap it, or reach a figure with Tab and move with the arrow keys.", kind="hint")
    blocks: list[Any] = [Drawing("mixture", alt), hint, _mixture_table(findings, proposal), _near_optimal(findings, proposal)]
    groups = _group_table(findings, proposal)
    if groups is not None:
        blocks += [Heading("By group"), groups]
    blocks.append(Heading("What holds the proposal back"))
    blocks.append(Notes(proposal.binding) if proposal.binding else Prose("No bound and no epoch cap: the optimum lies inside all of them."))
    if proposal.relaxations:
        blocks.append(relaxation_table(proposal, findings.objective_unit))
    if proposal.sensitivities:
        blocks.append(sensitivity_table(proposal, findings.objective_unit))
    return Section("mixture", title, blocks)


def relaxation_table(proposal: Proposal, unit: str) -> Table:
    """What relaxing each binding constraint would bring."""
    rows = [[r.constraint, r.change, signed(r.gain.mean), f"{signed(r.gain.low)} to {signed(r.gain.high)}"] for r in proposal.relaxations]
    caption = f"What relaxing each would bring: predicted change of the objective, {unit}"
    return Table(caption, ["constraint", "relaxed", "objective", "90% interval"], rows, words=[1])


def sensitivity_table(proposal: Proposal, unit: str, folded: str = "One more point of a domain") -> Table:
    """What one more percentage point of each domain would change, the most wanted first."""
    ordered = sorted(proposal.sensitivities.items(), key=lambda item: (item[1].mean, item[0]))
    rows = [[name, signed(effect.mean), f"{signed(effect.low)} to {signed(effect.high)}"] for name, effect in ordered]
    caption = f"Predicted change of the objective for one more point, {unit}, all others giving in proportion"
    return Table(caption, ["domain", "change", "90% interval"], rows, folded=folded)


def _sorted(weights: Mapping[str, float]) -> list[tuple[str, float]]:
    return sorted(weights.items(), key=lambda item: (-item[1], item[0]))


def _mixture_table(findings: Findings, proposal: Proposal) -> Table:
    arm, used = recommended_mixture(findings, proposal)
    weights, arms = proposal.mixture.as_dict(), compared_arms(findings)
    groups = {domain["name"]: domain["group"] for domain in findings.context["domains"]}
    grouped = any(groups.values())
    rows = []
    for name, weight in _sorted(weights):
        low, high = proposal.near_optimal.get(name, (weight, weight))
        others = [percent(mixture[name]) for mixture in arms.values()]
        cap = percent(findings.context["upper"].get(name, 1.0))
        rows.append([name, *([groups[name]] * grouped), percent(used[name]), percent(weight), f"{low:.1%} to {high:.1%}", *others, cap])
    titles = [ARM_TITLES.get(name, name) for name in arms]
    head = ["domain", *(["group"] * grouped), "recommended", "proposal", "near-optimal", *titles, "largest allowed"]
    caption = f"Shares of tokens; recommended is {spoken(arm)}"
    return Table(caption, head, rows, words=[1] if grouped else [], folded="Every share as a table")


def _group_table(findings: Findings, proposal: Proposal) -> Table | None:
    """The weight of every group, sub-groups under their group; None where the experiment has no groups."""
    paths = {domain["name"]: domain.get("group", "") for domain in findings.context["domains"]}
    arms = {"proposal": proposal.mixture.as_dict(), **compared_arms(findings)}
    levels = {
        arm: {row.path: row for row in weights_per_level(paths, weights, findings.context["natural"])} for arm, weights in arms.items()
    }
    if not levels["proposal"]:
        return None
    rules = {group["path"]: group_rule(group) for group in findings.context.get("groups", ())}
    ruled = any(rules.values())
    rows = []
    for path, row in levels["proposal"].items():
        name = "\N{NO-BREAK SPACE}" * 4 * (row.level - 1) + path
        shares = [percent(found[path].weight) for found in levels.values()]
        rows.append([name, *shares, percent(row.share), *([rules.get(path, "")] * ruled)])
    named = " / ".join(findings.context.get("levels") or ())
    caption = "Shares of tokens by group" + (f": {named}" if named else "")
    head = ["group", *(ARM_TITLES.get(arm, arm) for arm in arms), "proposal, of its parent", *(["rule"] if ruled else [])]
    return Table(caption, head, rows, words=[len(head) - 1] if ruled else [])


def _near_optimal(findings: Findings, proposal: Proposal) -> Prose:
    within = proposal.evidence.get("near_optimal_within")
    margin = "a margin" if within is None else f"{within:.3g} {findings.objective_unit}"
    return Prose(
        "Near-optimal: how far a domain's weight can move from the proposal's, the others adjusting within their caps, before the predicted "
        f"objective is worse by {margin}, which is the doubt about it. A wide range means that the share hardly matters."
    )


def verification_section(findings: Findings) -> Section:
    """The verdict of larger proxies, with paired differences."""
    title, verification = "Verification", findings.verification
    if verification is None and findings.proposal is None:
        return Section("verification", title, [missing("Not verified: there is no mixture to verify yet.")])
    if verification is None:
        started = sum(record.stage == "verification" for record in findings.trials)
        done = sum(record.outcome is not None for record in findings.trials if record.stage == "verification")
        text = "Not verified: no larger proxies were trained on this mixture, so all that is said of it here is predicted."
        if started:
            text = f"Not verified yet: {done} of {started} larger proxies are trained."
        return Section("verification", title, [missing(text)])
    rows = compared_rows(findings)
    blocks: list[Any] = [Prose(verification.conclusion)]
    if rows:
        spoken_rows = [f"against {_rival(verification, row)} {signed(row.mean)} ({row.verdict})" for row in rows]
        blocks.append(Drawing("verification", "Objective of the proposal minus the other's: " + "; ".join(spoken_rows)))
        body = [[_rival(verification, row), *_comparison(row), row.verdict] for row in rows]
        head = ["against", "difference", f"{verification.confidence:.0%} interval", "per seed", "proposal is"]
        blocks.append(
            Table(f"Objective, proposal minus the other's, in {verification.objective_unit}; negative is better", head, body, words=[4])
        )
    else:
        blocks.append(missing("Too few seeds finished to compare the proposal with another mixture."))
    blocks += _by_metric(verification, findings.loss_unit)
    if verification.infeasible:
        names = ", ".join(spoken(name) for name in verification.infeasible)
        blocks.append(Prose(f"Outside the bounds or epoch caps of the target run, and so never recommended: {names}."))
    return Section("verification", title, blocks)


def _rival(verification: Verification, row: Comparison) -> str:
    return " = ".join(ARM_TITLES.get(name, name) for name in verification.rivals[row.baseline])


def _comparison(row: Comparison) -> list[str]:
    return [signed(row.mean), f"{signed(row.low)} to {signed(row.high)}", ", ".join(signed(value) for value in row.values)]


def _by_metric(verification: Verification, unit: str) -> list[Any]:
    """One row per metric, one column per other mixture."""
    rows = [row for row in verification.comparisons if row.baseline in verification.rivals and row.metric != OBJECTIVE]
    if not rows:
        return []
    columns = {row.baseline: _rival(verification, row) for row in rows}
    cells = {(row.metric, row.baseline): f"{signed(row.mean)} ({signed(row.low)} to {signed(row.high)})" for row in rows}
    metrics = list(dict.fromkeys(row.metric for row in rows))
    body = [[metric_title(metric), *(cells.get((metric, name), "") for name in columns)] for metric in metrics]
    caption = f"Proposal minus the other, {unit}: mean over seeds and {verification.confidence:.0%} interval; negative is better"
    head = ["metric", *(f"against {title}" for title in columns.values())]
    return [Table(caption, head, body, folded=f"By metric: {len(metrics)} rows")]


def metric_title(metric: str) -> str:
    return "mean of the objective's metrics" if metric == MEAN_BITS_PER_BYTE else short_metric(metric)


def predicted_section(findings: Findings) -> Section:
    """Whether the surrogate predicts what it has not seen, and what it predicts of the proposal."""
    title, proposal = "Predicted against measured", findings.proposal
    if proposal is None:
        return Section("predicted", title, [waiting(findings, "A prediction")])
    evidence = proposal.evidence
    pairs: Sequence[Mapping[str, Any]] = evidence.get("predicted") or ()
    blocks: list[Any] = []
    if pairs:
        rho = (evidence.get("spearman") or {}).get("objective")
        alt = f"Measured objective of {len(pairs)} trials against its prediction from the other trials" + (
            "" if rho is None else f"; rank correlation {rho:.2f}"
        )
        blocks.append(Drawing("predicted", alt))
        rows = [
            [str(number), ARM_TITLES.get(p["label"], p["label"]), f"{p['mean']:+.2f}", f"{p['std']:.2f}", f"{p['measured']:+.2f}"]
            for number, p in enumerate(pairs, start=1)
        ]
        head = ["trial", "mixture", "predicted", "std", "measured"]
        blocks.append(Table(f"Objective in {findings.objective_unit}", head, rows, words=[1], folded=f"{len(rows)} trials as a table"))
    else:
        why = evidence.get("out_of_fold_missing") or "the search has not predicted trials from each other"
        blocks.append(missing(f"Not shown: {why}"))
    guard = evidence.get("guard") or {}
    if guard.get("sentence"):
        blocks.append(Prose(str(guard["sentence"])))
    blocks += _effect_table(findings, proposal)
    return Section("predicted", title, blocks)


def _effect_table(findings: Findings, proposal: Proposal) -> list[Any]:
    """What is predicted of the proposal, by metric, and how well that metric could be predicted."""
    if not proposal.effects:
        return []
    ranks = proposal.evidence.get("spearman") or {}
    rows = []
    for metric, effect in sorted(proposal.effects.items()):
        verdict = "better" if effect.high < 0 else "worse" if effect.low > 0 else "unclear"
        rank = f"{ranks[metric]:.2f}" if ranks.get(metric) is not None else ""
        reason = proposal.screened.get(metric, "")
        interval = f"{signed(effect.low)} to {signed(effect.high)}"
        rows.append([short_metric(metric), signed(effect.mean), interval, verdict, rank, f"screened out: {reason}" if reason else ""])
    remarked = any(row[-1] for row in rows)
    head = ["metric", "difference", "90% interval", "verdict", "Spearman", "remark"]
    caption = f"Proposal minus natural, {findings.loss_unit}, in proxies of the search's size; Spearman: rank correlation of predicted and measured"
    if not remarked:
        head, rows = head[:-1], [row[:-1] for row in rows]
    return [Heading("Predicted effects of the proposal"), Table(caption, head, rows, words=[3, 5])]


def objective_section(findings: Findings) -> Section:
    """How the search got there."""
    title, trials = "Objective over the trials", objective_trials(findings)
    if findings.proposal is None:
        return Section("trials", title, [waiting(findings, "The objective")])
    if not trials:
        return Section("trials", title, [missing("The proposal in the record does not say what each trial's objective was.")])
    best = min(range(len(trials)), key=lambda index: trials[index]["measured"])
    label = ARM_TITLES.get(trials[best]["label"], trials[best]["label"])
    alt = f"Objective of {len(trials)} trials in the order asked; the best is trial {best + 1} ({label}) at {signed(trials[best]['measured'])}"
    names = findings.swarm.domains
    shares = dict(zip(findings.swarm.trial_ids, findings.swarm.points(realized=False).averages().tolist(), strict=True))
    rows = [
        [
            str(number),
            ARM_TITLES.get(t["label"], t["label"]),
            str(t["trial_id"])[:8],
            f"{t['measured']:+.2f}",
            _largest(names, shares.get(t["trial_id"])),
        ]
        for number, t in enumerate(trials, start=1)
    ]
    head = ["trial", "mixture", "id", "objective", "largest shares"]
    table = Table(f"Measured objective in {findings.objective_unit}", head, rows, words=[1, 2, 4], folded=f"{len(rows)} trials as a table")
    return Section("trials", title, [Drawing("objective", alt), table])


def _largest(names: Sequence[str], weights: Sequence[float] | None) -> str:
    """The three largest shares of a trial's mixture."""
    if weights is None:
        return ""
    order = sorted(range(len(names)), key=lambda index: -weights[index])[:3]
    return ", ".join(f"{names[index]} {weights[index]:.0%}" for index in order if weights[index] > 0)


def effects_section(findings: Findings) -> Section:
    """Which domain helps which target."""
    title, effects = "Effects of domains on targets", findings.effects
    if findings.proposal is None:
        return Section("effects", title, [waiting(findings, "The map of effects")])
    cells = effect_cells(findings)
    if effects is None or not cells:
        return Section("effects", title, [missing("Not known: the record holds no surrogate's effects, and none could be fitted again.")])
    everything = [cell for row in cells for cell in row]
    clear = [f"{cell.domain} {'helps' if cell.mean < 0 else 'hurts'} {cell.metric}" for cell in everything if cell.certainty == "clear"]
    likely = sum(cell.certainty == "likely" for cell in everything)
    alt = f"{len(clear)} of {len(everything)} effects are clear of the surrogate's doubt: {'; '.join(clear) or 'none'}"
    rows = [[row[0].domain, *(f"{signed(cell.mean)} ({signed(cell.low)} to {signed(cell.high)})" for cell in row)] for row in cells]
    caption = f"Predicted change, {findings.loss_unit} (objective: {findings.objective_unit}), with 90% intervals; negative is better"
    blocks = [
        Prose(
            f"What the surrogate expects when a domain gains {effects.step:.0%} of all tokens and all others shrink in proportion, starting from the "
            f"{effects.base} mixture. {len(clear)} of {len(everything)} effects are clear: their 90% interval excludes zero; {likely} more are "
            "likely: more than a standard deviation from it. For a domain of next to nothing, a point is a large change. These are slopes at one "
            "mixture, not the answer."
        ),
        Drawing("effects", alt),
        Table(caption, ["domain", *(cell.metric for cell in cells[0])], rows, folded="Every effect with its interval"),
    ]
    return Section("effects", title, blocks)
