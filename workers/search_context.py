"""What a search's record says of it, so that tracking, figures and exports need nothing else."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from mixopt import __version__
from mixopt.code_version import commit
from mixopt.constraints.placed import constraints_json
from mixopt.corpus.manifest import TokenFile
from mixopt.domains import DomainSet
from mixopt.groups.rules import frozen_paths, group_members, split_of
from mixopt.trial import content_digest
from proxy_models import ENGINE_VERSION
from workers.beginnings import beginning_json
from workers.compose import Search, objective_weights


def context(search: Search) -> dict[str, Any]:
    """What tracking, figures and export need to know about a search, as JSON values."""
    if search.experiment.trainer is not None:
        from workers.own_trainer.pieces import own_context

        return own_context(search, _context(search))
    return _context(search)


def _context(search: Search) -> dict[str, Any]:
    experiment, factory = search.experiment, search.factory
    unique = search.domains.unique_tokens(factory.source.tokens, int(factory.recipe["window"]))
    return {
        "name": experiment.name,
        "search_id": search.search_id,
        "domains": [
            {
                "name": domain.name,
                "group": domain.group,
                "kind": search.manifest.domains[domain.name].kind,
                "content_hash": domain.content_hash,
                "target_tokens": domain.target_tokens,
                "unique_target_tokens": domain.unique_target_tokens,
                "repeats": domain.repeats,
                "token_count_source": domain.token_count_source,
                "prepared_tokens": domain.prepared_tokens,
                "prepared_documents": search.manifest.domains[domain.name].train.documents,
                "prepared_bytes": search.manifest.domains[domain.name].train.bytes,
                "max_epochs": domain.max_epochs,
                "bounds": list(domain.bounds),
                "held_out": _facts(search.manifest.domains[domain.name].valid),
            }
            for domain in search.domains.domains
        ],
        "levels": list(experiment.levels),
        "groups": groups_json(search.domains),
        **({"constraints": constraints} if (constraints := constraints_json(search.domains)) else {}),
        "targets": [{"name": name, "kind": target.kind, **_facts(target.file)} for name, target in search.manifest.targets.items()],
        "budget_tokens": search.domains.budget_tokens,
        "natural": search.domains.natural().as_dict(),
        "uniform": search.domains.uniform().as_dict(),
        "unimax": search.domains.unimax().as_dict(),
        "upper": dict(zip(search.domains.names, search.space.units.expand(search.space.unit_reach[1]).tolist(), strict=True)),
        "metrics": search.search_metrics,
        "metrics_verification": search.metrics(search.verification_factory.source),
        "metrics_curve": {
            **search.curve_metrics(search.verification_factory.source),
            **search.search_curve_metrics,
        },
        "sources": {
            "search": [factory.source.evaluator, factory.source.size, factory.source.tokens],
            "verification": [
                search.verification_factory.source.evaluator,
                search.verification_factory.source.size,
                search.verification_factory.source.tokens,
            ],
        },
        **({"cheaper_sources": [[one.evaluator, one.size, one.tokens] for one in search.sources[:-1]]} if len(search.sources) > 1 else {}),
        "recipe": dict(factory.recipe),
        **beginning_json(experiment, {"search": search.base, "verification": search.verification_base}, search.metrics),
        **components_json(search),
        "tokenizer": {
            "hash": search.manifest.tokenizer_hash,
            "path": str(search.manifest.root / search.manifest.tokenizer_path),
            "vocab_size": search.manifest.vocab_size,
        },
        "strategy": experiment.search.strategy,
        "surrogate": experiment.search.surrogate,
        "seed": experiment.search.seed,
        "versions": {
            "mixopt": __version__,
            "commit": commit(),
            "engine": ENGINE_VERSION,
            "torch": version("torch"),
            "ray": version("ray"),
        },
        "experiment_hash": content_digest(experiment.model_dump(mode="json")),
        "objective": {
            "kind": experiment.objective.kind,
            "over": experiment.objective_over,
            "pull": experiment.objective.pull,
            "weights": objective_weights(experiment),
        },
        "unique": {name: [entry.tokens, entry.note] for name, entry in unique.items()},
    }


def components_json(search: Search) -> dict[str, Any]:
    """What merged and ensembled proxies are made of; empty where the search asks for none."""
    family = search.family
    if family is None or not search.experiment.search.evaluators:
        return {}
    return {
        "components": {
            "evaluators": [one.evaluator for one in search.averages],
            "general": family.share,
            "general_mixture": {name: round(weight, 6) for name, weight in family.general.as_dict().items() if weight > 0},
            "tokens": family.source.tokens,
            "operator": dict(family.operator),
            "trials": {name: trial.trial_id for name, trial in family.components.items()},
        },
        "metrics_components": search.metrics(family.source),
    }


def groups_json(domains: DomainSet) -> list[dict[str, Any]]:
    """Every group with its domains and the rules on it, a group right before its sub-groups; `level` is 1 for the outermost.

    `shares` is the rule as it was given, `split` what it means for the domains of a group that is searched as one unit.
    """
    paths = domains.group_paths
    tokens = {domain.name: domain.target_tokens for domain in domains.domains}
    rules, frozen = {rule.path: rule for rule in domains.rules}, frozen_paths(paths, domains.rules)
    described = []
    for path, members in group_members(paths).items():
        entry: dict[str, Any] = {"path": path, "level": path.count("/") + 1, "members": list(members)}
        rule = rules.get(path)
        if rule is not None and rule.shares is not None:
            entry["shares"] = rule.shares if rule.shares == "natural" else dict(rule.shares)
        if path in frozen:
            entry["split"] = split_of(path, paths, tokens, domains.rules)
        if rule is not None and rule.bounds != (0.0, 1.0):
            entry["bounds"] = list(rule.bounds)
        described.append(entry)
    return described


def _facts(file: TokenFile) -> dict[str, Any]:
    return {"content_hash": file.content_hash, "documents": file.documents, "tokens": file.tokens, "bytes": file.bytes}
