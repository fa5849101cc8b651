"""Which targets are noise at this size, as far as anything measured says so.

Best is this search's own record: once the natural mixture and some repeats are trained, signal and seed noise of every target are known.
Next is another search of the same record with the same held-out sets at the same source. Else one experiment on another corpus gives the
order of magnitude for held-out text at one size. Otherwise it is not known, and that is said.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mixopt.cost import NoiseKnown, NoiseOfTarget
from mixopt.errors import DataError
from mixopt.history import History
from mixopt.mixture import Mixture
from mixopt.objective import Objective, fit_objective
from mixopt.swarm import Swarm
from mixopt.trial import Source

# One experiment (methods/noise-measured.md): nano proxies with 8,192 entries, 1M tokens, windows of 256, decayed end, 14 domains of real text, eight
# mixtures with two seeds each; bits per byte on held-out text of the domains. Seed noise, and standard deviation over mixtures.
NOTED_SIZE, NOTED_TOKENS = "nano", 1_000_000
NOTED_SEED_STD = {"the mean of 14 domains": 0.021, "a typical single domain": 0.02}
NOTED_MIXTURE_STD = {
    "the mean of 14 domains": 0.061,
    "the mean of 3 code domains": 0.143,
    "the mean of 3 mathematics and encyclopedia domains": 0.129,
}
# Runs half or twice as long are taken to be of the same order.
NOTED_WITHIN = 2.0

UNKNOWN = (
    "Not known before the search: it measures seed noise by repeats, and leaves targets out of the objective that do not rise above it."
)


def from_swarm(swarm: Swarm, weights: Mapping[str, float], natural: Mixture) -> NoiseKnown | None:
    """What the finished trials of this search say; None while they are too few."""
    try:
        # As noise_scaled whatever the search minimizes: only that kind asks which metrics rise above their noise.
        objective = fit_objective("noise_scaled", weights, swarm, natural)
    except DataError:
        return None
    return _of_objective(objective, f"measured by {len(swarm)} trials of this search")


def from_other_searches(history: History, search_id: str, source: Source, metrics: Mapping[str, str]) -> NoiseKnown | None:
    """What the newest other search found that has a proposal at this source and shares held-out sets with this one; None: there is none.

    Args:
        metrics: evaluation key -> name of the metric in this search; keys hold content and subset, so equal keys are equal measurements.
    """
    for record in reversed(history.searches()):
        context, body = history.document(record.search_id, "context"), history.document(record.search_id, "proposal")
        if record.search_id == search_id or context is None or body is None:
            continue
        if context["sources"]["search"] != [source.evaluator, source.size, source.tokens]:
            continue
        here = {context["metrics"][key]: name for key, name in metrics.items() if key in context["metrics"]}
        objective = Objective.from_json(body["evidence"]["objective"])
        found = tuple(
            NoiseOfTarget(here[target.metric], target.seed_std, target.screened) for target in _targets(objective) if target.metric in here
        )
        if found:
            return NoiseKnown("record", _sentence(found, f"measured by search {record.search_id[:8]} at the same source"), found)
    return None


def from_notes(size: str, tokens: int) -> NoiseKnown:
    """What an experiment of this size on another corpus says, or that nothing is known."""
    if size != NOTED_SIZE or not NOTED_TOKENS / NOTED_WITHIN <= tokens <= NOTED_TOKENS * NOTED_WITHIN:
        return NoiseKnown("none", UNKNOWN)
    seeds = ", ".join(f"{value:g} for {what}" for what, value in NOTED_SEED_STD.items())
    mixtures = ", ".join(f"{value:g} for {what}" for what, value in NOTED_MIXTURE_STD.items())
    return NoiseKnown(
        "notes",
        f"Not measured on these targets yet. Order of magnitude, from eight mixtures with two seeds on another corpus ({NOTED_SIZE}, 1M tokens, held-out "
        f"text, bits per byte): a seed moves the loss by a standard deviation of {seeds}; a mixture by {mixtures}. Short answers of benchmarks "
        "were not among them. The search measures its own noise and leaves targets out that do not rise above it.",
    )


def _of_objective(objective: Objective, where: str) -> NoiseKnown:
    targets = _targets(objective)
    return NoiseKnown("record", _sentence(targets, f"{where}, seed noise with {objective.degrees_of_freedom} degrees of freedom"), targets)


def _targets(objective: Objective) -> tuple[NoiseOfTarget, ...]:
    kept = [NoiseOfTarget(metric, noise, "") for metric, noise in zip(objective.metrics, objective.noise_std, strict=True)]
    return (*kept, *(NoiseOfTarget(metric, None, reason) for metric, reason in objective.screened.items()))


def _sentence(targets: Sequence[NoiseOfTarget], where: str) -> str:
    noisy = [target.metric for target in targets if target.screened]
    what = f"{len(noisy)} of {len(targets)} are noise" if noisy else f"none of {len(targets)} is noise"
    return f"{what[0].upper()}{what[1:]} at this size ({where})."
