"""A calibration on a terminal: which rate ranks, what a seed does, what tokens bring, what a slot takes; each with what it rests on."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from mixopt.calibration.result import Calibration, MetricCurve, RateResult, Resources
from mixopt.plan_page import size as bytes_of
from mixopt.terminal import quantity, rows_table


def show_calibration(calibration: Calibration, console: Console) -> None:
    """Prints one source's calibration."""
    source = calibration.source
    title = f"{source.size}, {source.tokens:,} tokens"
    if calibration.swept or len(calibration.rates) > 1:
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
    references = [column for name in calibration.references for column in (f"Spearman, {name}", "of its losses")]
    return ["learning rate", "loss", "pairs alike %", "90% interval %", "better than own %", *references]


def rate_rows(calibration: Calibration) -> list[list[str]]:
    """A row per rate, from small to large."""
    return [_rate_row(calibration, row) for row in sorted(calibration.rates, key=lambda row: row.rate)]


def _rate_row(calibration: Calibration, row: RateResult) -> list[str]:
    marks = "".join(f" ({word})" for word, here in (("own", calibration.own_rate), ("recommended", calibration.rate)) if here == row.rate)
    loss = f"{row.missing} did not end" if row.loss is None else f"{row.loss:.4f}"
    ranking = row.ranking
    if ranking is None:
        return [f"{row.rate:g}{marks}", loss, "", "", "", *[""] * (2 * len(calibration.references))]
    correlations = [
        f"{values.get(name, float('nan')):.2f}"
        for name in calibration.references
        for values in (ranking.spearman, ranking.spearman_metrics)
    ]
    better = "" if row.rate == calibration.own_rate else f"{100 * ranking.beats_own:.0f}"
    interval = f"{100 * ranking.low:.0f} to {100 * ranking.high:.0f}"
    return [f"{row.rate:g}{marks}", loss, f"{100 * ranking.accuracy:.0f}", interval, better, *correlations]


def rates_explained(calibration: Calibration) -> str:
    """What the columns mean."""
    judged = " and ".join(calibration.references) or "nothing, since no longer run ended"
    return (
        f"{calibration.mixtures} mixtures, one seed each, judged by {judged}. Pairs alike: pairs of mixtures ordered as there, by the objective and by "
        "its losses, half and half. The interval, and how often a rate does better than the own one, are over resampled mixtures."
    )


# Noise


def noise_head(calibration: Calibration) -> list[str]:
    """Columns of `noise_rows`."""
    mixtures = list(calibration.noise[0].by_mixture) if calibration.noise else []
    return ["loss", "a seed", "90% interval", "mixtures", *(f"seeds of {name}" for name in mixtures)]


def noise_rows(calibration: Calibration) -> list[list[str]]:
    """A row per metric."""
    return [
        [
            f"{row.metric}{' (noise)' if not row.above_noise else ''}",
            f"{row.std:.4f}",
            f"{row.low:.4f} to {row.high:.4f}",
            f"{row.spread:.4f}",
            *(f"{std:.4f} ({seeds})" for seeds, std in row.by_mixture.values()),
        ]
        for row in calibration.noise
    ]


def noise_explained(calibration: Calibration) -> list[str]:
    """How surely it is known, whether it depends on the mixture, and what it means for differences."""
    asked = [row for row in calibration.noise if row.unequal is not None]
    unequal = [row.metric for row in asked if row.unequal is not None and row.unequal < 0.05]
    sentences = [
        f"Pooled over mixtures, {calibration.degrees_of_freedom} degrees of freedom; number of seeds in brackets. `mixtures`: what mixtures do, the "
        "noise's share removed; losses that they move by less than a seed does are noise at this size."
    ]
    if asked:
        sentences.append(
            f"Noise differs between mixtures for {len(unequal)} of {len(asked)} losses (Bartlett's test at 5%, which finds {0.05 * len(asked):.1f} by "
            f"chance){': ' + ', '.join(unequal) if unequal else ''}."
        )
    unit = calibration.objective_unit
    smallest = ", ".join(f"{calibration.resolvable(seeds):.3g} with {seeds}" for seeds in (2, 3, 5))
    sentences.append(
        f"Objective: a seed moves it by {calibration.objective_noise_std:.3g} {unit}. The smallest difference between two mixtures that seeds tell apart "
        f"(paired, 5%, four times out of five): {smallest} seeds each."
    )
    if calibration.screened:
        sentences.append(f"Left out of the objective: {', '.join(calibration.screened)}.")
    return sentences


# Curves


def curve_head(calibration: Calibration) -> list[str]:
    """Columns of `curve_rows`."""
    tokens, times = calibration.source.tokens, max(curve.times for curve in calibration.curves)
    longer = [f"at {quantity(times * tokens)}"] if times > 1 else []
    return ["loss", f"at {quantity(tokens)}", *longer, "exponent", "floor", "twice the tokens", "ten times", "points"]


def curve_rows(calibration: Calibration) -> list[list[str]]:
    """A row per metric."""
    times = max(curve.times for curve in calibration.curves)
    return [_curve_row(calibration, curve, times > 1) for curve in calibration.curves]


def _curve_row(calibration: Calibration, curve: MetricCurve, longer: bool) -> list[str]:
    ends = [f"{curve.end:.4f}", *([f"{curve.longer_end:.4f}" if curve.longer_end is not None else ""] if longer else [])]
    law, tokens = curve.law, calibration.source.tokens
    if law is None:
        return [curve.metric, *ends, "", "", "", "", ""]
    gains = [f"\N{MINUS SIGN}{law.gain(tokens, times):.4f}" for times in (2, 10)]
    return [curve.metric, *ends, f"{law.exponent:.2f}", f"{law.floor:.2f}", *gains, f"{law.points}"]


def curves_explained(calibration: Calibration) -> str:
    """What was fitted."""
    few = (
        " Through three points the law goes exactly: nothing tests it."
        if max(c.law.points if c.law else 0 for c in calibration.curves) <= 3
        else ""
    )
    return (
        f"Mean over mixtures. The law, floor + amplitude * tokens^-exponent, is fitted to losses measured before the rate decays; what it says of ten times "
        f"the tokens is extrapolation.{few}"
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
