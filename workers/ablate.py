"""`mixopt ablate`: scores uniform averages of the components of subsets of domains, and says what each domain brings each target.

Every subset is a trial of the record, in the stage "ablation" of its family, so an ablation that was killed goes on and one with more circles measures the new subsets only. The
main trade-off: subsets are scored on the held-out sets of the objective alone, and on less of them than trials are, since hundreds of models are measured;
intervals say what that leaves open.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mixopt.ablation.effects import FoldTable, ablation_effects
from mixopt.ablation.plan import Plan, plan_ablation
from mixopt.ablation.result import Ablation
from mixopt.components.config import Evaluator
from mixopt.components.family import Family
from mixopt.config import Experiment
from mixopt.errors import DataError, RunError
from mixopt.history import History
from mixopt.mixture import Schedule
from mixopt.progress import Reporter, Silent
from mixopt.runner import Evaluation
from mixopt.search import SearchInterrupted, SearchObserver, run_trials
from mixopt.trial import Trial
from workers.beginnings import train_base
from workers.components import family_id, train_components
from workers.compose import Search, objective_weights, record_location
from workers.evaluations import plan_evaluations
from workers.make_components import composed_with_components
from workers.trial_folder import TrialFolder

KIND, LABEL = "ablation", "ablation"
WINDOWS = 8
"""Windows per held-out set that subsets are scored on, where nothing else is asked for: enough for a spread over parts of it."""


@dataclass(frozen=True)
class Ablated:
    """What `ablate` leaves behind.

    Attributes:
        trust: whether a gate has trusted averages of these components, in a sentence.
        scored: averages that were scored now; the others were in the record.
    """

    family_id: str
    evaluator: str
    ablation: Ablation
    trust: str
    scored: int

    def to_json(self) -> dict[str, Any]:
        body = {"family_id": self.family_id, "evaluator": self.evaluator, "trust": self.trust, "scored": self.scored}
        return {**body, "ablation": self.ablation.to_json()}


def ablate(
    experiment: Experiment,
    reporter: Reporter | None = None,
    observers: Sequence[SearchObserver] = (),
    stop: threading.Event | None = None,
    evaluator: Evaluator = "merged",
    circles: int = 3,
    tokens: int | None = None,
) -> Ablated:
    """Trains what is missing of base and components, scores the subsets, and says what follows; goes on where an earlier run stopped.

    Args:
        circles: of sampled orders, where there are more domains than all subsets can be measured of; 0: no Shapley values.
        tokens: scored per held-out set; None: 8 windows.

    Raises:
        ConfigError: there can be no components, or `circles` is 1.
        DataError: some subsets could not be scored, or a held-out set has too few rows for an error.
        MixoptError: as `make_components`.
    """
    from workers.run import make_runner

    reporter = reporter or Silent()
    plan = plan_ablation([domain.name for domain in experiment.domains], circles)
    search, components, family = composed_with_components(experiment, reporter)
    search = _scored_on_the_objective(search, family, evaluator, tokens)
    trials = subset_trials(plan, family, evaluator)
    record_id = family_id(family)
    with History.open(record_location(search.store)) as history:
        history.add_search(record_id, experiment.name, experiment.to_yaml())
        runner = make_runner(search)
        try:
            train_base(search, search.base, record_id, history, runner, reporter, observers, stop)
            metrics = search.metrics(family.source)
            train_components(components, family, record_id, metrics, history, runner, reporter, observers, stop)
            wanted = search.metrics(trials[0].source)
            known = {trial.trial_id for trial in trials if _folds(search, trial, wanted) is not None}
            reporter.note(f"Ablation: {len(plan.subsets)} averages of components, {len(known)} of which are scored already.")
            _score(search, [trial for trial in trials if trial.trial_id not in known], record_id, history, runner, observers, stop)
        except KeyboardInterrupt:
            history.set_search_state(record_id, "interrupted")
            raise SearchInterrupted("Ablation stopped.", "The same command goes on from here; nothing is scored twice.") from None
        finally:
            runner.close()
        history.set_search_state(record_id, "finished")
        ablation = ablation_effects(plan, _tables(search, trials), objective_weights(experiment))
        trust = trust_sentence(history, family, evaluator)
        done = Ablated(record_id, evaluator, ablation, trust, len(trials) - len(known))
        history.save_document(record_id, KIND, done.to_json())
    return done


def subset_trials(plan: Plan, family: Family, evaluator: Evaluator) -> list[Trial]:
    """The average of every subset of a plan, in its order; the empty one is the base."""
    maker = family.maker(evaluator)
    return [
        maker.make(Schedule.constant(family.mixture(weights)), 0, LABEL) if weights.any() else maker.of_base(LABEL)
        for weights in plan.weights()
    ]


def trust_sentence(history: History, family: Family, evaluator: str) -> str:
    """What a gate has said of averages of these components, in the search that asked last."""
    own = {trial.trial_id for trial in family.trials}
    for search in reversed(history.searches()):
        context, gate = history.document(search.search_id, "context"), history.document(search.search_id, "gate")
        if context is None or gate is None or set(context.get("components", {}).get("trials", {}).values()) != own:
            continue
        for attempt in reversed(gate["attempts"]):
            if evaluator in attempt["sentences"]:
                return f"Gate of search {search.search_id[:8]}: {attempt['sentences'][evaluator][0]}"
    return (
        f"No gate has judged {evaluator} proxies of these components: a search with `evaluators: [{evaluator}]` trains some mixtures and says whether they may "
        "be believed."
    )


def _scored_on_the_objective(search: Search, family: Family, evaluator: Evaluator, tokens: int | None) -> Search:
    """The search whose averages are scored on the held-out sets of the objective, on so many tokens each."""
    proxy, weights = search.experiment.proxy, objective_weights(search.experiment)
    planned = plan_evaluations(search.manifest, proxy.tokens, proxy.window, tokens or WINDOWS * proxy.window)
    sets: tuple[Evaluation, ...] = tuple(one for one in planned if weights.get(one.metric, 0.0) > 0)
    return replace(search, evaluations={**search.evaluations, family.maker(evaluator).source.key: sets})


def _score(
    search: Search,
    trials: Sequence[Trial],
    record_id: str,
    history: History,
    runner: Any,
    observers: Sequence[SearchObserver],
    stop: threading.Event | None,
) -> None:
    if not trials:
        return
    # What they measured stays in the record; without their losses on parts of the held-out sets they are scored once more.
    for trial in trials:
        TrialFolder(search.store, trial.trial_id).result_path.unlink(missing_ok=True)
    records = run_trials(
        history,
        record_id,
        "ablation",
        runner,
        trials,
        metrics=search.metrics(trials[0].source),
        max_attempts=search.experiment.search.max_attempts,
        observers=observers,
        stop=stop,
        anew=[trial.trial_id for trial in trials],
    )
    failed = [record for record in records if record.outcome is None]
    if failed:
        why = failed[0].failure.message if failed[0].failure is not None else ""
        raise RunError(
            f"{len(failed)} of {len(records)} averages could not be scored: {why}", "Mend the cause and run the same command again."
        )


def _folds(search: Search, trial: Trial, wanted: Mapping[str, str]) -> dict[str, Any] | None:
    """Losses on parts of every wanted held-out set; None where one is missing."""
    found = TrialFolder(search.store, trial.trial_id).read_folds()
    return {key: found[key] for key in wanted} if found.keys() >= wanted.keys() else None


def _tables(search: Search, trials: Sequence[Trial]) -> dict[str, FoldTable]:
    """Metric -> losses of the trials on parts of its held-out set."""
    names = search.metrics(trials[0].source)
    folds = [_folds(search, trial, names) for trial in trials]
    missing = sum(one is None for one in folds)
    if missing:
        raise DataError(
            f"{missing} of {len(trials)} averages have no losses on parts of some held-out set, which has fewer than two documents or rows.",
            "Give `--tokens` a larger number, or a held-out set more documents.",
        )
    found = [one for one in folds if one is not None]
    return {
        metric: FoldTable(np.array([one[key]["bits"] for one in found]), np.array(found[0][key]["text_bytes"]))
        for key, metric in names.items()
    }
