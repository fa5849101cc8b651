"""Earlier runs as this search sees them: over its domains, on its metrics, and told apart by whether they are trials like its own.

Domains are matched by content, metrics by what was scored. A run that would have the same identity as a trial of this search at its mixture, at any of
the search's sources, *is* such a trial: its losses count as measured there. Every other run (another size, recipe or tokenizer, other epochs of a domain,
other rows of a held-out set) is a run of a source of its own, of which only a surrogate over several sources makes anything. The main trade-off: what
gives weight to text that is gone is left out altogether, for nothing says what the rest of it would have done without.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from mixopt.components.config import EVALUATORS
from mixopt.errors import ConfigError
from mixopt.factory import TrialFactory
from mixopt.history import History
from mixopt.mixture import Mixture, Schedule
from mixopt.record.contents import swarm_of
from mixopt.surrogates.base import Surrogate, takes_several_sizes, takes_several_sources
from mixopt.swarm import Swarm, on_curve_rows
from mixopt.trial import WEIGHT_DECIMALS, JsonValue, Outcome, Source, Trial, content_digest

LABEL = "earlier"
OF_SEVERAL_EVALUATORS = ("multi_source_gp", "expert_ensemble", "auto")
"""Surrogates for which an earlier search is one more source; laws over scales want the runs of one evaluator."""
HeldOut = tuple[str, str]
"""Content hash and kind of what a metric is scored on."""


@dataclass(frozen=True)
class Wanted:
    """What earlier runs have to fit.

    Attributes:
        factory: makes the trials of this search, where its answer is wanted.
        metrics, curve_metrics: evaluation key -> metric of this search, of its trials there.
        held_out: what each metric is scored on.
        counted: metrics of the objective, without which a run says nothing.
        cheaper: the same at each other source that the search runs trials at.
    """

    factory: TrialFactory
    metrics: Mapping[str, str]
    curve_metrics: Mapping[str, str]
    held_out: Mapping[str, HeldOut]
    counted: tuple[str, ...]
    cheaper: tuple[Wanted, ...] = ()

    @property
    def domains(self) -> tuple[str, ...]:
        return self.factory.domains.names

    @property
    def sources(self) -> tuple[Source, ...]:
        """Those of the search's trials; the answer is wanted at the last."""
        return tuple(one.factory.source for one in (*self.cheaper, self))

    def at(self, source: Source) -> Wanted:
        """What runs of a source have to fit: where the search has none there, the same as where its answer is wanted."""
        return next((one for one in self.cheaper if one.factory.source == source), self)


@dataclass(frozen=True)
class Earlier:
    """Runs that count as evidence and not as trials.

    Attributes:
        swarm: over this search's domains; those of its own sources are trials like its own, others are of sources of their own.
        unscored: trials like this search's own that were not scored on all its metrics, and whose weights are kept.
        known: ids of all runs that fit the domains; with the tables' content, what the search's identity sees.
        notes: what was taken in and what was left out, as sentences.
    """

    swarm: Swarm
    unscored: tuple[Trial, ...] = ()
    known: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def identity(self) -> dict[str, JsonValue]:
        """What of them makes another search; by content, whatever the folders and files are called."""
        return {"warm_start": sorted(self.known)} if self.known else {}


def joined(parts: Iterable[Earlier], domains: Sequence[str]) -> Earlier:
    """Several as one; of a run that is in two of them the first counts."""
    whole = Earlier(Swarm.empty(domains))
    for part in parts:
        known = {*whole.swarm.trial_ids, *(trial.trial_id for trial in whole.unscored)}
        whole = Earlier(
            whole.swarm.with_others(part.swarm, leaving=known),
            (*whole.unscored, *(trial for trial in part.unscored if trial.trial_id not in known)),
            tuple(dict.fromkeys([*whole.known, *part.known])),
            whole.notes + part.notes,
        )
    return whole


def refuse_unless_fitting(surrogate: Surrogate, name: str, earlier: Earlier, own: Collection[Source]) -> None:
    """Raises ConfigError where runs of other sources are there that the surrogate of that name cannot fit beside those of the search's `own`."""
    sources = earlier.swarm.points().sources
    others = {*sources} - {*own}
    of_evaluators = name in OF_SEVERAL_EVALUATORS and (takes_several_sizes(surrogate) or len({s.size for s in (*own, *others)}) == 1)
    if others and not (takes_several_sources(surrogate) and of_evaluators):
        count = sum(source in others for source in sources)
        keys = ", ".join(sorted(source.key for source in others))
        raise ConfigError(
            f"`search.warm_start` brings {count} runs that are not like this search's trials ({keys}), and the surrogate '{name}' does not fit them beside "
            "its own.",
            "Set `search.surrogate: multi_source_gp`, or leave these runs out.",
        )


def read_search(history: History, search_id: str, wanted: Wanted, can_score: Callable[[str], bool]) -> Earlier:
    """The finished trials of an earlier search that were trained. Those of its verification, few and all near its answer, stay out.

    Args:
        history: the record that holds it.
        can_score: whether the weights of a trial with this id lie where this search's trials do.
    """
    names = {domain.content_hash: domain.name for domain in wanted.factory.domains.domains}
    scored_on = held_out_of(history.document(search_id, "context") or {})
    like, unscored, others, gone, known = [], [], [], set[str](), []
    incomparable = finished = 0
    for record in history.trials(search_id, "search"):
        # Averages of components can be had again for nothing; beside trained runs of the same name they would pass for these.
        if record.outcome is None or record.trial.source.evaluator in EVALUATORS:
            continue
        finished += 1
        lost = weighted_but_gone(record.trial, names)
        if lost:
            gone |= lost
            continue
        here = wanted.at(record.trial.source)
        trial = here.factory.make(mapped(record.trial, names, wanted.domains), record.trial.seed, LABEL)
        known.append(record.trial.trial_id)
        measured = _at_end(record.outcome)
        is_like = trial.trial_id == record.trial.trial_id
        if is_like and set(here.metrics) <= set(measured):
            like.append((trial, record.outcome))
        elif is_like and can_score(trial.trial_id):
            unscored.append(trial)
        elif set(wanted.counted) <= {metric for metric, what in wanted.held_out.items() if what in _contents(measured, scored_on)}:
            source = replace(record.trial.source, evaluator=f"{LABEL}-{search_id[:8]}")
            others.append((replace(trial, trial_id=record.trial.trial_id, source=source), record.outcome))
        else:
            incomparable += 1
    own_keys: dict[str, str] = {}
    for one in (*wanted.cheaper, wanted):
        own_keys |= {**on_curve_rows(one.curve_metrics), **one.metrics}
    by_content = {what: metric for metric, what in wanted.held_out.items()}
    their_keys = {key: by_content[what] for key, what in scored_on.items() if what in by_content}
    swarm = swarm_of(like, wanted.domains, own_keys).with_others(swarm_of(others, wanted.domains, their_keys))
    left = finished - len(known)
    notes = [
        f"Warm start from search {search_id[:8]}: {len(like) + len(unscored)} of its {finished} runs are trials like this search's own"
    ]
    notes[0] += f", {len(others)} are taken as runs of a source of their own." if others else "."
    if left:
        notes.append(
            f"{left} runs give weight to {_named(gone)}, which {'is' if len(gone) == 1 else 'are'} no longer there, and are left out."
        )
    if incomparable:
        notes.append(f"{incomparable} runs were not scored on all held-out text that counts here, and are left out.")
    return Earlier(swarm, tuple(unscored), tuple(known), tuple(notes))


def held_out_of(context: Mapping[str, JsonValue]) -> dict[str, HeldOut]:
    """Evaluation key -> what it scores, of a search by its stored context."""
    contents = {f"valid/{d['name']}": (d["held_out"]["content_hash"], d.get("kind", "text")) for d in context.get("domains", ())}
    contents |= {f"target/{t['name']}": (t["content_hash"], t["kind"]) for t in context.get("targets", ())}
    return {key: contents[metric] for key, metric in context.get("metrics", {}).items() if metric in contents}


def weighted_but_gone(trial: Trial, names: Mapping[str, str]) -> set[str]:
    """Names of the domains that a trial gives weight to and that `names` (content hash -> name) lacks."""
    weights = trial.schedule.array().round(WEIGHT_DECIMALS)
    return {d.name for column, d in enumerate(trial.domains) if weights[:, column].any() and d.content_hash not in names}


def mapped(trial: Trial, names: Mapping[str, str], domains: Sequence[str]) -> Schedule:
    """A trial's schedule over other domains, matched by content; new ones have no weight."""
    phases = []
    for mixture in trial.schedule.mixtures:
        weights = {names[d.content_hash]: w for d, w in zip(trial.domains, mixture.weights, strict=True) if d.content_hash in names}
        phases.append(Mixture(tuple(domains), tuple(weights.get(name, 0.0) for name in domains)))
    return Schedule(tuple(phases), trial.schedule.fractions)


def _at_end(outcome: Outcome) -> tuple[str, ...]:
    end = max(m.tokens for m in outcome.measurements)
    return tuple(m.evaluation_key for m in outcome.measurements if m.tokens == end)


def _contents(keys: Iterable[str], scored_on: Mapping[str, HeldOut]) -> set[HeldOut]:
    return {scored_on[key] for key in keys if key in scored_on}


def _named(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in sorted(names))


def content_of(swarm: Swarm) -> str:
    """What the identity of a search sees of a table: weights and losses, not its name."""
    runs = swarm.runs.select("trial_id", "seed", "size", "source_tokens", "requested").rows()
    return content_digest([repr(runs), swarm.digest()])
