"""What the record knows about one search, read once, for everything that shows it: figures, answer, mirror."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from mixopt.balance import Balance
from mixopt.calibration.result import Calibration
from mixopt.calibration.stored import load
from mixopt.components.config import EVALUATORS
from mixopt.effects import DomainEffects
from mixopt.errors import DataError
from mixopt.history import History, SearchRecord, TrialRecord
from mixopt.objective import BITS_PER_BYTE, Objective
from mixopt.proposal import Proposal
from mixopt.swarm import Swarm
from mixopt.trial import Source
from mixopt.verification import Verification

# How people read the labels that searches give to arms and trials.
ARM_TITLES = {
    "proposal": "proposal",
    "best_measured": "best measured",
    "natural": "natural",
    "uniform": "uniform",
    "unimax": "UniMax",
}


@dataclass(frozen=True)
class Findings:
    """One search as the record knows it.

    Attributes:
        context: the search's "context" document.
        trials: of both stages, in ask order.
        swarm: finished trials of the search itself, without verification.
        proposal, verification: None until there is one.
        calibration: the one that the search keeps a copy of; None: it has none.
        gate: the document on whether merged and ensembled proxies are trusted; None: the search asked for none, or has not come to it.
    """

    search: SearchRecord
    context: Mapping[str, Any]
    trials: tuple[TrialRecord, ...]
    swarm: Swarm
    proposal: Proposal | None
    verification: Verification | None
    calibration: Calibration | None = None
    gate: Mapping[str, Any] | None = None

    @property
    def domains(self) -> tuple[str, ...]:
        return tuple(domain["name"] for domain in self.context["domains"])

    @property
    def objective_unit(self) -> str:
        """Unit of the objective, as the proposal says it; before there is one, as the objective's kind implies."""
        if self.proposal is not None and "objective_unit" in self.proposal.evidence:
            return str(self.proposal.evidence["objective_unit"])
        kind = (self.context.get("objective") or {}).get("kind")
        return self.loss_unit if kind == "mean" else "standard deviations of a seed"

    @property
    def loss_unit(self) -> str:
        """Unit of the losses; a trainer of the user's own has its own."""
        return str(self.context.get("loss_unit", BITS_PER_BYTE))

    @property
    def objective(self) -> Objective | None:
        """The objective that the proposal was made for; None before there is one."""
        body = self.proposal.evidence.get("objective") if self.proposal else None
        return Objective.from_json(body) if body else None

    @property
    def effects(self) -> DomainEffects | None:
        """What each domain does for each target; None where no proposal has asked."""
        body = self.proposal.evidence.get("domain_effects") if self.proposal else None
        return DomainEffects.from_json(body) if body else None

    @cached_property
    def balances(self) -> tuple[tuple[TrialRecord, Balance], ...]:
        """Finished trials whose experts' load was counted, with how even it was."""
        found = ((record, Balance.of(record.outcome.diagnostics)) for record in self.trials if record.outcome is not None)
        return tuple((record, balance) for record, balance in found if balance is not None)

    @cached_property
    def collapsed(self) -> tuple[tuple[TrialRecord, str], ...]:
        """The trials whose router has collapsed, and how."""
        return tuple((record, balance.collapse) for record, balance in self.balances if balance.collapse)

    @cached_property
    def answered(self) -> Swarm:
        """The trials of the search at the source that its answer is for; runs of cheaper sources compare with none of them."""
        return self.swarm.at_source(Source(*self.context["sources"]["search"]))

    @cached_property
    def averaged(self) -> Mapping[str, int]:
        """Evaluator -> finished trials that are averages of components; empty where there are none."""
        done = (record.trial.source.evaluator for record in self.trials if record.outcome is not None)
        return {name: count for name, count in sorted(Counter(done).items()) if name in EVALUATORS}

    @property
    def shown_metrics(self) -> tuple[str, ...]:
        """The metrics that a reader asks about first, in a stable order: the targets, or the held-out text of the domains if there are none."""
        names = sorted(set(self.context["metrics"].values()))
        return tuple(name for name in names if name.startswith("target/")) or tuple(names)


def short_metric(metric: str) -> str:
    """A metric as tables and figures call it: targets by their own name, held-out text of a domain as "text of web"."""
    kind, _, name = metric.partition("/")
    return name if kind == "target" and name else f"text of {name}" if kind == "valid" and name else metric.replace("_", " ")


def read_findings(history: History, search_id: str) -> Findings:
    """Reads a search from the record.

    Raises:
        DataError: the record does not hold the search, or its context was never written.
    """
    search = history.search(search_id)
    context = history.document(search_id, "context")
    if context is None:
        raise DataError(f"Search {search_id} has no context in the record.", "Run `mixopt search FILE`, which writes it first.")
    names = [domain["name"] for domain in context["domains"]]
    proposal, verification = history.document(search_id, "proposal"), history.document(search_id, "verification")
    gate = history.document(search_id, "gate")
    return Findings(
        search=search,
        context=context,
        trials=tuple(history.trials(search_id)),
        swarm=history.swarm(search_id, names, context["metrics"], "search", context.get("metrics_curve")).without(
            (gate or {}).get("left_out", ())
        ),
        proposal=None if proposal is None else Proposal.from_json(proposal),
        verification=None if verification is None else Verification.from_json(verification),
        calibration=load(history, search_id),
        gate=gate,
    )
