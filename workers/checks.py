"""Finds what is wrong with an experiment before a document is read, or anything is spent.

The main trade-off: what depends on documents (twins, estimated token counts) is left to `compose`, which looks again once they are prepared.
"""

from __future__ import annotations

from mixopt.config import Experiment
from mixopt.domains import Domain, DomainSet
from mixopt.errors import ConfigError, DataError
from mixopt.strategies import get_strategy, read_options
from mixopt.surrogates import get_surrogate
from mixopt.surrogates.base import refuse_metrics
from mixopt.tracking.first_contact import check_address
from proxy_models.config import SIZES, proxy_config
from workers.beginnings import check_base, check_sizes
from workers.components import check_components
from workers.compose import assignment_of
from workers.offers import check_sources, foreseen_offers
from workers.output_folder import check_output
from workers.warm_start import check_warm_start

# More tokens than any corpus has; a number, since arithmetic with infinity gives no number.
ENDLESS = 1e30


def check_experiment(experiment: Experiment) -> None:
    """Finds what is wrong with an experiment before a document is read: names, sizes, constraints, the output folder.

    Raises:
        ConfigError: as `check_settings`, an output that cannot be written or has no space left, or no such trial to begin with in it; or as
            `check_warm_start`.
        InfeasibleError: no mixture satisfies bounds and epoch caps.
    """
    check_settings(experiment)
    if experiment.trainer is not None:
        from workers.own_trainer.pieces import check_program

        check_program(experiment)
    check_output(experiment)
    check_base(experiment)
    check_warm_start(experiment)


def check_settings(experiment: Experiment) -> None:
    """The part of `check_experiment` that touches no file.

    Raises:
        ConfigError: an unknown strategy, surrogate or size, metrics that the surrogate cannot predict, or a verification at the source of the search.
        InfeasibleError: no mixture satisfies bounds and epoch caps.
    """
    read_options(experiment.search.strategy, experiment.search.options)
    surrogate = get_surrogate(experiment.search.surrogate)
    if experiment.trainer is None:
        _check_proxies(experiment)
        domains = _foreseen_domains(experiment)
    else:
        from workers.own_trainer.pieces import own_domains

        domains = own_domains(experiment)
    try:
        refuse_metrics(surrogate, experiment.metric_names, [domain.name for domain in experiment.domains])
    except DataError as error:
        remedy = "Measure domains' own held-out text alone (valid/<domain>), or set another `search.surrogate`."
        raise ConfigError(error.message, remedy) from error
    if experiment.tracking.enabled and experiment.tracking.uri is not None:
        check_address(experiment.tracking.uri)
    # A strategy says itself what it cannot do.
    get_strategy(experiment.search.strategy, assignment_of(experiment, domains, foreseen_offers(experiment)), experiment.search.options)


def _check_proxies(experiment: Experiment) -> None:
    """Sizes of search and verification.

    Raises:
        ConfigError: a size is unknown, or the verification trains the proxies of the search.
    """
    proxy, check = experiment.proxy, experiment.verification
    for place, size in (("proxy.size", proxy.size), ("verification.size", check.size)):
        try:
            proxy_config(size, experiment.tokenizer.vocab_size)
        except ValueError as error:
            raise ConfigError(f"'{place}' is '{size}': {error}", f"Choose one of {', '.join(SIZES)}.") from error
    check_sizes(experiment)
    check_sources(experiment)
    check_components(experiment)
    if check.enabled and (proxy.size, proxy.tokens) == (check.size, check.tokens):
        raise ConfigError(
            f"`verification` trains the same proxies as the search ({proxy.size}, {proxy.tokens:,} tokens).",
            "Give it a larger size or more tokens, or set `enabled: false`.",
        )


def _foreseen_domains(experiment: Experiment) -> DomainSet:
    """The domains before anything is prepared: constraints depend on the target corpus only.

    A domain whose tokens have yet to be counted or estimated is taken for endless: what is infeasible nevertheless stays so, and `compose` looks again.
    """
    constraints = experiment.constraints.constraints
    return DomainSet(
        tuple(
            Domain(d.name, "", 0, d.tokens if isinstance(d.tokens, float) else ENDLESS, d.group, d.max_epochs, d.bounds, d.repeats)
            for d in experiment.domains
        ),
        experiment.budget_tokens,
        experiment.group_rules,
        constraints if all(isinstance(d.tokens, float) for d in experiment.domains) else constraints.without_tokens(),
    )
