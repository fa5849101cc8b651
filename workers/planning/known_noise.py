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
from mixopt.objective import find_noise
from mixopt.swarm import Swarm
from mixopt.trial import JsonValue, Source

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


def from_swarm(swarm: Swarm, metrics: Sequence[str], where: str) -> NoiseKnown | None:
    """What the finished trials of one source say about `metrics`; None while they are too few.

    Args:
        where: whose trials these are, as in "8 trials of this search".
    """
    try:
        noise, noisy = find_noise(swarm, tuple(metrics))
    except DataError:
        return None
    targets = tuple(NoiseOfTarget(metric, float(std), noisy.get(metric, "")) for metric, std in zip(metrics, noise.std, strict=True))
    what = f"{len(noisy) or 'None'} of the {len(targets)} losses in the objective {'are' if len(noisy) > 1 else 'is'} noise"
    degrees = f"seed noise with {noise.degrees_of_freedom} degrees of freedom"
    return NoiseKnown("record", f"{what} at this size (measured by {len(swarm)} trials of {where}, {degrees}).", targets)


def from_other_searches(
    history: History, search_id: str, source: Source, metrics: Mapping[str, str], beginning: JsonValue = None
) -> NoiseKnown | None:
    """What the newest other search found at this source about held-out sets that this one has too; None: there is none.

    Args:
        metrics: evaluation key -> name in this search, of those that count in the objective; keys hold content and subset, so equal keys are
            equal measurements.
        beginning: how this search's trials begin, as in their recipe; seeds do less to trials that share their first weights.
    """
    for record in reversed(history.searches()):
        context = history.document(record.search_id, "context")
        if record.search_id == search_id or context is None:
            continue
        shared = {key: name for key, name in metrics.items() if key in context["metrics"]}
        if context["sources"]["search"] != [source.evaluator, source.size, source.tokens] or not shared:
            continue
        if (context.get("recipe") or {}).get("beginning") != beginning:
            continue
        swarm = history.swarm(record.search_id, [domain["name"] for domain in context["domains"]], shared)
        found = from_swarm(swarm, list(shared.values()), f"search {record.search_id[:8]} at the same source")
        if found is not None:
            return found
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
