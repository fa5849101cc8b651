"""The plan of a search with a trainer of the user's own: what will be asked of it, and what is known of its time.

Far less than of mixopt's proxies: nobody here knows what a trial costs before the first has ended. The record is read, nothing is written to it.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from mixopt.config import Experiment
from mixopt.history import History
from mixopt.trial import TrialState
from workers.compose import compose, record_location
from workers.own_trainer.pieces import own_manifest

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class OwnPlan:
    """What a search will ask of a trainer.

    Attributes:
        finished: trials that the record holds with an outcome, of this search.
        verification: most runs of it; 0 where it is off.
        slots: trials at once, where they run on this machine; None: not known here.
        seconds_per_trial: mean of the finished; None: there are none that say.
        time_limit: of a trial, in seconds.
        domains: name, tokens in the target corpus, epochs at the natural mixture, largest weight that caps and bounds allow.
    """

    name: str
    search_id: str
    trainer: str
    trials: int
    tokens: int
    finished: int
    verification: int
    verification_tokens: int
    slots: int | None
    seconds_per_trial: float | None
    time_limit: float | None
    domains: tuple[tuple[str, float, float, float], ...]

    @property
    def left(self) -> int:
        return max(0, self.trials - self.finished)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def sentences(self) -> list[str]:
        """What there is to say, in order."""
        from mixopt.plan_page import duration
        from mixopt.terminal import quantity

        said = [
            f"Plan of {self.name}: search {self.search_id[:8]}, {self.trials} trials of {self.trainer}, {self.tokens:,} tokens each, "
            f"{quantity(self.trials * self.tokens)} in all; {self.finished} are finished."
        ]
        if self.verification:
            said.append(f"Verification: at most {self.verification} runs of {self.verification_tokens:,} tokens.")
        if self.slots is not None:
            rounds = -(-self.left // self.slots)
            if self.seconds_per_trial:
                took = duration(self.seconds_per_trial)
                said.append(
                    f"Time left: about {duration(rounds * self.seconds_per_trial)}, as finished trials took {took}, {self.slots} at once."
                )
            elif self.time_limit is not None:
                said.append(f"Time: at most {duration(rounds * self.time_limit)}, {self.slots} trials at once, each within its time limit.")
            else:
                said.append(f"Time: not known before the first trial has ended; {self.slots} run at once.")
        return said

    def show(self, console: Console) -> None:
        """Prints the plan."""
        from mixopt.terminal import print_line, quantity, rows_table

        for sentence in self.sentences():
            print_line(console, sentence)
        rows = [[name, quantity(tokens), f"{epochs:.2f}", f"{100 * most:.1f}"] for name, tokens, epochs, most in self.domains]
        console.print(rows_table("Target run", ["domain", "tokens", "epochs at natural", "largest weight, %"], rows))


def own_plan(experiment: Experiment) -> OwnPlan:
    """The plan of an experiment that `check_experiment` has passed.

    Raises:
        MixoptError: as `compose`.
    """
    trainer, check = experiment.trainer, experiment.verification
    assert trainer is not None
    search = compose(experiment, own_manifest(experiment))
    took = _seconds(search.search_id, experiment)
    slots = None
    if trainer.kind == "command" and experiment.ray.address in (None, "in-process"):
        slots = max(1, (experiment.ray.cpus or os.cpu_count() or 1) // trainer.cpus)
    domains, epochs = search.domains, search.domains.epochs(search.domains.natural())
    upper = search.space.units.expand(search.space.unit_reach[1]).tolist()
    return OwnPlan(
        name=experiment.name,
        search_id=search.search_id,
        trainer=trainer.name,
        trials=experiment.search.trials,
        tokens=trainer.tokens,
        finished=len(took),
        verification=5 * check.seeds if check.enabled else 0,
        verification_tokens=check.tokens,
        slots=slots,
        seconds_per_trial=sum(took) / len(took) if any(took) else None,
        time_limit=trainer.time_limit,
        domains=tuple(
            (domain.name, float(domain.target_tokens), epochs[domain.name], float(most))
            for domain, most in zip(domains.domains, upper, strict=True)
        ),
    )


def _seconds(search_id: str, experiment: Experiment) -> list[float]:
    """Seconds of every finished trial of the search."""
    location = record_location(experiment.output_dir)
    if not location.exists():
        return []
    with History.open(location) as history:
        records = history.trials(search_id, "search")
    return [record.outcome.seconds for record in records if record.outcome is not None and record.state is TrialState.COMPLETED]
