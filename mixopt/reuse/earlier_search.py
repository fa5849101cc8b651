"""What reuse needs to know of a finished search, from the record alone: its domains, its answer, its runs and its objective."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from mixopt.constraints.config import ConstraintsConfig
from mixopt.domains import Domain, DomainSet
from mixopt.errors import DataError
from mixopt.export import choose_schedule
from mixopt.groups.rules import GroupRule
from mixopt.history import History
from mixopt.objective import Objective
from mixopt.proposal import Proposal
from mixopt.reuse.law import FittedObjective, fit_objective_law
from mixopt.surrogates.observations import MINIMUM_TRIALS
from mixopt.swarm import Swarm
from mixopt.trial import Source, Trial
from mixopt.verification import Verification


@dataclass(frozen=True)
class EarlierSearch:
    """A finished search.

    Attributes:
        arm: which of its mixtures is kept: what its verification recommends, else the proposal.
        answer: that mixture, domain -> weight.
        swarm: its runs where the answer is wanted, at `source`.
        noise: difference of the objective that as many seeds as it had could not tell from nothing.
        trials: its finished trials, of all its sources.
    """

    search_id: str
    name: str
    domains: DomainSet
    contents: Mapping[str, str]
    arm: str
    answer: Mapping[str, float]
    source: Source
    swarm: Swarm
    objective: Objective
    strength: float
    noise: float
    trials: tuple[Trial, ...]

    @classmethod
    def of(cls, history: History, search_id: str) -> EarlierSearch:
        """Reads it.

        Raises:
            DataError: it has no answer yet, or too few runs where its answer is wanted.
        """
        record, context = history.search(search_id), history.document(search_id, "context")
        body, verified = history.document(search_id, "proposal"), history.document(search_id, "verification")
        if context is None or body is None:
            raise DataError(
                f"Search {search_id[:8]} ({record.name}) has no proposal yet, so there is nothing to reuse.",
                "Let `mixopt search` finish it first.",
            )
        proposal = Proposal.from_json(body)
        arm, schedule = choose_schedule(context, proposal, None if verified is None else Verification.from_json(verified), None)
        domains = stored_domains(context, yaml.safe_load(record.experiment_yaml) or {})
        source, evidence = Source(*context["sources"]["search"]), proposal.evidence
        noise = float(evidence["objective_noise_std"])
        settings = (yaml.safe_load(record.experiment_yaml) or {}).get("proxy") or {}
        trials = tuple(record.trial for record in history.trials(search_id, "search") if record.outcome is not None)
        _refuse_too_few(f"Search {search_id[:8]} ({record.name})", search_id, source, trials)
        return cls(
            search_id=search_id,
            name=record.name,
            domains=domains,
            contents={domain.name: domain.content_hash for domain in domains.domains},
            arm=arm,
            answer=schedule.average().as_dict(),
            source=source,
            swarm=history.swarm(search_id, domains.names, context["metrics"]).at_source(source),
            objective=Objective.from_json(evidence["objective"]),
            strength=float(evidence["pull"]) * max(float(evidence["objective_spread"]), noise),
            noise=noise * float(2 / int(settings.get("seeds", 3))) ** 0.5,
            trials=trials,
        )

    def fit(self) -> FittedObjective:
        """Its objective as a log-linear law. Raises DataError as `fit_objective_law`."""
        return fit_objective_law(self.swarm, self.objective, self.domains.natural().as_dict(), self.strength)


def _refuse_too_few(name: str, search_id: str, source: Source, trials: Sequence[Trial]) -> None:
    """Raises DataError where no law can be fitted to what was run at `source`: what losses depend on at another size or token count is another law."""
    counts = Counter(trial.source for trial in trials)
    there = counts.pop(source, 0)
    if there >= MINIMUM_TRIALS:
        return
    others = ", ".join(f"{one.key}" for one in sorted(counts, key=lambda one: one.key))
    rest = f"; the other {counts.total()} are of {others}, where losses follow another law" if counts else ""
    raise DataError(
        f"{name} has {there} {'run' if there == 1 else 'runs'} of {source.key}, where its answer is wanted, and reuse needs {MINIMUM_TRIALS}{rest}.",
        "Raise `search.trials` in its file and run `mixopt search` again. Or leave reuse out, and let the new search begin with all these runs: "
        f"`search.warm_start: [{{folder: OLD_DIR, search: {search_id[:8]}}}]` with `search.surrogate: multi_source_gp`.",
    )


def stored_domains(context: Mapping[str, Any], experiment: Mapping[str, Any]) -> DomainSet:
    """The domains of a recorded search with the rules on their groups and the constraints on the mixture."""
    domains = tuple(
        Domain(
            name=d["name"],
            content_hash=d["content_hash"],
            prepared_tokens=int(d["prepared_tokens"]),
            target_tokens=float(d["target_tokens"]),
            group=d.get("group", ""),
            max_epochs=float(d["max_epochs"]),
            bounds=(float(d["bounds"][0]), float(d["bounds"][1])),
            repeats=float(d.get("repeats", 1.0)),
        )
        for d in context["domains"]
    )
    rules = []
    for path, group in (experiment.get("groups") or {}).items():
        shares = group.get("shares")
        least, most = group.get("bounds") or (0.0, 1.0)
        rules.append(GroupRule(path, tuple(shares.items()) if isinstance(shares, dict) else shares, (float(least), float(most))))
    constraints = ConstraintsConfig.model_validate(experiment.get("constraints") or {}).constraints
    return DomainSet(domains, float(context["budget_tokens"]), tuple(rules), constraints)
