"""What the record of an output folder already says about an experiment: trials to reuse, speeds, a proposal, noise. Nothing is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mixopt.calibration.design import calibration_identity
from mixopt.calibration.result import Calibration
from mixopt.calibration.stored import calibration_runs, load, with_repeats
from mixopt.cost import NoiseKnown
from mixopt.history import History, TrialRecord
from mixopt.proposal import Proposal
from mixopt.swarm import Swarm
from mixopt.trial import Trial, TrialState
from workers.compose import Search, objective_weights, record_location
from workers.planning.known_noise import from_other_searches
from workers.planning.speed import trained_here


@dataclass(frozen=True)
class Known:
    """What the record says of this experiment; empty without one.

    Attributes:
        trials: of the search's stage that were asked for and not abandoned.
        abandoned: of the search's stage.
        swarm: the finished ones; None without a record of this search.
        finished: ids of all trials with an outcome, whichever search asked.
        here: trials of all searches that were trained on this machine (of a cluster: on any).
        proposal: the recorded one.
        noise: what other searches found; None: nothing that fits.
        calibration: of the search's source; None: never calibrated.
        calibration_runs: finished runs of its calibration at the rate of the search; what its stopping rule knows beside.
        gate: the verdict on merged and ensembled proxies; None: there is none yet.
        repeats: the finished trials of the search and, after them, those of its calibration; what noise is known from.
    """

    trials: tuple[Trial, ...] = ()
    abandoned: tuple[Trial, ...] = ()
    swarm: Swarm | None = None
    finished: frozenset[str] = frozenset()
    here: tuple[TrialRecord, ...] = ()
    proposal: Proposal | None = None
    noise: NoiseKnown | None = None
    calibration: Calibration | None = None
    calibration_runs: Swarm | None = None
    repeats: Swarm | None = None
    gate: Mapping[str, Any] | None = None


def read_known(search: Search, prepared: bool, anywhere: bool) -> Known:
    """What the record says.

    Args:
        prepared: whether the search's identity is real; without, only speeds and noise can be found.
        anywhere: count trials of all hosts for the speed.
    """
    location = record_location(search.store)
    if not location.exists():
        return Known()
    source = search.factory.source
    with History.open(location) as history:
        searches = [found.search_id for found in history.searches()]
        calibrations = [found.search_id for found in history.calibrations()]
        every = [record for search_id in (*searches, *calibrations) for record in history.trials(search_id)]
        here = every if anywhere else trained_here(search.store, every)
        finished = history.completed_trials()
        counted = objective_weights(search.experiment)
        metrics = {key: name for key, name in search.metrics(source).items() if name in counted}
        noise = from_other_searches(history, search.search_id, source, metrics, search.factory.recipe.get("beginning"))
        if not prepared:
            return Known(finished=finished, here=tuple(here), noise=noise)
        calibration_id = calibration_identity(search.factory)
        calibration = load(history, calibration_id)
        names, scored = search.domains.names, search.metrics(source)
        runs = calibration_runs(history, search.factory, scored, calibration_id)
        if search.search_id not in searches:
            return Known(finished=finished, here=tuple(here), noise=noise, calibration=calibration, calibration_runs=runs, repeats=runs)
        gate = history.document(search.search_id, "gate")
        left_out = frozenset((gate or {}).get("left_out", ()))
        records = [record for record in history.trials(search.search_id, "search") if record.trial.trial_id not in left_out]
        body = history.document(search.search_id, "proposal")
        swarm = history.swarm(search.search_id, names, search.search_metrics).without(left_out)
        return Known(
            trials=tuple(record.trial for record in records if record.state is not TrialState.ABANDONED),
            abandoned=tuple(record.trial for record in records if record.state is TrialState.ABANDONED),
            swarm=swarm,
            finished=finished,
            here=tuple(here),
            proposal=None if body is None else Proposal.from_json(body),
            noise=noise,
            calibration=calibration,
            calibration_runs=runs,
            repeats=with_repeats(history, swarm, search.factory, scored, calibration_id),
            gate=gate,
        )
