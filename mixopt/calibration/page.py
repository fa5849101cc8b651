"""A calibration on a terminal: which rate ranks, what a seed does, what tokens bring, what a slot takes; each with what it rests on."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from mixopt.calibration.design import title_of
from mixopt.calibration.result import Calibration, MetricCurve, RateResult, Resources
from mixopt.plan_page import size as bytes_of
from mixopt.terminal import quantity, rows_table
from mixopt.tracking.findings import short_metric

NAMED = ("natural", "uniform", "UniMax")
UNEQUAL_AT = 0.05


def show_calibration(calibration: Calibration, console: Console) -> None:
    """Prints one source's calibration."""
    title = title_of(calibration.source)
    if len(calibration.rates) > 1:
        console.print(rows_table(f"Learning rates of {title}", rate_head(calibration), rate_rows(calibration)))
        _say(console, rates_explained(calibration))
        _say(console, calibration.reason)
    console.print(rows_table(f"Seed noise of {title}, bits per byte", noise_head(calibration), noise_rows(calibration)))
    for sentence in noise_explained(calibration):
        _say(console, sentence)
    if calibration.curves:
        console.print(rows_table(f"What tokens bring {title}, bits per byte", curve_head(calibration), curve_rows(calibration)))
        _say(console, curves_explained(calibration))
    if calibration.resources:
        console.print(rows_table("Speed and memory", RESOURCE_HEAD, resource_rows(calibration.resources)))


# Rates


def rate_head(calibration: Calibration) -> list[str]:
    """Columns of `rate_rows`."""
    references = [column for name in calibration.references for column in (f"rho, {name}", "of losses")]
    return ["learning rate", "", "loss", "pairs alike", "90%", "beats own", *references]


def rate_rows(calibration: Calibration) -> list[list[str]]:
    """A row per rate, from small to large."""
    return [_rate_row(calibration, row) for row in sorted(calibration.rates, key=lambda row: row.rate)]


def _rate_row(calibration: Calibration, row: RateResult) -> list[str]:
    marks = [word for word, rate in (("own", calibration.own_rate), ("best", calibration.rate)) if rate == row.rate and calibration.swept]
    loss = f"{row.missing} failed" if row.loss is None else f"{row.loss:.4f}"
    first, ranking = [f"{row.rate:g}", ", ".join(marks), loss], row.ranking
    if ranking is None:
        return [*first, "", "", "", *[""] * (2 * len(calibration.references))]
    correlations = [f"{values[name]:.2f}" for name in calibration.references for values in (ranking.spearman, ranking.spearman_metrics)]
    better = "" if row.rate == calibration.own_rate else f"{ranking.beats_own:.0%}"
    return [*first, f"{ranking.accuracy:.0%}", f"{100 * ranking.low:.0f} to {100 * ranking.high:.0f}", better, *correlations]


def rates_explained(calibration: Calibration) -> str:
    """What the columns mean."""
    if not calibration.references:
        return f"{calibration.mixtures} mixtures, one seed each. No longer run of all of them ended, so nothing judges the rates."
    judged = " and of ".join(calibration.references)
    return (
        f"{calibration.mixtures} mixtures, one seed each, judged by runs of {judged}, at the rate that is usual there. Pairs alike: pairs of mixtures ordered as "
        "there, by the objective and by its losses, half and half; its 90% interval, and how often a rate beats the own one, over resampled mixtures. "
        "rho: Spearman's correlation of the objective, and the mean of its losses'."
    )


# Noise


def noise_head(calibration: Calibration) -> list[str]:
    """Columns of `noise_rows`."""
    return ["loss", "a seed", "90%", "mixtures", *(f"{name} ({seeds})" for name, seeds in _repeated(calibration).items())]


def noise_rows(calibration: Calibration) -> list[list[str]]:
    """A row per metric; metrics that mixtures move by less than a seed does are marked."""
    return [
        [
            f"{short_metric(row.metric)}{'' if row.above_noise else ' (noise)'}",
            f"{row.std:.4f}",
            f"{row.low:.3f} to {row.high:.3f}",
            f"{row.spread:.4f}",
            *(f"{row.by_mixture[name][1]:.4f}" for name in _repeated(calibration)),
        ]
        for row in calibration.noise
    ]


def _repeated(calibration: Calibration) -> dict[str, int]:
    """Mixture -> seeds; baselines first."""
    found = {name: seeds for name, (seeds, _) in calibration.noise[0].by_mixture.items()} if calibration.noise else {}
    return dict(sorted(found.items(), key=lambda item: (NAMED.index(item[0]) if item[0] in NAMED else len(NAMED), item[0])))


def noise_explained(calibration: Calibration) -> list[str]:
    """How surely it is known, whether it depends on the mixture, and what it means for differences."""
    asked = [row for row in calibration.noise if row.unequal is not None]
    unequal = [short_metric(row.metric) for row in asked if row.unequal is not None and row.unequal < UNEQUAL_AT]
    sentences = [
        f"A seed: pooled over mixtures, {calibration.degrees_of_freedom} degrees of freedom. Mixtures: what they do, the noise's share removed. On the right: "
        "seeds of one mixture, their number in brackets."
    ]
    if asked:
        which = f": {', '.join(unequal)}" if unequal else ""
        sentences.append(
            f"Noise differs between mixtures for {len(unequal)} of {len(asked)} losses{which} (Bartlett's test at {UNEQUAL_AT:.0%}; "
            f"{UNEQUAL_AT * len(asked):.1f} would by chance)."
        )
    smallest = ", ".join(f"{calibration.resolvable(seeds):.3g} with {seeds}" for seeds in (2, 3, 5))
    sentences.append(
        f"Objective: a seed moves it by {calibration.objective_noise_std:.3g} {calibration.objective_unit}. The smallest difference that can be told from noise "
        f"(paired seeds, 5%, four times out of five): {smallest} seeds of each mixture."
    )
    if calibration.screened:
        sentences.append(f"Left out of the objective, as noise at this size: {', '.join(map(short_metric, calibration.screened))}.")
    return sentences


# Curves


def curve_head(calibration: Calibration) -> list[str]:
    """Columns of `curve_rows`."""
    tokens, times = calibration.source.tokens, max(curve.times for curve in calibration.curves)
    longer = [f"at {quantity(times * tokens)}"] if times > 1 else []
    return ["loss", f"at {quantity(tokens)}", *longer, "exponent", "twice the tokens", "ten times", "points"]


def curve_rows(calibration: Calibration) -> list[list[str]]:
    """A row per metric."""
    times = max(curve.times for curve in calibration.curves)
    return [_curve_row(calibration, curve, times > 1) for curve in calibration.curves]


def _curve_row(calibration: Calibration, curve: MetricCurve, longer: bool) -> list[str]:
    ends = [f"{curve.end:.4f}", *([f"{curve.longer_end:.4f}" if curve.longer_end is not None else ""] if longer else [])]
    law, tokens = curve.law, calibration.source.tokens
    if law is None:
        return [short_metric(curve.metric), *ends, "", "", "", ""]
    gains = [f"\N{MINUS SIGN}{law.gain(tokens, times):.4f}" for times in (2, 10)]
    return [short_metric(curve.metric), *ends, f"{law.exponent:.2f}", *gains, f"{law.points}"]


def curves_explained(calibration: Calibration) -> str:
    """What was fitted."""
    few = (
        " Through three points the law goes exactly: nothing tests it."
        if max(c.law.points if c.law else 0 for c in calibration.curves) <= 3
        else ""
    )
    return (
        "Mean over mixtures, at the end of training. What more tokens bring is by a law, floor + amplitude * tokens^-exponent, through losses measured before the "
        f"rate decays; of ten times the tokens it is extrapolation. Empty: losses that do not fall.{few}"
    )


# Resources

RESOURCE_HEAD = ["source", "trials", "tokens/s per slot", "expected", "pack of", "its memory", "estimated"]


def resource_rows(resources: Sequence[Resources]) -> list[list[str]]:
    """A row per source."""
    return [
        [
            f"{entry.source.size}, {quantity(entry.source.tokens)}",
            f"{entry.trials}",
            quantity(entry.tokens_per_second),
            "" if entry.expected_tokens_per_second is None else quantity(entry.expected_tokens_per_second),
            f"{entry.members or ''}",
            "" if entry.peak_bytes is None else bytes_of(entry.peak_bytes),
            "" if entry.estimated_bytes is None else bytes_of(entry.estimated_bytes),
        ]
        for entry in resources
    ]


def _say(console: Console, text: str) -> None:
    """A sentence: broken at the width of a terminal, whole where there is none."""
    console.print(text, highlight=False, markup=False, soft_wrap=not console.is_terminal)
