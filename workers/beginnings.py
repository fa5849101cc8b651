"""What the trials of a search begin with: the base, which is a trial like any other.

A search whose trials do not begin from scratch has a base: a trial of its own (recorded, trained once, shared by all searches over the same
output that ask for the same) or one that the output folder holds already. Verification runs at another size or length have a base of their own,
whose tokens and target keep the proportions: a second stage a tenth as long as the first stays so.

A base sees the unique tokens that the target's first stage would give a run of its length. By default that stage is in proportion to the
proxies' own, and base and trials then read nested subsets of the same windows, as a target run that goes on over the same corpus reads the
same documents again; the order is another one. A trial's epochs are matched for its own stage. The main trade-off: documents that the base
has seen are not held back from the trials; where the target's second stage is over other documents, make these domains of their own.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixopt.beginnings import BASE_LABEL, base_json
from mixopt.config import Experiment
from mixopt.corpus.manifest import Manifest
from mixopt.domains import DomainSet
from mixopt.errors import ConfigError, DataError, MixoptError, RunError
from mixopt.factory import TrialFactory
from mixopt.history import History
from mixopt.mixture import Mixture, Schedule
from mixopt.progress import Reporter
from mixopt.proxy_config import BeginningConfig
from mixopt.runner import Runner
from mixopt.search import SearchObserver, run_trials
from mixopt.trial import Source, Trial, trial_from_spec
from proxy_models import ENGINE_VERSION
from proxy_models.config import DENSE
from workers.convert import recipe_for
from workers.trial_folder import TrialFolder

if TYPE_CHECKING:
    from workers.compose import Search

RECORD_NAME = "record.sqlite"


def check_sizes(experiment: Experiment) -> None:
    """Whether the sizes of search and verification can begin as they are to; touches no file.

    Raises:
        ConfigError: a dense size is to be upcycled.
    """
    if experiment.proxy.beginning.kind != "upcycled":
        return
    for place, size in _sizes(experiment).items():
        if size.endswith(DENSE):
            raise ConfigError(
                f"'{place}' is '{size}', which has no experts to make of a dense base.",
                f"Name the size '{size.removesuffix(DENSE)}', or begin otherwise than upcycled.",
            )


def check_base(experiment: Experiment) -> None:
    """Whether a base that is named is there, and of the sizes that begin with it; before documents are read.

    Raises:
        ConfigError: the output folder holds no such trial, several, or one of another size.
    """
    base = experiment.proxy.beginning.base
    if base.trial is None:
        return
    trial = stored_trial(experiment.output_dir, base.trial)
    for place, size in _sizes(experiment).items():
        _check_size(trial, place, base_size(experiment.proxy.beginning, size))


def base_size(beginning: BeginningConfig, size: str) -> str:
    """Size of the base of trials of `size`."""
    return size + DENSE if beginning.kind == "upcycled" else size


def base_trial(experiment: Experiment, manifest: Manifest, domains: DomainSet, source: Source) -> Trial | None:
    """The trial that the trials of `source` begin with; None: they begin from scratch.

    Raises:
        ConfigError: the trial that is named is missing, or of another size or tokenizer.
        InfeasibleError: it is to be trained on UniMax, and the domains do not fill its stage.
    """
    beginning, proxy = experiment.proxy.beginning, experiment.proxy
    base = beginning.base
    if beginning.kind == "scratch":
        return None
    size = base_size(beginning, source.size)
    if base.trial is not None:
        return _named(experiment, manifest, source, size)
    wanted = base.tokens or proxy.tokens
    budget_tokens = base.budget_tokens or domains.budget_tokens * wanted / proxy.tokens
    steps = max(8, round(wanted * source.tokens / proxy.tokens) // proxy.tokens_per_step)
    tokens = wanted if source.tokens == proxy.tokens else steps * proxy.tokens_per_step
    # Chosen for the size of the search, as `proxy.learning_rate` is; in muP rates carry over.
    rate = base.learning_rate if source.size == proxy.size or proxy.parametrization == "mup" else None
    settings = proxy.model_copy(update={"learning_rate": rate, "beginning": BeginningConfig()})
    recipe = recipe_for(settings, size, manifest.vocab_size)
    stage = DomainSet(domains.domains, budget_tokens, domains.rules)
    factory = TrialFactory(stage, Source("trained", size, tokens), recipe, manifest.tokenizer_hash, ENGINE_VERSION)
    return factory.make(Schedule.constant(base_mixture(stage, base.mixture)), base.seed, BASE_LABEL)


def beginning_json(
    experiment: Experiment, bases: Mapping[str, Trial | None], metrics: Callable[[Source], Mapping[str, str]]
) -> dict[str, Any]:
    """What a search's context says of it; empty where trials begin from scratch.

    Args:
        bases: "search" and "verification" -> the trial that its trials begin with.
        metrics: what trials of a source are scored on: evaluation key -> metric.
    """
    beginning = experiment.proxy.beginning
    if beginning.kind == "scratch":
        return {}
    mixture = beginning.base.mixture if beginning.base.trial is None and isinstance(beginning.base.mixture, str) else None
    share = {"reinitialized": beginning.reinitialized} if beginning.kind == "upcycled" else {}
    trials = {stage: trial for stage, trial in bases.items() if trial is not None}
    return {
        "beginning": {"kind": beginning.kind, **share, "bases": {stage: base_json(trial, mixture) for stage, trial in trials.items()}},
        "metrics_base": {key: name for trial in trials.values() for key, name in metrics(trial.source).items()},
    }


def stored_trial(store: Path, digits: str) -> Trial:
    """A trial that the output folder holds, by its id or the first digits of it.

    Raises:
        ConfigError: there is none, or there are several.
    """
    found = {path.parent.name: path for path in (store / "trials").glob(f"{digits}*/result.json")}
    trials = {trial_id: trial for trial_id, path in found.items() if (trial := _trial_of(path)) is not None}
    if (store / RECORD_NAME).exists():
        with History.open(store / RECORD_NAME) as history:
            trials = {**history.find_trials(digits), **trials}
    if len(trials) > 1:
        raise ConfigError(f"`proxy.beginning.base.trial` {digits} fits {len(trials)} trials in {store}.", "Give more digits.")
    if not trials:
        raise ConfigError(
            f"`proxy.beginning.base.trial` is {digits}, and {store} holds no such trial.",
            "`mixopt show DIR` prints the trials of an output folder; or leave `trial` out, and a base is trained first.",
        )
    return next(iter(trials.values()))


def forget_results_without_weights(store: Path, trials: Sequence[Trial]) -> list[str]:
    """Ids of those trials whose weights are missing or damaged; their results are taken off the disk, so that they are trained anew.

    The record keeps what they measured.
    """
    from proxy_models.checkpoint import DamagedCheckpoint, load_checkpoint

    lost = []
    for trial in trials:
        folder = TrialFolder(store, trial.trial_id)
        try:
            load_checkpoint(folder.weights_path)
        except (FileNotFoundError, DamagedCheckpoint):
            folder.result_path.unlink(missing_ok=True)
            lost.append(trial.trial_id)
    return lost


def train_base(
    search: Search,
    base: Trial | None,
    search_id: str,
    history: History,
    runner: Runner,
    reporter: Reporter,
    observers: Sequence[SearchObserver],
    stop: threading.Event | None,
) -> None:
    """The trial that others begin with, before any of them; once more where its weights are lost.

    Args:
        search_id: of the search, or of its calibration, in whose stage "base" it is recorded.

    Raises:
        RunError: it failed, and so would all that begin with it.
    """
    if base is None:
        return
    lost = forget_results_without_weights(search.store, [base])
    if lost:
        reporter.note(f"Base: trial {base.trial_id[:8]} of {base.source.key}, which the others begin with, is trained first.")
    (record,) = run_trials(
        history,
        search_id,
        "base",
        runner,
        [base],
        metrics=search.metrics(base.source),
        max_attempts=search.experiment.search.max_attempts,
        observers=observers,
        stop=stop,
        anew=lost,
    )
    failed = forget_results_without_weights(search.store, [base])
    if record.outcome is None or failed:
        why = record.failure.message if record.failure is not None else "its weights are missing or damaged"
        raise RunError(
            f"Trial {base.trial_id[:8]}, which the others begin with, failed: {why}",
            "Mend the cause and run the same command again; `mixopt show` has the details.",
        )


def _sizes(experiment: Experiment) -> dict[str, str]:
    check = experiment.verification
    return {"proxy.size": experiment.proxy.size, **({"verification.size": check.size} if check.enabled else {})}


def _check_size(trial: Trial, place: str, size: str) -> None:
    if trial.source.evaluator != "trained" or trial.source.size != size:
        raise ConfigError(
            f"`proxy.beginning.base.trial` {trial.trial_id[:8]} is of size '{trial.source.size}', and trials of `{place}` begin with one of '{size}'.",
            f"Change `{place}`, or leave `trial` out, and a base is trained for every size"
            + (", or set `verification.enabled: false`." if place == "verification.size" else "."),
        )


def _named(experiment: Experiment, manifest: Manifest, source: Source, size: str) -> Trial:
    assert experiment.proxy.beginning.base.trial is not None
    trial = stored_trial(experiment.output_dir, experiment.proxy.beginning.base.trial)
    place = "proxy.size" if source.size == experiment.proxy.size else "verification.size"
    _check_size(trial, place, size)
    # Before a corpus is prepared there is no tokenizer to compare.
    other = manifest.tokenizer_hash and trial.tokenizer_hash != manifest.tokenizer_hash
    if other or int(trial.recipe["vocab_size"]) != manifest.vocab_size:
        raise ConfigError(
            f"`proxy.beginning.base.trial` {trial.trial_id[:8]} was trained with another tokenizer.",
            "Keep the tokenizer (`tokenizer.path` takes its file), or leave `trial` out, and a base is trained first.",
        )
    # Another search may have asked for it as `natural`, say: here that is the name of a mixture that trials go on with.
    return replace(trial, label=BASE_LABEL)


def base_mixture(domains: DomainSet, mixture: str | dict[str, float]) -> Mixture:
    """A mixture by its name, or by weights of domains (those left out: 0)."""
    if isinstance(mixture, str):
        mixtures = {"natural": domains.natural, "uniform": domains.uniform, "unimax": domains.unimax}
        return mixtures[mixture]()
    return Mixture.of({name: mixture.get(name, 0.0) for name in domains.names})


def _trial_of(result: Path) -> Trial | None:
    try:
        return trial_from_spec(json.loads(result.read_text(encoding="utf-8"))["trial"])
    except (OSError, ValueError, KeyError, TypeError, MixoptError):
        return None


def lost_parent(trial_id: str, what: str) -> DataError:
    """The error of a trial that cannot begin."""
    return DataError(
        f"The weights of trial {trial_id[:8]}, which this trial begins with, are {what}.",
        "Run the same command again: it trains that trial anew, and goes on.",
    )
