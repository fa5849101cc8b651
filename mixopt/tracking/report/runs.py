"""The sections of the report that account: repetitions, learning curves, noise, cost, how to use the mixture, how it was made."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from mixopt.beginnings import beginning_sentence
from mixopt.domains import unique_tokens_of
from mixopt.export import exporter_names, get_exporter
from mixopt.terminal import quantity
from mixopt.tracking.drawings.runs import amount
from mixopt.tracking.findings import ARM_TITLES, Findings, short_metric
from mixopt.tracking.note import recommended_mixture
from mixopt.tracking.report.blocks import Command, Drawing, Heading, LongText, Notes, Prose, Section, Table, missing, waiting
from mixopt.tracking.report.measured import STAGES, cost_by_stage, curves, noise_by_metric
from mixopt.tracking.report.sections import metric_title
from mixopt.verification import MEAN_BITS_PER_BYTE, spoken


def _about(domain: Mapping[str, Any]) -> str:
    """Before a token count that is estimated from bytes."""
    return "about " if domain.get("token_count_source") == "estimated" else ""


def epochs_section(findings: Findings) -> Section:
    """Repetitions in the target run, and whether the proxies repeated as much."""
    context, proposal = findings.context, findings.proposal
    budget_tokens = float(context["budget_tokens"])
    unique: Mapping[str, Any] = context.get("unique") or {}
    epochs = proposal.epochs if proposal else {}
    rows = []
    for domain in context["domains"]:
        name, tokens = domain["name"], float(domain["target_tokens"])
        natural = context["natural"][name] * budget_tokens / unique_tokens_of(domain)
        seen, note = unique.get(name) or ("", "")
        shown = [f"{epochs[name]:.2f}"] if proposal else []
        rows.append(
            [
                name,
                f"{_about(domain)}{quantity(tokens)}",
                *shown,
                f"{natural:.2f}",
                f"{float(domain['max_epochs']):g}",
                f"{seen:,}" if seen else "",
                note,
            ]
        )
    blocks: list[Any] = []
    if proposal is None:
        blocks.append(waiting(findings, "The drawing of the epochs"))
    else:
        listed = "; ".join(f"{name} {value:.2f}" for name, value in sorted(epochs.items(), key=lambda item: -item[1]))
        blocks.append(Drawing("epochs", f"Epochs of each domain under the proposal: {listed}"))
    head = ["domain", "target tokens", *(["proposal"] if proposal else []), "natural", "cap", "unique tokens of a proxy", "note"]
    caption = f"Epochs in a run of {quantity(budget_tokens)} tokens, and what the proxies of the search could see"
    blocks.append(Table(caption, head, rows, words=[len(head) - 1]))
    blocks.append(Notes(_unique_notes(unique)))
    return Section("epochs", "Epochs and caps", blocks)


def _unique_notes(unique: Mapping[str, Any]) -> list[str]:
    """How far the proxies' repetitions are from the target run's."""
    floored = [name for name, (_, note) in unique.items() if note == "floored"]
    capped = [name for name, (_, note) in unique.items() if note == "capped"]
    notes = []
    if floored:
        notes.append(
            f"Floored: {', '.join(floored)}. A proxy this short would see fewer than 64 windows of {'it' if len(floored) == 1 else 'each'}, so it got 64 "
            "and repeated less than the target run would; how much these domains can bear is not measured."
        )
    if capped:
        notes.append(
            f"Capped: {', '.join(capped)}. Less text was prepared than a proxy would have seen, so it repeated more than the target run would."
        )
    return notes or ["Proxies repeated every domain as often as the target run would."]


def curves_section(findings: Findings) -> Section:
    """Losses at the token counts measured, of the search and of the verification."""
    blocks: list[Any] = []
    for stage in STAGES:
        found = curves(findings, stage, findings.shown_metrics)
        name = "curves" if stage == "search" else "curves-verification"
        if not any(len(curve.tokens) > 1 for curve in found):
            none = "no trial of it has finished" if not found else "losses were measured at one token count only"
            blocks.append(missing(f"No curves of the {stage}: {none}."))
            continue
        blocks.append(
            Drawing(
                name,
                f"Loss over training tokens in the {stage}, for the mean and {len(findings.shown_metrics)} metrics; ends are in the table",
            )
        )
        blocks.append(_curve_table(findings, stage))
    recipe = findings.context.get("recipe") or {}
    if recipe.get("schedule") == "wsd" and any(isinstance(block, Drawing) for block in blocks):
        blocks.append(
            Prose(
                f"The learning rate falls over the last {float(recipe['decay_fraction']):.0%} of training, so ends lie below what the points before lead to."
            )
        )
    return Section("curves", "Learning curves", blocks)


def _curve_table(findings: Findings, stage: str) -> Table:
    """Mean losses of the named mixtures at each token count."""
    cells: dict[tuple[str, str], dict[int, list[float]]] = {}
    ends: dict[tuple[str, str], list[float]] = {}
    found = curves(findings, stage, findings.shown_metrics)
    for curve in found:
        for arm in curve.arms:
            ends.setdefault((curve.metric, arm), []).append(curve.all_rows)
            for tokens, bits in zip(curve.tokens, curve.bits_per_byte, strict=True):
                cells.setdefault((curve.metric, arm), {}).setdefault(tokens, []).append(bits)
    one_set = any(curve.one_set_of_rows for curve in found)
    counts = sorted({tokens for values in cells.values() for tokens in values})
    order = {metric: index for index, metric in enumerate((MEAN_BITS_PER_BYTE, *findings.shown_metrics))}
    rows = []
    for (metric, arm), values in sorted(cells.items(), key=lambda item: (order[item[0][0]], item[0][1])):
        seeds = str(max(len(runs) for runs in values.values()))
        losses = [f"{math.fsum(values[count]) / len(values[count]):.4f}" if count in values else "" for count in counts]
        end = [f"{math.fsum(ends[metric, arm]) / len(ends[metric, arm]):.4f}"] if one_set else []
        rows.append([metric_title(metric), ARM_TITLES.get(arm, arm), seeds, *losses, *end])
    head = ["metric", "mixture", "seeds", *(quantity(count) for count in counts), *(["end, all windows"] if one_set else [])]
    return Table(f"Bits per byte in the {stage} after so many tokens, mean over seeds", head, rows, words=[1], folded="Curves as a table")


def noise_section(findings: Findings) -> Section:
    """What a target can tell apart at this size."""
    rows = noise_by_metric(findings, findings.shown_metrics)
    if not rows:
        text = "Not measured yet: noise needs two seeds of one mixture, and no mixture has them in the record."
        return Section("noise", "Noise", [missing(text)])
    weak = [short_metric(row.metric) for row in rows if row.ratio <= 1]
    screened = [short_metric(row.metric) for row in rows if row.screened]
    alt = "Signal to noise: " + "; ".join(f"{short_metric(row.metric)} {row.ratio:.1f}" for row in rows)
    names = [name for name, _, _ in rows[0].by_mixture]
    body = []
    for row in sorted(rows, key=lambda row: (-row.ratio, row.metric)):
        runs = {name: f"{std:.4f} ({seeds})" for name, seeds, std in row.by_mixture}
        numbers = [f"{row.spread_std:.4f}", f"{row.noise_std:.4f}", f"{row.ratio:.1f}"]
        body.append([short_metric(row.metric), *numbers, *(runs.get(name, "") for name in names), "screened out" if row.screened else ""])
    head = ["metric", "over mixtures", "over seeds", "signal/noise", *(f"seeds of {name}" for name in names), "objective"]
    told = f"{len(rows) - len(weak)} of {len(rows)} metrics vary more over mixtures than over seeds."
    blocks: list[Any] = [
        Prose(
            f"{told} "
            + (f"Noise at this size: {', '.join(weak)}. " if weak else "")
            + (f"Screened out of the objective: {', '.join(screened)}." if screened else "None is screened out of the objective.")
        ),
        Drawing("noise", alt),
        Table(
            f"Standard deviations in {findings.loss_unit}; number of seeds in brackets",
            head,
            body,
            words=[len(head) - 1],
            folded="Noise as a table",
        ),
    ]
    return Section("noise", "Noise", blocks)


def cost_section(findings: Findings) -> Section:
    """Trials, tokens, FLOPs, seconds by stage, and what failed."""
    stages = cost_by_stage(findings)
    if not stages:
        return Section("cost", "Cost", [missing("Nothing was spent: no trial has been asked for.")])
    rows = []
    for stage in stages:
        size = "; ".join(f"{name}, {tokens:,} tokens" for name, tokens in stage.sources)
        states = ", ".join(f"{count} {state}" for state, count in stage.states.items())
        each = stage.seconds / max(stage.states.get("completed", 0), 1)
        numbers = [quantity(stage.tokens), amount("FLOPs", stage.flops), f"{stage.seconds:,.0f}", f"{each:,.1f}"]
        rows.append([stage.stage, size, states, *numbers])
    totals = [quantity(sum(s.tokens for s in stages)), amount("FLOPs", math.fsum(s.flops for s in stages))]
    seconds = math.fsum(s.seconds for s in stages)
    rows.append(["both" if len(stages) == 2 else "total", "", f"{sum(s.asked for s in stages)} asked for", *totals, f"{seconds:,.0f}", ""])
    head = ["stage", "each trial", "trials", "tokens", "FLOPs", "seconds", "seconds per trial"]
    blocks: list[Any] = [
        Drawing("cost", f"{seconds:,.0f} seconds of a worker: " + "; ".join(f"{s.stage} {s.seconds:,.0f}" for s in stages)),
        Table("Completed trials; seconds are a pack's time over its members. FLOPs are those of training", head, rows, words=[1, 2]),
    ]
    failures = [
        [
            record.trial.trial_id[:8],
            record.stage,
            record.trial.label,
            record.state.value,
            f"{record.failure.kind}: {record.failure.message}",
        ]
        for record in findings.trials
        if record.failure is not None
    ]
    if failures:
        blocks += [
            Heading("Trials that failed"),
            Table("Failures", ["trial", "stage", "mixture", "state", "why"], failures, words=[1, 2, 3, 4]),
        ]
    return Section("cost", "Cost", blocks)


def export_section(findings: Findings, folder: Path | None) -> Section:
    """The commands that write the mixture in a trainer's syntax."""
    place = shlex.quote(str(folder or (yaml.safe_load(findings.search.experiment_yaml) or {}).get("output") or "DIR"))
    search = findings.search.search_id[:8]
    if findings.proposal is None:
        return Section("export", "How to export", [waiting(findings, "An export")])
    arm, _ = recommended_mixture(findings, findings.proposal)
    blocks: list[Any] = [
        Prose(
            f"Each command writes {spoken(arm)}, which is what this search recommends, with its provenance. Add `--arm NAME` for another mixture."
        )
    ]
    for name in exporter_names():
        exporter = get_exporter(name)
        options = "".join(f" Takes `--option {option}=…`: {meaning.rstrip('.')}." for option, meaning in exporter.options.items())
        blocks.append(
            Command(f"`{name}`: {exporter.description.rstrip('.')}.{options}", f"mixopt export {place} --search {search} --to {name}")
        )
    return Section("export", "How to export", blocks)


def made_section(findings: Findings) -> Section:
    """Versions, hashes, the experiment file: what to quote, and what to compare when two searches disagree."""
    context, search = findings.context, findings.search
    versions: Mapping[str, Any] = context.get("versions") or {}
    rows = [
        ["search", search.search_id],
        ["experiment", str(context.get("experiment_hash", ""))],
        ["tokenizer", f"{context['tokenizer'].get('hash', '')} ({context['tokenizer'].get('vocab_size', '')} entries)"],
        ["strategy", str(context.get("strategy", ""))],
        ["begun", f"{search.created:%Y-%m-%d %H:%M} UTC"],
        ["last change", f"{search.updated:%Y-%m-%d %H:%M} UTC"],
        *([f"version of {name}", str(value)] for name, value in versions.items()),
        *([f"recipe: {name}", str(value)] for name, value in (context.get("recipe") or {}).items() if name != "beginning"),
        *([["trials begin", beginning_sentence(context)]] if beginning_sentence(context) else []),
    ]
    domains = [
        [
            d["name"],
            d["content_hash"],
            f"{d['prepared_tokens']:,}",
            f"{d['prepared_documents']:,}",
            _about(d) + quantity(float(d["target_tokens"])),
        ]
        for d in context["domains"]
    ]
    head = ["domain", "hash of its text", "prepared tokens", "documents", "target tokens"]
    blocks = [
        Table("Identity and versions", ["what", "value"], rows, words=[1], folded="Versions, hashes and settings"),
        Table("Domains as they were prepared", head, domains, words=[1], folded="Domains and their hashes"),
        LongText("The experiment file, resolved", search.experiment_yaml),
    ]
    return Section("made", "How it was made", blocks)
