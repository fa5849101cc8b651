"""The components of an experiment: which trials they are, what they cost, and their training.

They are trials like any other, so they are trained once, by `mixopt components` or by the first search that asks for them, and shared. A family is remembered in the
record under an id of its own. Where a domain has been added since, the earlier family's base and general data are kept and one component is trained
(`components.extend`); the main trade-off of that: base and general data then stay the mixture of the domains that were there before.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mixopt.beginnings import BASE_LABEL
from mixopt.components.config import EVALUATORS, FEWEST_STEPS
from mixopt.components.family import Family, MergedFactory, component_factory, family_of
from mixopt.config import Experiment
from mixopt.domains import DomainSet
from mixopt.errors import ConfigError, RunError
from mixopt.factory import TrialFactory
from mixopt.history import History
from mixopt.merging.remedies import Making
from mixopt.mixture import Mixture
from mixopt.progress import Reporter
from mixopt.record import COMPONENTS_PREFIX
from mixopt.runner import Runner
from mixopt.search import SearchObserver, run_trials
from mixopt.space import MixtureSpace
from mixopt.strategies.base import Assignment, Offer
from mixopt.trial import JsonValue, Source, Trial, content_digest, trial_from_spec
from proxy_models.config import proxy_config
from workers.averages import operator_of
from workers.beginnings import RECORD_NAME, base_mixture, forget_results_without_weights
from workers.offers import average_flops, components_flops, surrogate_for

KIND = "components"


@dataclass(frozen=True)
class Components:
    """What components of an experiment are made of; `family` makes them.

    Attributes:
        trained: makes the trials of the search, whose recipe the components have, at a constant rate.
        base: that they branch from.
        general: the general data, over the domains.
        extends: domains that an earlier family has not had, where one is extended.
    """

    experiment: Experiment
    domains: DomainSet
    trained: TrialFactory
    base: Trial
    general: Mixture
    extends: tuple[str, ...] = ()

    @property
    def making(self) -> Making:
        """How the file wants them."""
        given = self.experiment.components
        return Making(self.experiment.component_tokens, given.general, given.router == "frozen")

    @property
    def least_tokens(self) -> int:
        """Of a component: fewer are no training."""
        return FEWEST_STEPS * self.experiment.proxy.tokens_per_step

    @property
    def horizons(self) -> tuple[int, ...]:
        """Tokens that components may be trained for, remedies included."""
        found = [self.making.tokens]
        while "shorter horizon" in self.experiment.components.remedies and found[-1] // 2 >= self.least_tokens:
            found.append(found[-1] // 2)
        return tuple(found)

    def family(self, making: Making) -> Family:
        """The components that are made so."""
        given, proxy = self.experiment.components, self.experiment.proxy
        recipe = component_recipe(self.trained.recipe, making.frozen_router)
        factory = component_factory(self.domains, Source("trained", proxy.size, making.tokens), recipe, self.base)
        operator = {"kind": given.operator, **given.operator_options}
        return family_of(self.domains, self.base, factory.make, self.general, making.general, given.seed, operator)

    def makers(self, family: Family) -> tuple[MergedFactory, ...]:
        """Of the evaluators that the search asks for, the cheapest first."""
        wanted = self.experiment.search.evaluators
        return tuple(family.maker(evaluator) for evaluator in reversed(EVALUATORS) if evaluator in wanted)

    def assigned(
        self, assignment: Assignment, family: Family, evaluators: Collection[str], flops: float
    ) -> tuple[tuple[MergedFactory, ...], Assignment]:
        """Makers of averages, the cheapest first, and the assignment with what they offer beside its trained trials.

        Args:
            evaluators: those of the search that are offered; none: trained trials alone.
            flops: of all components so far.

        Raises:
            ConfigError: as `Family.reach`.
        """
        makers = tuple(one for one in self.makers(family) if one.evaluator in evaluators)
        offers = (*self._offers(makers, family, assignment.space), assignment.offers[-1])
        surrogate = surrogate_for(self.experiment.search.surrogate, offers)
        return makers, replace(assignment, offers=offers, surrogate=surrogate, before=flops)

    def _offers(self, makers: Sequence[MergedFactory], family: Family, space: MixtureSpace) -> tuple[Offer, ...]:
        return tuple(
            Offer(
                one.source,
                one.make,
                average_flops(self.experiment, one.evaluator, self._vocab_size),
                proxy_config(one.source.size, self._vocab_size).parameters().active,
                None if one.extrapolates else family.reach(space),
            )
            for one in makers
        )

    @property
    def _vocab_size(self) -> int:
        return int(self.trained.recipe["vocab_size"])

    def flops(self, making: Making) -> float:
        """FLOPs of training all components, scored as every trial is. The base is not in it: trials of the search begin with it, too."""
        return components_flops(self.experiment, making.tokens, self._vocab_size)


def component_recipe(recipe: Mapping[str, JsonValue], frozen: bool) -> dict[str, JsonValue]:
    """The recipe of the search's trials at a constant rate: first order holds while the rate does (MergeMix, arXiv 2601.17858)."""
    routers = {"router": "frozen", "bias_update_rate": 0.0} if frozen else {}
    return {**recipe, "schedule": "constant", **routers}


def check_components(experiment: Experiment) -> None:
    """Whether the operator can be made; touches no file.

    Raises:
        ConfigError: a setting is out of range.
    """
    given = experiment.components
    try:
        operator_of({"kind": given.operator, **given.operator_options})
    except ValueError as error:
        raise ConfigError(f"`components.operator_options` of '{given.operator}': {error}", "Mend it, or leave it out.") from error


def components_of(experiment: Experiment, domains: DomainSet, trained: TrialFactory, base: Trial) -> Components:
    """The components of an experiment whose trials begin with `base`; an earlier family's where one is extended, whose base `.base` then is."""
    general = base_mixture(domains, experiment.components.mixture)
    own = Components(experiment, domains, trained, base, general)
    return _extended(own) or own


# Families in the record


def family_id(family: Family) -> str:
    """Under which a family is recorded."""
    return COMPONENTS_PREFIX + content_digest([family.base.trial_id, sorted(trial.trial_id for trial in family.trials)])


def family_document(components: Components, family: Family) -> dict[str, JsonValue]:
    """What the record keeps of a family, so that it can be extended."""
    content = {domain.name: domain.content_hash for domain in family.domains.domains}
    return {
        "settings": _settings(components),
        "base": family.base.spec(),
        "general": {content[name]: weight for name, weight in family.general.as_dict().items() if weight > 0},
        "share": family.share,
        "operator": dict(family.operator),
        "components": {content[name]: trial.trial_id for name, trial in family.components.items()},
        "names": content,
        "tokens": {domain.content_hash: domain.target_tokens for domain in family.domains.domains},
        "extended": own_base(components) != family.base.trial_id,
    }


def own_base(components: Components) -> str:
    """Id of the base that the file asks for, whatever earlier family is extended."""
    return components.trained.inputs[0]


def _settings(components: Components) -> str:
    """What families have in common that differ in their domains only."""
    given, trained = components.experiment.components, components.trained
    begun = components.experiment.proxy.beginning.base.model_dump(mode="json")
    shared = given.model_dump(mode="json", include={"mixture", "seed"})
    recipe = component_recipe(trained.recipe, frozen=False)
    return content_digest([begun, shared, recipe, trained.source.size, trained.tokenizer_hash, trained.engine_version])


def _extended(own: Components) -> Components | None:
    """The components over an earlier family's base and general data: of the same domains, if it was extended to them, else of as many of them as there are.

    None: there is no such family, the file's own base is trained, the file names weights of its own, or it does not want one.
    """
    experiment, given = own.experiment, own.experiment.components
    base = experiment.proxy.beginning.base
    by_name = isinstance(given.mixture, str) and isinstance(base.mixture, str) and base.trial is None
    location = experiment.output_dir / RECORD_NAME
    if not (given.extend and by_name and location.exists()):
        return None
    names = {domain.content_hash: domain.name for domain in own.domains.domains}
    with History.open(location) as history:
        bodies = [history.document(record.search_id, KIND) for record in history.components()]
        is_begun = own.base.trial_id in history.completed_trials()
    settings = _settings(own)
    fitting = [body for body in bodies if body is not None and body["settings"] == settings and _goes_on(body, own, is_begun)]
    if not fitting:
        return None
    # An extended family of these very domains first, so that whoever has begun with it goes on with it; of equals the oldest.
    chosen = max(fitting, key=lambda body: (bool(body["extended"]), len(body["components"])))
    general = Mixture.of({name: float(chosen["general"].get(content, 0.0)) for content, name in names.items()})
    new = tuple(name for content, name in names.items() if content not in chosen["components"])
    return replace(own, base=renamed(trial_from_spec(chosen["base"]), names), general=general, extends=new)


def _goes_on(body: Mapping[str, Any], own: Components, is_begun: bool) -> bool:
    """Whether a recorded family may be taken over: of these domains if it was extended to them; of most of them where the file's own base has not been
    trained. Of other token counts never: a changed inventory is a new beginning."""
    tokens = {domain.content_hash: domain.target_tokens for domain in own.domains.domains}
    if any(tokens.get(content) != known for content, known in body["tokens"].items()):
        return False
    domains = body["components"].keys()
    if domains == tokens.keys():
        return bool(body["extended"])
    return not is_begun and domains < tokens.keys() and 2 * len(domains) > len(tokens)


def renamed(trial: Trial, names: Mapping[str, str]) -> Trial:
    """A trial under this search's names of its domains, by content, where it has other ones for them."""
    known = tuple(replace(domain, name=names.get(domain.content_hash, domain.name)) for domain in trial.domains)
    order = tuple(domain.name for domain in known)
    mixtures = tuple(Mixture(order, mixture.weights) for mixture in trial.schedule.mixtures)
    return replace(trial, domains=known, schedule=replace(trial.schedule, mixtures=mixtures), label=BASE_LABEL)


# Training


def train_components(
    components: Components,
    family: Family,
    record_id: str,
    metrics: Mapping[str, str],
    history: History,
    runner: Runner,
    reporter: Reporter,
    observers: Sequence[SearchObserver] = (),
    stop: threading.Event | None = None,
) -> None:
    """Trains what is missing of a family, and remembers it; once more where weights are lost. The base is trained already.

    Args:
        record_id: of the search or family in whose stage "components" they are recorded.
        metrics: evaluation key -> name of each metric that they are scored on.

    Raises:
        RunError: one failed, and no average can be had without it.
    """
    experiment = components.experiment
    store = experiment.output_dir
    lost = forget_results_without_weights(store, family.trials)
    if lost:
        about = f"{len(family.trials)} components" if len(lost) == len(family.trials) else f"{len(lost)} of {len(family.trials)} components"
        reporter.note(f"Components: {about} of {family.source.key} are trained, {family.share:.0%} of general data in each.")
    if components.extends and lost:
        reporter.note(f"An earlier family is extended by {', '.join(components.extends)}: its base and its general data are kept.")
    own = family_id(family)
    history.add_search(own, experiment.name, experiment.to_yaml())
    records = run_trials(
        history,
        record_id,
        "components",
        runner,
        family.trials,
        metrics=metrics,
        max_attempts=experiment.search.max_attempts,
        observers=observers,
        stop=stop,
        anew=lost,
    )
    gone = forget_results_without_weights(store, family.trials)
    for name, record in zip(family.components, records, strict=True):
        if record.outcome is None or record.trial.trial_id in gone:
            why = record.failure.message if record.failure is not None else "its weights are missing or damaged"
            raise RunError(
                f"The component of '{name}' (trial {record.trial.trial_id[:8]}) failed: {why}",
                "Mend the cause and run the same command again; `mixopt show` has the details.",
            )
    history.save_document(own, KIND, family_document(components, family))


def displacements(family: Family, store: Path) -> dict[str, dict[str, Any]]:
    """How far every component has gone from the base: domain -> total and by group of parameters, of 1 (`proxy_models.merging.diagnosis`)."""
    from proxy_models.merging.components import StoredComponent
    from proxy_models.merging.diagnosis import displacement
    from workers.trial_folder import TrialFolder

    base = StoredComponent("base", TrialFolder(store, family.base.trial_id).weights_path)
    found = {}
    for name, trial in family.components.items():
        moved = displacement(StoredComponent(name, TrialFolder(store, trial.trial_id).weights_path), base)
        found[name] = {"total": moved.total, "by_group": dict(moved.by_group)}
    return found
