"""`search.warm_start`: finds the earlier runs that an experiment names, and has kept proxies scored on what the search measures.

Trials like the search's own whose weights lie in its output folder are scored on the held-out sets that they lack, a new domain's for one, which costs
a forward pass over these and trains nothing. The main trade-off: this is done before the first trial is asked for, since a strategy looks at them all.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mixopt.config import Experiment
from mixopt.corpus.manifest import Manifest
from mixopt.errors import ConfigError
from mixopt.factory import TrialFactory
from mixopt.fitting.tables import read_table
from mixopt.history import History, SearchRecord
from mixopt.progress import Reporter
from mixopt.runner import Completed, Evaluation, Failed, Runner
from mixopt.search import SearchInterrupted
from mixopt.strategies import with_earlier
from mixopt.warm_start.config import EarlierRuns
from mixopt.warm_start.earlier import Earlier, HeldOut, Wanted, joined, read_search
from mixopt.warm_start.given import read_given
from workers.beginnings import RECORD_NAME
from workers.trial_folder import TrialFolder

if TYPE_CHECKING:
    from workers.compose import Search


def held_out_sets(manifest: Manifest) -> dict[str, HeldOut]:
    """Metric -> content and kind of what it is scored on."""
    found = {f"valid/{name}": (files.valid.content_hash, files.kind) for name, files in manifest.domains.items()}
    return found | {f"target/{name}": (target.file.content_hash, target.kind) for name, target in manifest.targets.items()}


def wanted_of(
    manifest: Manifest, factories: Sequence[TrialFactory], evaluations: Mapping[str, Sequence[Evaluation]], counted: tuple[str, ...]
) -> Wanted:
    """What earlier runs have to fit.

    Args:
        factories: of the search's trials at each of its sources; the answer is wanted at the last.
        evaluations: source key -> what trials there are scored on.
    """
    held_out, found = held_out_sets(manifest), []
    for factory in factories:
        scored = evaluations[factory.source.key]
        keys = {one.key: one.metric for one in scored}
        curve_keys = {one.curve_key: one.metric for one in scored if one.curve_key is not None}
        found.append(Wanted(factory, keys, curve_keys, held_out, counted))
    return replace(found[-1], cheaper=tuple(found[:-1]))


def read_earlier(experiment: Experiment, wanted: Wanted) -> Earlier:
    """The earlier runs that `search.warm_start` names, as far as they fit this search.

    Raises:
        ConfigError: a folder holds no such search, or an id fits several.
        DataError: a record or a table cannot be read.
    """
    parts = []
    for entry in experiment.search.warm_start:
        if not entry.is_search:
            parts.append(read_given(entry, wanted))
            continue
        with History.open(earlier_record(entry, experiment)) as history:
            search = earlier_search(history, entry, experiment)
            parts.append(read_search(history, search.search_id, wanted, kept_in(experiment.output_dir)))
    return joined(parts, wanted.domains)


def check_warm_start(experiment: Experiment) -> None:
    """Whether what `search.warm_start` names is there, before a document is read.

    Raises:
        ConfigError: a folder holds no such search, or an id fits several.
        DataError: a table cannot be read.
    """
    for entry in experiment.search.warm_start:
        if entry.is_search:
            with History.open(earlier_record(entry, experiment)) as history:
                earlier_search(history, entry, experiment)
        for table in (entry.runs, entry.mixtures, entry.metrics):
            if table is not None:
                read_table(Path(table))


def earlier_record(entry: EarlierRuns, experiment: Experiment) -> Path:
    """Where the record of an earlier search lies.

    Raises:
        ConfigError: the folder holds none.
    """
    folder = experiment.output_dir if entry.folder is None else Path(entry.folder)
    location = folder / RECORD_NAME
    if not location.exists():
        raise ConfigError(
            f"`search.warm_start` names {folder}, which holds no record of a search.", "Name the `output` folder of an earlier search."
        )
    return location


def earlier_search(history: History, entry: EarlierRuns, experiment: Experiment) -> SearchRecord:
    """The search that an entry names; without an id the newest, in the experiment's own folder of another name.

    Raises:
        ConfigError: there is none, or there are several.
    """
    found = history.searches()
    where = experiment.output_dir if entry.folder is None else Path(entry.folder)
    if entry.search is not None:
        found = [record for record in found if record.search_id.startswith(entry.search)]
        if len(found) > 1:
            raise ConfigError(f"`search.warm_start` names search {entry.search}, which fits {len(found)} in {where}.", "Give more digits.")
    elif where.resolve() == experiment.output_dir.resolve():
        found = [record for record in found if record.name != experiment.name]
    if not found:
        what = f"search {entry.search}" if entry.search is not None else f"search but those named '{experiment.name}'"
        raise ConfigError(
            f"`search.warm_start` names {where}, which holds no {what}.", f"`mixopt show {where}` prints the newest; give an id."
        )
    return found[-1]


def kept_in(store: Path) -> Callable[[str], bool]:
    """Whether weights and result of a trial lie in the store."""

    def kept(trial_id: str) -> bool:
        folder = TrialFolder(store, trial_id)
        return folder.weights_path.exists() and folder.result_path.exists()

    return kept


def informed(search: Search) -> Search:
    """The search, whose strategy knows the earlier runs as the record has them now."""
    if search.wanted is None:
        return search
    earlier = read_earlier(search.experiment, search.wanted)
    return replace(search, earlier=earlier, strategy=with_earlier(search.strategy, earlier.swarm))


def score_earlier(search: Search, history: History, runner: Runner, reporter: Reporter, stop: threading.Event | None) -> Search:
    """Has what is `unscored` scored, records it, and returns the search that knows it.

    Raises:
        SearchInterrupted: stopped by the user.
    """
    if search.earlier is None:
        return search
    for note in search.earlier.notes:
        reporter.note(note)
    trials = search.earlier.unscored
    if not trials:
        return search
    reporter.note(f"{len(trials)} kept proxies are scored on the held-out sets that they lack; nothing is trained.")
    runner.submit(trials)
    try:
        for event in runner.events():
            if isinstance(event, Completed):
                history.complete(event.outcome)
            elif isinstance(event, Failed):
                reporter.note(f"Earlier run {event.trial_id[:8]} could not be scored and is left out: {event.failure.message}")
            if stop is not None and stop.is_set():
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        history.set_search_state(search.search_id, "interrupted")
        runner.cancel([trial.trial_id for trial in trials])
        raise SearchInterrupted("Stopped while earlier runs were scored.", "The same command goes on from here.") from None
    return informed(search)
