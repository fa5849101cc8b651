"""What the record knows about one search, read once, for everything that shows it: figures, answer, mirror."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mixopt.errors import DataError
from mixopt.history import History, SearchRecord, TrialRecord
from mixopt.proposal import Proposal
from mixopt.swarm import Swarm
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
    """

    search: SearchRecord
    context: Mapping[str, Any]
    trials: tuple[TrialRecord, ...]
    swarm: Swarm
    proposal: Proposal | None
    verification: Verification | None

    @property
    def domains(self) -> tuple[str, ...]:
        return tuple(domain["name"] for domain in self.context["domains"])

    @property
    def objective_unit(self) -> str:
        """Unit of the objective, as the proposal says it; before there is one, as the objective's kind implies."""
        if self.proposal is not None and "objective_unit" in self.proposal.evidence:
            return str(self.proposal.evidence["objective_unit"])
        kind = (self.context.get("objective") or {}).get("kind")
        return "bits per byte" if kind == "mean" else "standard deviations of a seed"


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
    return Findings(
        search=search,
        context=context,
        trials=tuple(history.trials(search_id)),
        swarm=history.swarm(search_id, names, context["metrics"], "search"),
        proposal=None if proposal is None else Proposal.from_json(proposal),
        verification=None if verification is None else Verification.from_json(verification),
    )
