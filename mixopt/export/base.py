"""What an exporter is given and what it gives back, and the checks that hold for every trainer.

An exporter is a pure function from a mixture with its context to named texts; writing files is the caller's business, so that contract tests
read the texts back with the trainer's own rules. The main trade-off: zero weights are dropped everywhere, also where a trainer would accept
them, because three trainers hang or fail on a zero and none of them gains anything from it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Protocol

from mixopt.domains import unique_tokens_of
from mixopt.errors import ConfigError, InfeasibleError
from mixopt.mixture import Mixture, Schedule
from mixopt.proposal import Proposal
from mixopt.verification import Verification

# Digits after the point of an exported weight: one training window in 10 billion tokens is 5e-8, two orders above what rounding loses.
WEIGHT_DECIMALS = 9

# Repetitions above the cap by less than this share are float noise of the optimizer that stopped at the cap, not a violation.
EPOCH_TOLERANCE = 1e-4
# The same for a weight outside its bounds.
BOUNDS_TOLERANCE = 1e-6


@dataclass(frozen=True)
class ExportInput:
    """A schedule to hand to a trainer, with everything its provenance needs.

    Attributes:
        schedule: shares of tokens; what is exported.
        arm: what the schedule is: proposal, natural, best_measured, ...
        context: the search's "context" document (domains, budget, tokenizer, versions, hashes).
        proposal, verification: what the search found; None where it has none yet.
        options: the exporter's own options, by name.
    """

    schedule: Schedule
    arm: str
    search_id: str
    context: Mapping[str, Any]
    proposal: Proposal | None = None
    verification: Verification | None = None
    options: Mapping[str, str] = field(default_factory=dict)


class Exporter(Protocol):
    """One trainer's syntax. One contract test covers every implementation.

    `options` names the options that `render` understands, with what each means. `phases` tells whether the syntax can express a schedule of
    several phases; where it cannot, `export` refuses one before `render` sees it.
    """

    @property
    def name(self) -> str: ...
    @property
    def description(self) -> str: ...
    @property
    def options(self) -> Mapping[str, str]: ...
    @property
    def phases(self) -> bool: ...
    def render(self, request: ExportInput) -> dict[str, str]:
        """File name -> text.

        Raises:
            ConfigError: the syntax cannot express this mixture, or an option is wrong.
        """
        ...


def decimal_weights(weights: Mapping[str, float], decimals: int = WEIGHT_DECIMALS) -> dict[str, str]:
    """Weights as decimal numbers that are positive and whose printed digits sum to exactly 1; zeros are dropped.

    Largest-remainder (Hamilton) rounding, so no weight moves by more than one unit of the last digit.
    """
    unit = 10**decimals
    total = sum(Fraction(weight) for weight in weights.values())
    exact = {name: Fraction(weight) * unit / total for name, weight in weights.items()}
    units = {name: math.floor(value) for name, value in exact.items()}
    by_remainder = sorted(exact, key=lambda name: (units[name] - exact[name], name))
    for name in by_remainder[: unit - sum(units.values())]:
        units[name] += 1
    return {name: _decimal(count, decimals) for name, count in units.items() if count > 0}


def _decimal(count: int, decimals: int) -> str:
    whole, rest = divmod(count, 10**decimals)
    digits = f"{rest:0{decimals}d}".rstrip("0") or "0"
    return f"{whole}.{digits}"


def epochs_by_domain(context: Mapping[str, Any], mixture: Mixture) -> dict[str, float]:
    """How often the target run repeats each domain under `mixture`."""
    weights = mixture.as_dict()
    budget_tokens = float(context["budget_tokens"])
    return {domain["name"]: weights[domain["name"]] * budget_tokens / unique_tokens_of(domain) for domain in context["domains"]}


def check_domains(context: Mapping[str, Any], schedule: Schedule) -> None:
    """The schedule speaks of exactly the domains of the search.

    Raises:
        ConfigError: it does not.
    """
    known = [domain["name"] for domain in context["domains"]]
    if set(known) != set(schedule.domains):
        raise ConfigError(
            f"The mixture names the domains {', '.join(sorted(schedule.domains))}; the search has {', '.join(sorted(known))}.",
            "Export a mixture of the same search.",
        )


def check_bounds(context: Mapping[str, Any], mixture: Mixture) -> None:
    """Every weight lies within the bounds of the experiment file.

    Raises:
        InfeasibleError: some do not; every one is named with its numbers.
    """
    weights = mixture.as_dict()
    broken = []
    for domain in context["domains"]:
        weight, (least, most) = weights[domain["name"]], domain.get("bounds", (0.0, 1.0))
        if not least - BOUNDS_TOLERANCE <= weight <= most + BOUNDS_TOLERANCE:
            broken.append(f"'{domain['name']}' weighs {weight:.4g}, its bounds are {least:g} to {most:g}")
    if broken:
        raise InfeasibleError(
            f"The mixture leaves the bounds of the experiment file: {'; '.join(broken)}.",
            "Export a mixture within them, or change `bounds` and search again.",
        )


def check_groups(context: Mapping[str, Any], mixture: Mixture) -> None:
    """The rules on groups hold: bounds on a group's weight, and its given split.

    Raises:
        InfeasibleError: some do not; every one is named with its numbers.
    """
    weights = mixture.as_dict()
    broken = []
    for group in context.get("groups", ()):
        weight = math.fsum(weights[name] for name in group["members"])
        least, most = group.get("bounds", (0.0, 1.0))
        if not least - BOUNDS_TOLERANCE <= weight <= most + BOUNDS_TOLERANCE:
            broken.append(f"group '{group['path']}' weighs {weight:.4g}, its bounds are {least:g} to {most:g}")
        for name, share in group.get("split", {}).items():
            if abs(weights[name] - share * weight) > BOUNDS_TOLERANCE:
                broken.append(f"'{name}' is {weights[name] / weight:.4g} of group '{group['path']}', its given share is {share:.4g}")
    if broken:
        raise InfeasibleError(
            f"The mixture leaves the rules on groups of the experiment file: {'; '.join(broken)}.",
            "Export a mixture that keeps them, or change `groups` and search again.",
        )


def check_constraints(context: Mapping[str, Any], mixture: Mixture) -> None:
    """The limits on the mixture as a whole hold: the number of its domains, and its distance from a given one.

    Raises:
        InfeasibleError: one does not; both are named with their numbers.
    """
    said, weights = context.get("constraints", {}), mixture.as_dict()
    broken = []
    if "most_domains" in said:
        count = sum(weight > 0 for weight in weights.values())
        if count > said["most_domains"]:
            broken.append(f"{count} domains have weight, at most {said['most_domains']} may")
    if "near" in said:
        near = said["near"]
        moved = 0.5 * math.fsum(abs(weights[name] - weight) for name, weight in near["weights"].items())
        if moved > near["distance"] + BOUNDS_TOLERANCE:
            broken.append(f"it is {moved:.4g} of the tokens away from {near['title']}, at most {near['distance']:g} are allowed")
    if broken:
        raise InfeasibleError(
            f"The mixture leaves the limits of the experiment file: {'; '.join(broken)}.",
            "Export a mixture within them, or change `constraints` and search again.",
        )


def check_epochs(context: Mapping[str, Any], mixture: Mixture) -> None:
    """No domain is repeated more often than it may be.

    Raises:
        InfeasibleError: some are; every one is named with its numbers.
    """
    epochs = epochs_by_domain(context, mixture)
    weights = mixture.as_dict()
    broken = []
    for domain in context["domains"]:
        name, cap = domain["name"], float(domain["max_epochs"])
        if epochs[name] > cap * (1 + EPOCH_TOLERANCE):
            largest = cap * unique_tokens_of(domain) / float(context["budget_tokens"])
            broken.append(f"'{name}' at weight {weights[name]:.4g} repeats {epochs[name]:.4g} times, {cap:g} allow at most {largest:.4g}")
    if broken:
        raise InfeasibleError(
            f"The mixture repeats domains more often than their epoch caps: {'; '.join(broken)}.",
            "Export a mixture within the caps, or raise `max_epochs` and search again.",
        )


def only_phase(request: ExportInput) -> Mixture:
    """The one mixture of a schedule of one phase; `export` has refused others."""
    assert len(request.schedule.mixtures) == 1
    return request.schedule.mixtures[0]


def check_options(exporter: Exporter, options: Mapping[str, str]) -> None:
    """Every option is one the exporter knows.

    Raises:
        ConfigError: one is not; names those there are.
    """
    unknown: Sequence[str] = [name for name in options if name not in exporter.options]
    if unknown:
        known = ", ".join(exporter.options) or "none"
        raise ConfigError(f"Exporter '{exporter.name}' has no option '{unknown[0]}'.", f"Its options: {known}.")
