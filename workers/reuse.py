"""`mixopt reuse`: an earlier search and a new experiment file, compared; what to measure anew, and what that risks. Trains nothing.

The corpus of the new file is prepared, as a search would, for only its content says what changed. The main trade-off: that takes the time of tokenizing what
is new, and in return no file is taken for the same by its name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from mixopt.config import Experiment
from mixopt.corpus.manifest import Manifest
from mixopt.domains import DomainSet
from mixopt.errors import ConfigError
from mixopt.history import History
from mixopt.mixture import Schedule
from mixopt.progress import Reporter
from mixopt.reuse.changes import Changes, compare
from mixopt.reuse.earlier_search import EarlierSearch
from mixopt.reuse.plans import Plan, PlanName, Risks, make_plans
from mixopt.reuse.splits import Splits, find_splits, found_sentences
from mixopt.reuse.virtual import with_kept
from mixopt.strategies.design import design_sequence
from mixopt.surrogates import get_surrogate
from mixopt.warm_start.earlier import LABEL, mapped, read_search, refuse_unless_fitting, weighted_but_gone
from workers.compose import Search, compose, objective_weights, record_location
from workers.tokens.documents import prepared_file, shared_documents
from workers.tokens.prepare import prepare
from workers.warm_start import held_out_sets, kept_in, wanted_of

# Points of the design are looked through for so many distinct trials; repeats are few.
MOST_POINTS = 4


@dataclass(frozen=True)
class Reuse:
    """What can be reused.

    Attributes:
        experiment: of the new file, with the tokenizer of the earlier search where the file leaves it open.
        tokenizer: path of that tokenizer, where it has to be written into the file; None: it need not.
        valid, gone: earlier trials that are trials of the new search too, and those that give weight to text that is gone.
        usable: of the valid ones, those that a warm start of the new search counts as its own.
        warm: whether the written file begins with the earlier runs.
        notes: what limits the comparison.
    """

    earlier: EarlierSearch
    folder: Path
    experiment: Experiment
    changes: Changes
    plans: tuple[Plan, ...]
    recommended: PlanName
    why: str
    valid: int
    gone: int
    usable: int
    warm: bool
    spearman: float
    tokenizer: str | None
    notes: tuple[str, ...]

    def plan(self, name: PlanName) -> Plan:
        """Raises ConfigError where there is no such plan, or it cannot be run."""
        found = next((plan for plan in self.plans if plan.name == name), None)
        if found is None:
            raise ConfigError(f"There is no plan '{name}' here. {self.why}", f"There are: {', '.join(plan.name for plan in self.plans)}.")
        if found.problem:
            raise ConfigError(f"The plan '{name}' cannot be run: {found.problem}", "Choose another plan.")
        return found

    @property
    def saved(self) -> dict[str, int]:
        """Plan -> proxies that it trains less than a full recompute would."""
        everything = next(plan for plan in self.plans if plan.name == "none").proxies
        return {plan.name: everything - plan.to_train for plan in self.plans}

    @property
    def warm_start(self) -> dict[str, str] | None:
        """The entry of the earlier search in an experiment file; None where the new search could not run with it."""
        return None if not self.warm else {"folder": str(self.folder.resolve()), "search": self.earlier.search_id}

    def to_json(self) -> dict[str, Any]:
        return {
            "earlier": {
                "search_id": self.earlier.search_id,
                "name": self.earlier.name,
                "arm": self.earlier.arm,
                "answer": dict(self.earlier.answer),
            },
            "changes": [{"kind": change.kind, "old": change.old, "new": list(change.new)} for change in self.changes.changes],
            "objective_unit": self.earlier.objective.unit,
            "indistinct": self.earlier.noise,
            "law_spearman": None if self.spearman != self.spearman else self.spearman,
            "trials": {"earlier": len(self.earlier.trials), "valid": self.valid, "gone": self.gone, "usable": self.usable},
            "plans": [{**plan.to_json(), "saved": self.saved[plan.name]} for plan in self.plans],
            "recommended": self.recommended,
            "why": self.why,
            "notes": list(self.notes),
        }


def find_reuse(history: History, search_id: str, folder: Path, experiment: Experiment, splits: Splits | None, reporter: Reporter) -> Reuse:
    """Compares an earlier search of `folder` with a new experiment, which `check_experiment` has passed.

    Args:
        splits: that the user names; others are told by documents. None: there are none.

    Raises:
        DataError: the earlier search has no answer, or the corpus cannot be prepared.
        ConfigError: a split names a domain that is not there, or documents leave open which domain was split.
        InfeasibleError: no mixture of the new domains is feasible.
    """
    earlier = EarlierSearch.of(history, search_id)
    context = history.document(search_id, "context") or {}
    asked = (yaml.safe_load(history.search(search_id).experiment_yaml) or {}).get("tokenizer") or {}
    experiment, tokenizer = _with_tokenizer(experiment, folder, context, asked)
    manifest = prepare(experiment, reporter)
    # A warm start that the file names already is the search's business; here it would only be read.
    search = compose(experiment.model_copy(update={"search": experiment.search.model_copy(update={"warm_start": ()})}), manifest)
    contents = {domain.name: domain.content_hash for domain in search.domains.domains}
    changes, told = _changes(earlier, folder / "tokens", contents, manifest, splits)
    fitted = earlier.fit()
    risks = Risks.of(fitted.law, earlier.domains, changes, search.domains, fitted.resampled)
    valid, gone = _valid(earlier, search)
    usable, unfit = _usable(history, search_id, search, tuple(objective_weights(experiment)))
    plans, recommended, why = make_plans(changes, search.domains, earlier.answer, risks, earlier.noise, 0 if unfit else usable)
    plans = tuple(replace(plan, trained=_trained(plan, search)) for plan in plans)
    theirs, ours = _scored(context), held_out_sets(manifest)
    unknown = sorted(metric for metric in objective_weights(experiment) if ours[metric] not in theirs)
    notes = (*told, *_notes(earlier, fitted.spearman, unknown, search, context), *([unfit] if unfit else []))
    return Reuse(
        earlier, folder, experiment, changes, plans, recommended, why, valid, gone, usable, not unfit, fitted.spearman, tokenizer, notes
    )


def _changes(
    earlier: EarlierSearch, tokens: Path, contents: Mapping[str, str], manifest: Manifest, given: Splits | None
) -> tuple[Changes, tuple[str, ...]]:
    """What became of the earlier domains, and what was told by their documents, as sentences.

    Args:
        tokens: where the earlier search's token files are.
        contents: name -> content hash of the new domains.
        given: as `find_reuse`.

    Raises:
        ConfigError: as `find_reuse`.
    """
    plain = compare(earlier.contents, contents, given)
    fresh, gone = plain.fresh, plain.removed
    if given is None or not gone or not set(fresh) - set(earlier.contents):
        return plain, ()
    files = {name: prepared_file(tokens, name, earlier.contents[name], manifest.tokenizer_hash) for name in gone}
    shares = shared_documents(
        {name: manifest.absolute(manifest.domains[name].train) for name in fresh},
        {name: file for name, file in files.items() if file is not None},
    )
    found = find_splits(shares, given)
    said = list(found_sentences(found, shares))
    unseen = sorted(name for name, file in files.items() if file is None and name not in given)
    if unseen:
        said.append(
            f"The documents of {', '.join(unseen)} are no longer in {tokens}, or are there for another tokenizer: where they went, only `--split` can say."
        )
    return compare(earlier.contents, contents, {**given, **found}), tuple(said)


def _scored(context: Mapping[str, Any]) -> set[tuple[str, str]]:
    """Content and kind of everything that a search scored."""
    found = {(d["held_out"]["content_hash"], d.get("kind", "text")) for d in context.get("domains", ())}
    return found | {(t["content_hash"], t["kind"]) for t in context.get("targets", ())}


def _with_tokenizer(
    experiment: Experiment, folder: Path, context: Mapping[str, Any], asked: Mapping[str, Any]
) -> tuple[Experiment, str | None]:
    """With the earlier search's tokenizer where the file would train one like it elsewhere: with another, no trial could be reused.

    Args:
        asked: what the earlier search's file says of its tokenizer.
    """
    given, theirs = experiment.tokenizer, context.get("tokenizer") or {}
    elsewhere = experiment.output_dir.resolve() != folder.resolve()
    path = theirs.get("path")
    open_ = given.path is None and given.hub is None and given.vocab_size == asked.get("vocab_size")
    if not (elsewhere and open_ and path and Path(path).exists()):
        return experiment, None
    return experiment.model_copy(update={"tokenizer": given.model_copy(update={"path": str(path)})}), str(path)


def _trained(plan: Plan, search: Search) -> int:
    """How many of a plan's first trials the output folder's record holds."""
    location = record_location(search.store)
    if not plan.proxies or not location.exists():
        return 0
    domains: DomainSet = with_kept(search.domains, plan.kept) if plan.kept and not plan.problem else search.domains
    factory = replace(search.factory, domains=domains)
    settings = search.experiment
    points = islice(design_sequence(domains, settings.proxy.seeds, settings.search.seed), MOST_POINTS * plan.proxies)
    ids = dict.fromkeys(factory.make(Schedule.constant(point.mixture), point.seed, point.label).trial_id for point in points)
    with History.open(location) as history:
        return len(history.completed_trials() & set(list(ids)[: plan.proxies]))


def _usable(history: History, search_id: str, search: Search, counted: tuple[str, ...]) -> tuple[int, str]:
    """How many earlier trials a warm start counts as the search's own, and why it could not have one; empty where it can."""
    own = search.factory.source
    wanted = wanted_of(search.manifest, (*search.cheaper, search.factory), search.evaluations, counted)
    runs = read_search(history, search_id, wanted, kept_in(search.store))
    # Plans count proxies where the answer is wanted.
    usable = len(runs.swarm.at_source(own)) + sum(trial.source == own for trial in runs.unscored)
    if not runs.unscored and not len(runs.swarm):
        return 0, "No earlier run says anything of the new search, so no plan has a warm start."
    name = search.experiment.search.surrogate
    try:
        refuse_unless_fitting(get_surrogate(name), name, runs, wanted.sources)
    except ConfigError:
        others = sum(source not in wanted.sources for source in runs.swarm.points().sources)
        return usable, (
            f"{others} earlier runs are of another source for the new search (recipe, epochs, or weights that are not in its output folder), which the surrogate "
            f"'{name}' cannot fit beside its own, so no plan has a warm start. With `search.surrogate: multi_source_gp` all have."
        )
    return usable, ""


def _valid(earlier: EarlierSearch, search: Search) -> tuple[int, int]:
    """Earlier trials that the new search could ask for just so, at whichever of its sources, and those with weight on text that is gone."""
    factories = {factory.source: factory for factory in (*search.cheaper, search.factory)}
    names = {domain.content_hash: domain.name for domain in search.domains.domains}
    valid = gone = 0
    for trial in earlier.trials:
        if weighted_but_gone(trial, names):
            gone += 1
        elif (factory := factories.get(trial.source)) is not None:
            valid += factory.make(mapped(trial, names, factory.domains.names), trial.seed, LABEL).trial_id == trial.trial_id
    return valid, gone


def _shared_recipe(earlier: EarlierSearch, search: Search) -> bool:
    """Whether proxies of any source of the new search are trained as the earlier search's were."""
    ours = [(factory.source, dict(factory.recipe)) for factory in (*search.cheaper, search.factory)]
    return any((trial.source, dict(trial.recipe)) in ours for trial in earlier.trials)


def _notes(earlier: EarlierSearch, spearman: float, unknown: Sequence[str], search: Search, context: Mapping[str, Any]) -> tuple[str, ...]:
    notes = []
    if not spearman > 0.5:
        how = "could not be checked on unseen runs" if spearman != spearman else f"ranks unseen runs with Spearman {spearman:.2f} only"
        notes.append(f"Risks are a log-linear law's, which {how}: trust them little.")
    if unknown:
        notes.append(
            f"The new objective counts {', '.join(unknown)}, which the earlier search did not score: risks are about what it counted."
        )
    if search.manifest.tokenizer_hash != (context.get("tokenizer") or {}).get("hash"):
        notes.append("The tokenizer is another one, so no earlier trial is a trial of the new search.")
    elif not _shared_recipe(earlier, search):
        notes.append("Proxies are of another source or recipe, so no earlier trial is a trial of the new search.")
    return tuple(notes)
