"""Builds a search from an experiment file; called by the command line and by a cluster job alike.

Here the pieces meet: prepared corpus, space, objective, strategy, factories of trials, held-out sets. Nothing is spent here;
`workers.checks` finds what is wrong before a document is read, and `workers.run` walks the way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mixopt.answer.floors import Floor, resolve_floors
from mixopt.components.config import EVALUATORS
from mixopt.components.family import Family, MergedFactory
from mixopt.config import Experiment, refuse_components
from mixopt.corpus.manifest import Manifest
from mixopt.domains import Domain, DomainSet, inventory_of
from mixopt.errors import ConfigError
from mixopt.factory import TrialFactory
from mixopt.objective import BITS_PER_BYTE
from mixopt.runner import Evaluation
from mixopt.search_identity import search_identity
from mixopt.space import MixtureSpace
from mixopt.strategies import get_strategy, read_options
from mixopt.strategies.base import Assignment, Offer, Strategy
from mixopt.surrogates import get_surrogate
from mixopt.trial import Source, Trial
from mixopt.warm_start.earlier import Earlier, Wanted, refuse_unless_fitting
from proxy_models import ENGINE_VERSION
from workers.beginnings import RECORD_NAME, base_trial
from workers.components import Components, components_of
from workers.convert import recipe_for
from workers.evaluations import plan_evaluations, refuse_twin_evaluations
from workers.offers import held_out_sets, offers_of, search_sources, surrogate_for
from workers.warm_start import read_earlier, wanted_of


@dataclass(frozen=True)
class Search:
    """A search that is ready to run; `compose` makes it.

    Attributes:
        store: folder that all searches with this output share (record, tokens, trials).
        folder: this search's results (figures, answer, exports).
        evaluations: source key -> held-out sets its trials are scored on.
        factory: of the trials where the answer is wanted; `cheaper`: of those at the other sources of the search, the cheapest first.
        base, verification_base: the trials that those of search and verification begin with; None: they begin from scratch.
        components, family: what merged proxies are made of, and the components that are in use; None: there are none.
        averages: makes the merged and ensembled trials of the search, the cheapest first.
        left_out: ids of trials that its strategy does not see: averages that its gate has not trusted.
        wanted, earlier: what earlier runs have to fit, and those that do; None: the search begins without any.
    """

    experiment: Experiment
    manifest: Manifest
    domains: DomainSet
    space: MixtureSpace
    strategy: Strategy
    search_id: str
    factory: TrialFactory
    verification_factory: TrialFactory
    evaluations: dict[str, tuple[Evaluation, ...]]
    store: Path
    folder: Path
    base: Trial | None = None
    verification_base: Trial | None = None
    wanted: Wanted | None = None
    earlier: Earlier | None = None
    cheaper: tuple[TrialFactory, ...] = ()
    components: Components | None = None
    family: Family | None = None
    averages: tuple[MergedFactory, ...] = ()
    left_out: frozenset[str] = frozenset()

    @property
    def sources(self) -> tuple[Source, ...]:
        """Those that trials of the search may be of, the cheapest first; the answer is for the last."""
        return (*(one.source for one in self.averages), *(factory.source for factory in (*self.cheaper, self.factory)))

    @property
    def search_metrics(self) -> dict[str, str]:
        """Evaluation key -> metric name, for the trials of the search, at all its sources."""
        return {key: name for source in self.sources for key, name in self.metrics(source).items()}

    @property
    def search_curve_metrics(self) -> dict[str, str]:
        """The same for the losses at the end on the rows of the points before it."""
        return {key: name for source in self.sources for key, name in self.curve_metrics(source).items()}

    @property
    def bases(self) -> tuple[Trial, ...]:
        """What trials of this search and its verification begin with, each once."""
        wanted = (self.base, self.verification_base if self.experiment.verification.enabled else None)
        return tuple({trial.trial_id: trial for trial in wanted if trial is not None}.values())

    def metrics(self, source: Source) -> dict[str, str]:
        """Evaluation key -> metric name, for the trials of `source`."""
        return {evaluation.key: evaluation.metric for evaluation in self.evaluations[source.key]}

    def curve_metrics(self, source: Source) -> dict[str, str]:
        """The same for the losses at the end on the rows of the points before it."""
        return {one.curve_key: one.metric for one in self.evaluations[source.key] if one.curve_key is not None}

    def catalog(self) -> dict[str, Path]:
        """Content hash of a domain -> its training tokens."""
        return {files.train.content_hash: self.manifest.absolute(files.train) for files in self.manifest.domains.values()}


def domain_set(experiment: Experiment, manifest: Manifest) -> DomainSet:
    """Domains of the experiment file with the content hashes and token counts of the prepared corpus.

    Raises:
        ConfigError: two domains hold the same documents.
    """
    prepared = {domain.name: manifest.domains[domain.name].train for domain in experiment.domains}
    counts = {domain.name: inventory_of(domain, prepared[domain.name].tokens, prepared[domain.name].bytes) for domain in experiment.domains}
    domains = tuple(
        Domain(
            name=domain.name,
            content_hash=prepared[domain.name].content_hash,
            prepared_tokens=prepared[domain.name].tokens,
            target_tokens=counts[domain.name][0],
            group=domain.group,
            max_epochs=domain.max_epochs,
            bounds=domain.bounds,
            repeats=domain.repeats,
            token_count_source=counts[domain.name][1],
            packed_tokens=manifest.domains[domain.name].packed_tokens,
        )
        for domain in experiment.domains
    )
    by_content: dict[str, str] = {}
    for domain in domains:
        if domain.content_hash in by_content:
            raise ConfigError(
                f"Domains '{by_content[domain.content_hash]}' and '{domain.name}' hold the same documents.",
                "Remove one, or mend its `path`.",
            )
        by_content[domain.content_hash] = domain.name
    return DomainSet(domains, experiment.budget_tokens, experiment.group_rules, experiment.constraints.constraints)


def checked_domains(experiment: Experiment, manifest: Manifest) -> DomainSet:
    """As `domain_set`, once it is sure that a search can follow: counts and estimates leave a feasible mixture, and no held-out sets are twins.

    Raises:
        ConfigError: two domains, or two held-out sets, hold the same documents.
        InfeasibleError: no mixture satisfies bounds and epoch caps.
    """
    domains = domain_set(experiment, manifest)
    refuse_twin_evaluations(manifest)
    MixtureSpace.from_domains(domains)
    return domains


def objective_weights(experiment: Experiment) -> dict[str, float]:
    """Metric -> weight in the objective."""
    if experiment.trainer is not None:
        return experiment.trainer.weights
    weights: dict[str, float] = {}
    if experiment.objective_over in ("targets", "all"):
        weights |= {f"target/{target.name}": target.weight for target in experiment.targets}
    if experiment.objective_over in ("domains", "all"):
        weights |= {f"valid/{domain.name}": 1.0 for domain in experiment.domains}
    return weights


def objective_floors(experiment: Experiment) -> tuple[Floor, ...]:
    """The floors with the full names of their metrics. A number as baseline of a maximized metric is in the metric's own sign, and losses are not."""
    given = [floor.floor for floor in experiment.objective.floors]
    floors = resolve_floors(given, experiment.metric_names, list(objective_weights(experiment)))
    maximized = experiment.trainer.maximized if experiment.trainer is not None else frozenset()
    return tuple(
        replace(floor, baseline=-floor.baseline) if floor.metric in maximized and not isinstance(floor.baseline, str) else floor
        for floor in floors
    )


def objective_identity(experiment: Experiment, manifest: Manifest, weights: dict[str, float]) -> dict[str, Any]:
    """The objective as its search's identity sees it: held-out sets by content, so that renaming a target changes nothing."""
    held_out = {f"valid/{name}": files.valid.content_hash for name, files in manifest.domains.items()}
    held_out |= {f"target/{name}": target.file.content_hash for name, target in manifest.targets.items()}
    return objective_of(experiment, held_out, weights)


def objective_of(experiment: Experiment, held_out: Mapping[str, str], weights: Mapping[str, float]) -> dict[str, Any]:
    """The same, of metrics that `held_out` gives a content hash."""
    floors = [[held_out[floor.metric], floor.baseline, floor.by, floor.percent] for floor in objective_floors(experiment)]
    return {
        # Only where there are any, so that searches from before they were known keep their identity.
        **({"floors": floors, "confidence": experiment.objective.confidence} if floors else {}),
        "kind": experiment.objective.kind,
        "pull": experiment.objective.pull,
        "weights": {held_out[metric]: weight for metric, weight in weights.items()},
    }


def strategy_identity(experiment: Experiment) -> dict[str, Any]:
    """What of the strategy makes another search: its surrogate, the repeats, and options where they differ from what they are by themselves."""
    search = experiment.search
    given = read_options(search.strategy, search.options).model_dump(mode="json", exclude_defaults=True)
    sources = [[one.size, one.tokens] for one in search.sources]
    # In full, as other defaults would make other components; what is extended shows in the base.
    components = experiment.components.model_copy(update={"tokens": experiment.component_tokens}).model_dump(
        mode="json", exclude={"extend"}
    )
    averages = {"evaluators": sorted(search.evaluators), "components": components}
    return {
        "surrogate": search.surrogate,
        "seeds": experiment.proxy.seeds,
        **({"options": given} if given else {}),
        **({"sources": sorted(sources)} if sources else {}),
        **(averages if search.evaluators else {}),
    }


def compose(experiment: Experiment, manifest: Manifest, with_components: bool = False) -> Search:
    """Joins the pieces of a prepared experiment that `check_experiment` has passed.

    Args:
        with_components: whether components are wanted though the search asks for no evaluators.

    Raises:
        ConfigError: two domains, or two held-out sets, hold the same documents; the trial to begin with does not fit; or the calibrated rate is asked
            for and was never measured.
        InfeasibleError: no mixture satisfies bounds and epoch caps.
    """
    if experiment.trainer is not None:
        from workers.own_trainer.pieces import compose_own

        return compose_own(experiment, manifest)
    domains = domain_set(experiment, manifest)
    refuse_twin_evaluations(manifest)
    proxy, check = experiment.proxy, experiment.verification
    *cheaper, wanted = search_sources(experiment, manifest.vocab_size)
    sources = (wanted, Source("trained", check.size, check.tokens), *cheaper)
    # A rate given in the file was chosen for the size of the search; another size keeps its own default, but in muP, where rates carry over.
    elsewhere = proxy if proxy.parametrization == "mup" else proxy.model_copy(update={"learning_rate": None})
    recipes = [recipe_for(proxy if source.size == proxy.size else elsewhere, source.size, manifest.vocab_size) for source in sources]
    bases = [
        base_trial(experiment, manifest, domains, sources[0]),
        base_trial(experiment, manifest, domains, sources[1]) if check.enabled else None,
        *(None for _ in cheaper),  # they begin from scratch
    ]
    inputs = [() if base is None else (base.trial_id,) for base in bases]
    factories = [
        TrialFactory(domains, source, recipe, manifest.tokenizer_hash, ENGINE_VERSION, parents)
        for source, recipe, parents in zip(sources, recipes, inputs, strict=True)
    ]
    if proxy.learning_rate == "calibrated":
        factories = _at_calibrated_rates(experiment, factories)
    components = None
    if experiment.search.evaluators or with_components:
        refuse_components(experiment, "components are asked for")
        assert bases[0] is not None
        components = components_of(experiment, domains, factories[0], bases[0])
        bases[0] = components.base
        factories[0] = replace(factories[0], inputs=(components.base.trial_id,))
    # Held-out sets of the verification are scored in full unless the file limits them; early points stay cheap.
    largest = max(
        [files.valid.tokens for files in manifest.domains.values()] + [target.file.tokens for target in manifest.targets.values()]
    )
    evaluations = {source.key: plan_evaluations(manifest, source.tokens, proxy.window, None) for source in cheaper} | {
        sources[0].key: plan_evaluations(manifest, proxy.tokens, proxy.window, None),
        sources[1].key: plan_evaluations(manifest, check.tokens, proxy.window, check.evaluation_tokens or largest),
    }
    for base in bases:
        if base is not None and base.source.key not in evaluations:
            evaluations[base.source.key] = plan_evaluations(manifest, base.source.tokens, int(base.recipe["window"]), None)
    if components is not None:
        for tokens in components.horizons:
            own = Source("trained", proxy.size, tokens).key
            evaluations.setdefault(own, plan_evaluations(manifest, tokens, proxy.window, None))
            # Averages are scored as the search's trained trials are, so that both are on the same rows.
            evaluations |= {Source(name, proxy.size, tokens).key: evaluations[sources[0].key] for name in EVALUATORS}
    weights = objective_weights(experiment)
    fitting, earlier = _warm_start(experiment, manifest, [*factories[2:], factories[0]], evaluations, tuple(weights))
    search_id = search_identity(
        factory=factories[0],
        objective=objective_identity(experiment, manifest, weights),
        strategy=experiment.search.strategy,
        options={**strategy_identity(experiment), **(earlier.identity if earlier is not None else {})},
        seed=experiment.search.seed,
    )
    family = None if components is None else components.family(components.making)
    offers = offers_of([*factories[2:], factories[0]], held_out_sets(experiment))
    assignment = assignment_of(experiment, domains, offers, earlier)
    averages: tuple[MergedFactory, ...] = ()
    if components is not None and family is not None and experiment.search.evaluators:
        evaluators = experiment.search.evaluators
        averages, assignment = components.assigned(assignment, family, evaluators, components.flops(components.making))
    strategy = get_strategy(experiment.search.strategy, assignment, experiment.search.options)
    store = experiment.output_dir
    folder = store / "searches" / f"{experiment.name}-{search_id[:8]}"
    parts = (experiment, manifest, domains, assignment.space, strategy, search_id, factories[0], factories[1], evaluations, store, folder)
    return Search(
        *parts,
        base=bases[0],
        verification_base=bases[1],
        cheaper=tuple(factories[2:]),
        wanted=fitting,
        earlier=earlier,
        components=components,
        family=family,
        averages=averages,
    )


def assignment_of(experiment: Experiment, domains: DomainSet, offers: tuple[Offer, ...], earlier: Earlier | None = None) -> Assignment:
    """What the strategy of an experiment is given.

    Raises:
        InfeasibleError: no mixture satisfies bounds and epoch caps.
    """
    trainer = experiment.trainer
    return Assignment(
        space=MixtureSpace.from_domains(domains),
        domains=domains,
        offers=offers,
        surrogate=surrogate_for(experiment.search.surrogate, offers),
        metrics=objective_weights(experiment),
        objective_kind=experiment.objective.kind,
        trials=experiment.search.trials,
        seeds=experiment.proxy.seeds,
        pull=None if experiment.objective.pull == "auto" else experiment.objective.pull,
        seed=experiment.search.seed,
        stop_early=experiment.search.stop_early,
        floors=objective_floors(experiment),
        confidence=experiment.objective.confidence,
        loss_unit=BITS_PER_BYTE if trainer is None else trainer.unit,
        negated=frozenset() if trainer is None else trainer.maximized,
        earlier=None if earlier is None else earlier.swarm,
    )


def _warm_start(
    experiment: Experiment,
    manifest: Manifest,
    factories: Sequence[TrialFactory],
    evaluations: Mapping[str, Sequence[Evaluation]],
    counted: tuple[str, ...],
) -> tuple[Wanted | None, Earlier | None]:
    """What `search.warm_start` has to fit and what of it does; None where it names nothing.

    Raises:
        ConfigError, DataError: it cannot be read, or the surrogate cannot fit it together with the search's own trials.
    """
    if not experiment.search.warm_start:
        return None, None
    wanted = wanted_of(manifest, factories, evaluations, counted)
    earlier = read_earlier(experiment, wanted)
    refuse_unless_fitting(get_surrogate(experiment.search.surrogate), experiment.search.surrogate, earlier, wanted.sources)
    return wanted, earlier


def _at_calibrated_rates(experiment: Experiment, factories: Sequence[TrialFactory]) -> list[TrialFactory]:
    """The factories of search and verification at the rates that their calibrations recommend. Where the latter was not swept it keeps its own, but
    in muP, where rates carry over, it has that of the search.

    Raises:
        ConfigError: there is no calibration of the search's source that compared rates.
    """
    from mixopt.calibration.design import at_rate, calibration_identity
    from mixopt.calibration.stored import load
    from mixopt.history import History

    location = record_location(experiment.output_dir)
    found = None
    if location.exists():
        with History.open(location) as history:
            found = [load(history, calibration_identity(factory)) for factory in factories]
    if found is None or found[0] is None or not found[0].swept:
        raise ConfigError(
            "`proxy.learning_rate` is `calibrated`, but no calibration of this experiment has compared rates.",
            "Run `mixopt calibrate FILE` first, or leave the rate out.",
        )
    carried = found[0].rate if experiment.proxy.parametrization == "mup" else None
    rates = [entry.rate if entry is not None and entry.swept else carried for entry in found]
    return [factory if rate is None else at_rate(factory, rate) for factory, rate in zip(factories, rates, strict=True)]


def record_location(output: Path) -> Path:
    """Where the record of an output folder lies."""
    return output / RECORD_NAME


def tracking_uri(experiment: Experiment) -> str:
    """Tracking server or database of the MLflow mirror."""
    return experiment.tracking.uri or f"sqlite:///{experiment.output_dir / 'mlflow.db'}"
