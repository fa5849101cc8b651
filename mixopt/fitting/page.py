"""The report of a fit: the same page as a search's, with the sections that measured runs can fill.

Figures and look are the search report's. The main trade-off: there are no training curves, costs or verification here, because tables of runs do not
hold them; what is not known is said once, under the data, instead of in empty sections.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from mixopt import __version__
from mixopt.fitting.diagnostics import BASELINES, MEANINGS, best_baseline
from mixopt.fitting.outputs import against_best, signed_effect
from mixopt.fitting.where import spoken
from mixopt.history import SearchRecord
from mixopt.tracking.canvas import Layout
from mixopt.tracking.drawings.evidence import predicted_figure
from mixopt.tracking.drawings.mixture import epochs_figure, mixture_figure
from mixopt.tracking.findings import Findings
from mixopt.tracking.note import signed
from mixopt.tracking.report.blocks import Drawing, Fact, Facts, Heading, LongText, Notes, Prose, Section, Table, missing, percent
from mixopt.tracking.report.render import Head, render
from mixopt.tracking.report.sections import relaxation_table, sensitivity_table

if TYPE_CHECKING:
    from mixopt.fitting.fit import FitResult

NAMED_DOMAINS = 4
FIGURES = {"mixture": mixture_figure, "epochs": epochs_figure, "predicted": predicted_figure}
RULES = {"best_single_weight": "best single weight", "most_diverse": "most diverse", "linear": "linear"}


def fit_report(result: FitResult) -> str:
    """The page. The same runs give the same page, byte for byte."""
    findings = as_findings(result)
    count = f"{len(result.fitted_on):,} measured runs"
    footer = f"Written by mixopt {__version__} from {count}, content {result.fitted_on.digest()[:8]}."

    def draw(name: str, layout: Layout) -> Any:
        return FIGURES[name](findings, layout)

    return render(Head("fit", f"fit of {count}", "Which mixture to train on", footer), fit_sections(result), draw)


def fit_sections(result: FitResult) -> list[Section]:
    """The content of the page, as plain blocks."""
    sections = [_answer(result), _mixture(result), _holds(result), _effects(result), _trust(result), _data(result)]
    return [section for section in sections if section.blocks]


def as_findings(result: FitResult) -> Findings:
    """What the figures of a search's report draw from; the arms are those that a fit knows."""
    domains = result.domains
    upper = np.minimum(result.space.upper, 1.0).tolist()
    context: dict[str, Any] = {
        "domains": [
            {"name": d.name, "group": d.group, "target_tokens": d.target_tokens, "repeats": d.repeats, "max_epochs": d.max_epochs}
            for d in domains.domains
        ],
        "uniform": domains.uniform().as_dict(),
        "upper": dict(zip(domains.names, upper, strict=True)),
        "budget_tokens": domains.budget_tokens,
    }
    if result.natural_known:
        context["natural"] = domains.natural().as_dict()
    if result.config.budget_tokens is not None:
        context["unimax"] = domains.unimax().as_dict()
    beginning = datetime.fromtimestamp(0, UTC)
    record = SearchRecord("", "fit", "", "finished", beginning, beginning)
    return Findings(record, context, (), result.fitted_on, result.proposal, None)


def answer_words(result: FitResult) -> tuple[str, str]:
    """What to train on, and what is predicted of it."""
    proposal = result.proposal
    weights = sorted(proposal.mixture.as_dict().items(), key=lambda item: (-item[1], item[0]))
    words = ", ".join(f"{weight:.1%} {name}" for name, weight in weights[:NAMED_DOMAINS])
    rest = len(weights) - NAMED_DOMAINS
    others = f", {sum(weight for _, weight in weights[NAMED_DOMAINS:]):.1%} in {rest} other domain{'s' * (rest > 1)}" if rest > 0 else ""
    effect = proposal.objective
    how = "better than" if effect.high < 0 else "worse than" if effect.low > 0 else "not clearly different from"
    return f"Train on {words}{others}.", (
        f"Predicted {how} the {result.natural_name} mixture: its objective is {signed(effect.mean)} {proposal.evidence['objective_unit']} "
        f"(90% interval {signed(effect.low)} to {signed(effect.high)}; negative is better)."
    )


def trust_words(result: FitResult) -> str:
    """Whether the surrogate is worth more than a rule of thumb."""
    entry = result.diagnostics["objective"]
    if entry is None:
        return f"How well this predicts was not checked: {result.diagnostics['not_judged']}"
    rule, rank = best_baseline(entry)
    better = "more than" if entry["spearman"] > rank else "no more than"
    return (
        f"Out of fold, the surrogate ranks runs with a Spearman correlation of {entry['spearman']:.3f}, {better} the best trivial rule "
        f"({RULES[rule]}: {rank:.3f})."
        + ("" if entry["spearman"] > max(rank, 0.0) else " These runs are no evidence for a mixture: do not act on the proposal.")
    )


def _answer(result: FitResult) -> Section:
    strong, rest = answer_words(result)
    proposal, entry = result.proposal, result.diagnostics["objective"]
    effect = proposal.objective
    facts = [
        Fact(f"Against {result.natural_name}, predicted", signed(effect.mean), f"90%: {signed(effect.low)} to {signed(effect.high)}"),
        Fact("Runs", f"{len(result.fitted_on):,}", f"{result.diagnostics['mixtures']:,} mixtures of {len(result.domains.names)} domains"),
        Fact("Surrogate", result.surrogate.replace("_", " "), f"{len(result.prediction.metrics)} metrics"),
    ]
    if entry is not None:
        rule, rank = best_baseline(entry)
        facts.insert(1, Fact("Spearman out of fold", f"{entry['spearman']:.3f}", f"best trivial rule, {RULES[rule]}: {rank:.3f}"))
    blocks: list[Any] = [
        Prose(rest, strong=strong, kind="lede"),
        Facts(facts),
        Prose(against_best(proposal)),
        Prose(trust_words(result)),
    ]
    if result.notes:
        blocks += [Heading("To know before believing it"), Notes(result.notes)]
    return Section("answer", "The answer", blocks)


def _mixture(result: FitResult) -> Section:
    proposal = result.proposal
    weights, natural = proposal.mixture.as_dict(), result.domains.natural().as_dict()
    order = sorted(weights, key=lambda name: (-weights[name], name))
    alt = "Share of tokens proposed for each domain: " + "; ".join(f"{name} {weights[name]:.1%}" for name in order)
    capped = result.config.budget_tokens is not None
    rows = []
    for name in order:
        low, high = proposal.near_optimal[name]
        others = [percent(natural[name]), percent(proposal.best_measured["weights"][name])]
        epochs = [f"{proposal.epochs[name]:.2f}"] if capped else []
        rows.append([name, percent(weights[name]), f"{low:.1%} to {high:.1%}", *others, *epochs])
    head = ["domain", "proposal", "near-optimal", result.natural_name, "best measured", *(["epochs"] if capped else [])]
    within = float(proposal.evidence["near_optimal_within"])
    blocks: list[Any] = [
        Drawing("mixture", alt),
        Prose("Point at a mark, tap it, or reach a figure with Tab and move with the arrow keys.", kind="hint"),
        Table("Shares of tokens", head, rows, folded="Every share as a table"),
        Prose(
            f"Near-optimal: mixtures predicted to be worse than the proposal by at most {within:.3g} {proposal.evidence['objective_unit']}, "
            "which is what cannot be told apart."
        ),
    ]
    if proposal.alternatives:
        titles = [f"another {number}" for number in range(1, len(proposal.alternatives) + 1)]
        shares = [[name, *(percent(other.weights[name]) for other in proposal.alternatives)] for name in order]
        blocks += [
            Heading("Others as good"),
            Table("Shares of tokens of mixtures that cannot be told from the proposal", ["domain", *titles], shares),
        ]
    if capped:
        blocks.append(Drawing("epochs", "Epochs of every domain in the target run"))
    return Section("mixture", "Mixture", blocks)


def _holds(result: FitResult) -> Section:
    proposal = result.proposal
    unit = proposal.evidence["objective_unit"]
    blocks: list[Any] = [
        Notes(proposal.binding) if proposal.binding else Prose("No bound, cap or floor: the optimum lies inside all of them.")
    ]
    if proposal.relaxations:
        blocks.append(relaxation_table(proposal, unit))
    if proposal.sensitivities:
        blocks += [Heading("One more point of a domain"), sensitivity_table(proposal, unit, folded="")]
    return Section("held", "What holds the proposal back", blocks)


def _effects(result: FitResult) -> Section:
    proposal, runs = result.proposal, result.runs
    metrics = result.diagnostics["metrics"]
    natural = result.prediction.natural
    rows = []
    for metric, effect in sorted(proposal.effects.items()):
        verdict = "better" if effect.high < 0 else "worse" if effect.low > 0 else "unclear"
        own = signed_effect(effect, runs.sign(metric))
        base = runs.sign(metric) * float(result.prediction.losses(natural[None], [metric])[0, 0])
        rank = f"{metrics[metric]['spearman']:.2f}" if metric in metrics else ""
        remark = "more is better" if metric in runs.maximized else ""
        why = proposal.screened.get(metric)
        rows.append(
            [
                metric,
                f"{base:.4g}",
                signed(own.mean),
                f"{signed(own.low)} to {signed(own.high)}",
                verdict,
                rank,
                f"left out: {why}" if why else remark,
            ]
        )
    head = ["metric", f"at {result.natural_name}", "difference", "90% interval", "verdict", "Spearman", "remark"]
    if not any(row[-1] for row in rows):
        head, rows = head[:-1], [row[:-1] for row in rows]
    caption = f"Predicted, proposal minus {result.natural_name}, in the metrics' own units; Spearman: rank correlation out of fold"
    return Section("effects", "Effects on every metric", [Table(caption, head, rows, words=[4, 6])])


def _trust(result: FitResult) -> Section:
    title, diagnostics = "How far predictions can be trusted", result.diagnostics
    entry = diagnostics["objective"]
    if entry is None:
        return Section("trust", title, [missing(f"Not judged: {diagnostics['not_judged']}")])
    head = ["", *(key.replace("_", " ").replace(" percent", ", %").replace("coverage90", "coverage of 90%") for key in MEANINGS)]
    rows = [["surrogate", *_cells(entry)], *([RULES[name], *_cells(entry["baselines"][name])] for name in BASELINES)]
    by_metric = [
        [metric, *_cells(body), *(f"{body['baselines'][name]['spearman']:.3f}" for name in BASELINES)]
        for metric, body in diagnostics["metrics"].items()
    ]
    runs = diagnostics["judged_on"]["runs"]
    blocks: list[Any] = [
        Prose(trust_words(result)),
        Table(f"The objective, {runs} runs in {diagnostics['folds']} folds, each predicted without itself and its repeats", head, rows),
        Drawing(
            "predicted", f"Measured objective of {runs} runs against its prediction from the other folds; Spearman {entry['spearman']:.2f}"
        ),
        Table(
            "By metric, as above",
            ["metric", *head[1:], *(f"Spearman, {RULES[name]}" for name in BASELINES)],
            by_metric,
            folded=f"By metric: {len(by_metric)} rows",
        ),
        Notes(
            [
                f"{name.replace('_', ' ')}: {text}"
                for name, text in (MEANINGS | {RULES[name]: text for name, text in BASELINES.items()}).items()
            ]
        ),
    ]
    members = diagnostics["surrogate"].get("mean_weights")
    if members:
        words = ", ".join(f"{name.replace('_', ' ')} {weight:.2f}" for name, weight in members.items())
        left_out = diagnostics["surrogate"].get("left_out")
        blocks.append(Prose(f"The surrogate is a stack; mean weights over the metrics: {words}." + (f" {left_out}." if left_out else "")))
    blocks.append(
        Prose(
            "These numbers are of runs like those that were measured. Whether the ranking carries over to a larger model, only larger runs can tell."
        )
    )
    return Section("trust", title, blocks)


def _cells(entry: Mapping[str, Any]) -> list[str]:
    shown = []
    for key in MEANINGS:
        value = entry[key]
        shown.append(
            ""
            if value is None
            else f"{value:.2f}"
            if key == "regret_at_1_percent"
            else signed(value)
            if key == "lower_tail_optimism"
            else f"{value:.3f}"
        )
    return shown


def _data(result: FitResult) -> Section:
    diagnostics = result.diagnostics
    sources = list(dict.fromkeys(result.fitted_on.points().sources))
    noise = diagnostics["noise"]
    known = f"{noise['degrees_of_freedom']} degrees of freedom" if noise["from"] == "repeats" else "what the surrogate could not explain"
    facts = [
        Fact("Runs fitted", f"{diagnostics['runs']:,}", f"{diagnostics['mixtures']:,} different mixtures"),
        Fact("Domains", f"{diagnostics['domains']:,}"),
        Fact("Metrics", f"{len(result.prediction.metrics):,}", f"{len(result.prediction.objective.metrics):,} in the objective"),
        Fact("Noise of a run", f"{result.proposal.evidence['objective_noise_std']:.3g}", f"of the objective; {known}"),
    ]
    blocks: list[Any] = [Facts(facts)]
    if len(sources) > 1:
        counts = [[spoken(source), f"{len(result.fitted_on.at_source(source)):,}"] for source in sources]
        blocks.append(Table("Runs by size and tokens", ["source", "runs"], counts))
    blocks.append(LongText("What was asked for, as a file for `--config`", _config_text(result)))
    return Section("data", "The data", blocks)


def _config_text(result: FitResult) -> str:
    import yaml

    # `--maximize` and `--surrogate` count as much as the file.
    maximized = {"maximize": sorted(result.runs.maximized)} if result.runs.maximized else {}
    body = {**result.config.model_dump(mode="json", exclude_defaults=True), **maximized, "surrogate": result.surrogate}
    return yaml.safe_dump(body, sort_keys=False, allow_unicode=True)
