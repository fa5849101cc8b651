"""A search of the user's own trainer, composed: domains known by name, sources, factories of trials, what is measured.

Nothing is prepared. A domain's content is its name and the `revision` that the file gives; a trial is told from others by the trainer's name and version,
tokens, seed and mixture. How often the trainer repeats documents is its own affair, so unique tokens do not enter. The main trade-off: what changes
without a word in the file, such as the program or its data, is not noticed.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from mixopt.config import Experiment
from mixopt.corpus.manifest import DomainFiles, Manifest, TokenFile
from mixopt.domains import Domain, DomainSet, inventory_of
from mixopt.errors import ConfigError
from mixopt.factory import TrialFactory
from mixopt.own_trainer.config import TrainerConfig
from mixopt.own_trainer.outcome import evaluations_of
from mixopt.search_identity import search_identity
from mixopt.strategies import get_strategy
from mixopt.strategies.base import Offer
from mixopt.trial import Source, content_digest
from workers.compose import Search, assignment_of, objective_of, objective_weights, strategy_identity
from workers.own_trainer.runner import EVALUATOR

ENGINE = "own-trainer-1"
"""In the place of the engine's version; changes when the same request would mean another training."""


def trainer_of(experiment: Experiment, command: str) -> TrainerConfig:
    """The trainer of an experiment, for a command that needs one.

    Raises:
        ConfigError: there is none.
    """
    if experiment.trainer is None:
        raise ConfigError(
            f"`mixopt {command}` is for a trainer of your own, and the file has no section `trainer`.",
            "`mixopt search FILE` trains mixopt's proxies. docs/own-trainer.md shows the section.",
        )
    return experiment.trainer


def refuse_trainer(experiment: Experiment, command: str) -> None:
    """For commands that are about mixopt's own proxies and corpora.

    Raises:
        ConfigError: the experiment has a trainer of the user's own.
    """
    if experiment.trainer is not None:
        raise ConfigError(
            f"`mixopt {command}` is about mixopt's own proxies and their corpus; this file has a `trainer` of your own, which reads its data itself.",
            "Its commands are `mixopt plan`, `mixopt search`, `mixopt ask` and `mixopt tell`.",
        )


def domain_hash(name: str, revision: str | None) -> str:
    """What stands for the content of a domain."""
    return content_digest(["own trainer's domain", name, *([] if revision is None else [revision])])


def own_domains(experiment: Experiment) -> DomainSet:
    """Domains without prepared text."""
    domains = []
    for domain in experiment.domains:
        tokens, known = inventory_of(domain, 0, 0)
        domains.append(
            Domain(
                name=domain.name,
                content_hash=domain_hash(domain.name, domain.revision),
                prepared_tokens=0,
                target_tokens=tokens,
                group=domain.group,
                max_epochs=domain.max_epochs,
                bounds=domain.bounds,
                repeats=domain.repeats,
                token_count_source=known,
            )
        )
    return DomainSet(tuple(domains), experiment.budget_tokens, experiment.group_rules, experiment.constraints.constraints)


def own_manifest(experiment: Experiment) -> Manifest:
    """A manifest of nothing prepared, for what reads one."""
    nothing = {d.name: TokenFile("", domain_hash(d.name, d.revision), 0, 0, 0) for d in experiment.domains}
    domains = {name: DomainFiles(file, file) for name, file in nothing.items()}
    return Manifest(experiment.output_dir, "", "", 0, domains, {})


def check_program(experiment: Experiment) -> None:
    """That a program which will run on this machine is here.

    Raises:
        ConfigError: it is not, or its folder is not.
    """
    trainer = experiment.trainer
    assert trainer is not None
    if trainer.kind == "elsewhere" or experiment.ray.address not in (None, "in-process"):
        return
    assert trainer.command is not None
    folder, program = Path(trainer.folder or "."), trainer.command[0]
    if not folder.is_dir():
        raise ConfigError(f"'trainer.folder' is {folder}, which is no folder.", "Name the folder that the program should run in.")
    found = "{" in program or shutil.which(str(folder / program) if "/" in program else program) is not None
    if not found:
        raise ConfigError(
            f"'trainer.command' begins with '{program}', which is no program here.", f"Mend it; paths are relative to {folder}."
        )


def compose_own(experiment: Experiment, manifest: Manifest) -> Search:
    """As `workers.compose.compose`, of an experiment with a trainer.

    Raises:
        InfeasibleError: no mixture satisfies bounds and epoch caps.
    """
    trainer, check = experiment.trainer, experiment.verification
    assert trainer is not None
    domains = own_domains(experiment)
    sources = (Source(EVALUATOR, trainer.name, trainer.tokens), Source(EVALUATOR, check.size, check.tokens))
    # `window` is what factories count unique tokens by; with nothing prepared, and of one token, every domain has one.
    recipe = {"window": 1, "version": trainer.version}
    factories = [TrialFactory(domains, source, recipe, "", ENGINE) for source in sources]
    evaluations = evaluations_of(trainer)
    assignment = assignment_of(experiment, domains, (Offer(sources[0], factories[0].make, trainer.flops or float(trainer.tokens)),))
    held_out = {evaluation.metric: evaluation.key for evaluation in evaluations}
    search_id = search_identity(
        factory=factories[0],
        objective=objective_of(experiment, held_out, objective_weights(experiment)),
        strategy=experiment.search.strategy,
        options=strategy_identity(experiment),
        seed=experiment.search.seed,
    )
    return Search(
        experiment=experiment,
        manifest=manifest,
        domains=domains,
        space=assignment.space,
        strategy=get_strategy(experiment.search.strategy, assignment, experiment.search.options),
        search_id=search_id,
        factory=factories[0],
        verification_factory=factories[1],
        evaluations={source.key: evaluations for source in sources},
        store=experiment.output_dir,
        folder=experiment.output_dir / "searches" / f"{experiment.name}-{search_id[:8]}",
    )


def own_context(search: Search, context: dict[str, Any]) -> dict[str, Any]:
    """The context of a search of the user's own trainer: without what is not known of documents, and with the unit and direction of metrics."""
    trainer = search.experiment.trainer
    assert trainer is not None
    unknown = ("held_out",)
    return {
        **context,
        "domains": [{key: value for key, value in domain.items() if key not in unknown} for domain in context["domains"]],
        "recipe": {"version": trainer.version},
        "tokenizer": {},
        "unique": {},
        "loss_unit": trainer.unit,
        "negated": sorted(trainer.maximized),
        "trainer": {"kind": trainer.kind, "name": trainer.name, "version": trainer.version},
    }
