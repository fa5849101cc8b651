"""Calibrations in the record: under an id of their own, beside the searches that they serve.

A calibration is recorded as searches are (its trials in the stage "calibration", its result as a document), so it survives `kill -9` and goes on in
the same way; all searches of a record whose trials depend on the same things share it. A search that uses it keeps a copy among its own documents,
so that its answer and report can be told from the record alone, whatever is measured later.
"""

from __future__ import annotations

from collections.abc import Mapping

from mixopt.calibration.result import VERSION, Calibration
from mixopt.factory import TrialFactory
from mixopt.history import History
from mixopt.record.contents import swarm_of
from mixopt.swarm import Swarm
from mixopt.trial import Outcome

KIND = "calibration"


def load(history: History, document_of: str) -> Calibration | None:
    """The calibration stored under its own id, or the copy of a search; None: there is none of this version."""
    body = history.document(document_of, KIND)
    if body is None or body.get("version") != VERSION:
        return None
    return Calibration.from_json(body)


def save(history: History, calibration: Calibration) -> None:
    """Stores a calibration that `History.add_search` has made room for."""
    history.save_document(calibration.calibration_id, KIND, calibration.to_json())


def keep_copy(history: History, search_id: str, calibration: Calibration) -> None:
    """Stores a search's copy."""
    history.save_document(search_id, KIND, calibration.to_json())


def finished_trials(history: History, calibration_id: str) -> dict[str, Outcome]:
    """Trial id -> outcome, of the calibration's trials at all rates and sources."""
    return {record.trial.trial_id: record.outcome for record in history.trials(calibration_id) if record.outcome is not None}


def calibration_runs(history: History, factory: TrialFactory, metrics: Mapping[str, str], calibration_id: str) -> Swarm:
    """The finished runs of a calibration that are trials like the search's but for mixture and seed; those that the search has, too."""
    return with_repeats(history, Swarm.empty(factory.domains.names), factory, metrics, calibration_id)


def with_repeats(history: History, swarm: Swarm, factory: TrialFactory, metrics: Mapping[str, str], calibration_id: str) -> Swarm:
    """The swarm of a search and, after its own trials, those of its calibration that are the same but for mixture and seed.

    They are runs like any other: their repeats sharpen the seed noise of objective, screening and surrogates, which is all that a swarm with few repeats
    of its own lacks. Trials at another rate or source do not enter, nor those that lack a metric.
    """
    import polars as pl

    known = set(swarm.trial_ids)
    wanted = set(metrics)
    more = []
    for record in history.trials(calibration_id):
        trial, outcome = record.trial, record.outcome
        alike = (trial.source, dict(trial.recipe), trial.inputs) == (factory.source, dict(factory.recipe), factory.inputs)
        if outcome is None or not alike or trial.trial_id in known:
            continue
        if wanted <= {m.evaluation_key for m in outcome.measurements if m.tokens == outcome.tokens}:
            more.append((trial, outcome))
    if not more:
        return swarm
    return Swarm(swarm.domains, pl.concat([swarm.table, swarm_of(more, swarm.domains, metrics).table]))
