"""`mixopt components`: trains a base and one component per domain of it, and says what came of them.

The walk is that of a calibration: recorded under an id of its own before anything runs, in packs, resumable; a search that asks for merged or ensembled proxies finds
the components trained. The main trade-off: a component is scored as every trial is, which costs a tenth of its training and tells at once whether it
has learned its domain.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mixopt.components.family import Family
from mixopt.components.page import ComponentRow, ComponentsResult
from mixopt.config import Experiment, refuse_components
from mixopt.history import History
from mixopt.progress import Reporter, Silent
from mixopt.search import SearchInterrupted, SearchObserver
from mixopt.trial import Outcome
from workers.beginnings import train_base
from workers.checks import check_experiment
from workers.components import Components, displacements, family_document, family_id, train_components
from workers.compose import Search, compose, record_location
from workers.tokens.prepare import prepare


@dataclass(frozen=True)
class Made:
    """What `make_components` leaves behind; `trained` and `reused` count components of this run and those found trained."""

    search: Search
    components: Components
    family: Family
    result: ComponentsResult


def composed_with_components(experiment: Experiment, reporter: Reporter) -> tuple[Search, Components, Family]:
    """The prepared experiment with its components, whether its search asks for evaluators or not.

    Raises:
        MixoptError: as `check_experiment` and `prepare`; ConfigError where trials begin with no common base.
    """
    refuse_components(experiment, "components are asked for")
    check_experiment(experiment)
    search = compose(experiment, prepare(experiment, reporter), with_components=True)
    assert search.components is not None
    assert search.family is not None
    return search, search.components, search.family


def make_components(
    experiment: Experiment,
    reporter: Reporter | None = None,
    observers: Sequence[SearchObserver] = (),
    stop: threading.Event | None = None,
) -> Made:
    """Prepares, trains what is missing of base and components, and measures how far they have gone; goes on where an earlier run stopped.

    Raises:
        MixoptError: as `workers.run.run`; what was finished stays in the record.
    """
    from workers.run import make_runner

    reporter = reporter or Silent()
    search, components, family = composed_with_components(experiment, reporter)
    record_id = family_id(family)
    with History.open(record_location(search.store)) as history:
        history.add_search(record_id, experiment.name, experiment.to_yaml())
        before = history.completed_trials()
        runner = make_runner(search)
        try:
            train_base(search, search.base, record_id, history, runner, reporter, observers, stop)
            metrics = search.metrics(family.source)
            train_components(components, family, record_id, metrics, history, runner, reporter, observers, stop)
        except KeyboardInterrupt:
            history.set_search_state(record_id, "interrupted")
            raise SearchInterrupted("Components stopped.", "The same command goes on from here; nothing is trained twice.") from None
        finally:
            runner.close()
        history.set_search_state(record_id, "finished")
        outcomes = {r.trial.trial_id: r.outcome for r in history.trials(record_id, "components") if r.outcome is not None}
        rows = component_rows(search, family, outcomes)
        trained = len({trial.trial_id for trial in family.trials} - before)
        result = ComponentsResult(
            family_id=record_id,
            base=family.base.trial_id,
            source=family.source.key,
            share=family.share,
            general=family.general.as_dict(),
            extends=components.extends,
            flops=components.flops(components.making),
            trained=trained,
            reused=len(family.trials) - trained,
            rows=rows,
        )
        history.save_document(record_id, "components", {**family_document(components, family), "result": result.to_json()})
    return Made(search, components, family, result)


def component_rows(search: Search, family: Family, outcomes: Mapping[str, Outcome]) -> tuple[ComponentRow, ...]:
    """One per component: how far it went, and its loss on its own domain's held-out set beside the others' there."""
    names = search.metrics(family.source)
    moved = displacements(family, search.store)
    losses = {
        domain: {names[m.evaluation_key]: m.bits_per_byte for m in outcomes[trial.trial_id].measurements if m.evaluation_key in names}
        for domain, trial in family.components.items()
    }
    rows = []
    for domain, trial in family.components.items():
        metric = f"valid/{domain}"
        others = [found[metric] for other, found in losses.items() if other != domain and metric in found]
        rows.append(
            ComponentRow(
                domain=domain,
                trial=trial.trial_id,
                displacement=moved[domain]["total"],
                by_group=moved[domain]["by_group"],
                own=losses[domain].get(metric),
                others=sum(others) / len(others) if others else None,
            )
        )
    return tuple(rows)
