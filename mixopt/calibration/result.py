"""What a calibration found, as plain values; a versioned JSON document in the record.

The trade-off: the document holds conclusions and what they rest on, not every loss; those stay with the trials, from which it can be made anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from mixopt.calibration.agreement import Ranking
from mixopt.calibration.curves import PowerLaw
from mixopt.calibration.noise import MetricNoise
from mixopt.calibration.resolution import resolvable_difference
from mixopt.trial import Source

VERSION = 1
"""Of the document. One of another version is as none: it is made anew."""


@dataclass(frozen=True)
class RateResult:
    """One rate of the sweep.

    Attributes:
        loss: mean over the mixtures of the weighted mean of the objective's losses, bits per byte; None: some runs did not end.
        missing: mixtures whose run did not end, as those that diverged.
        ranking: None: it could not be judged.
    """

    rate: float
    loss: float | None
    missing: int
    ranking: Ranking | None


@dataclass(frozen=True)
class MetricCurve:
    """What more tokens bring one metric, mean over the mixtures, bits per byte.

    Attributes:
        law: through the points before the rate decays; None: too few, or losses that do not fall.
        end: at the source's tokens; `longer_end` with `times` as many, None: no longer run was made.
    """

    metric: str
    law: PowerLaw | None
    end: float
    longer_end: float | None
    times: int


@dataclass(frozen=True)
class Resources:
    """What the trials of one source took.

    Attributes:
        tokens_per_second: of one slot, measuring losses included; `expected` before anything ran.
        members: that trained together in the pack whose memory was measured; 0: none was.
        peak_bytes: of its process (of the device, on a GPU); `estimated_bytes`: the planner's arithmetic for so many members.
    """

    source: Source
    trials: int
    tokens_per_second: float
    expected_tokens_per_second: float | None = None
    members: int = 0
    peak_bytes: float | None = None
    estimated_bytes: float | None = None

    @property
    def unforeseen_bytes(self) -> float | None:
        """Measured memory less the estimate. What a pack takes beyond it, such as scoring, hardly grows with its members."""
        return self.peak_bytes - self.estimated_bytes if self.peak_bytes and self.estimated_bytes else None


@dataclass(frozen=True)
class Calibration:
    """What is known of one source.

    Attributes:
        origin: calibrate: the command measured it; search: a search's own first trials did, without a sweep of rates.
        own_rate: the rate that the trials of the source have; `rate`: the one recommended; `reason` says why.
        rates: the own one first; `references`: what they were judged by.
        mixtures: that the rates were judged by.
        screened: metric -> why the objective leaves it out.
        objective_noise_std: of one run at the own rate, in `objective_unit`.
        trials: at the source and its own rate, which all but `rates` and `curves` rest on.
    """

    calibration_id: str
    source: Source
    origin: Literal["calibrate", "search"]
    own_rate: float
    rate: float
    reason: str
    rates: tuple[RateResult, ...]
    references: tuple[str, ...]
    mixtures: int
    noise: tuple[MetricNoise, ...]
    screened: Mapping[str, str]
    objective_unit: str
    objective_noise_std: float
    degrees_of_freedom: int
    curves: tuple[MetricCurve, ...]
    resources: tuple[Resources, ...]
    trials: int

    @property
    def swept(self) -> bool:
        """Whether rates were compared."""
        return sum(row.ranking is not None for row in self.rates) > 1

    def resolvable(self, seeds: int) -> float:
        """The smallest difference of the objective that `seeds` runs of each of two mixtures tell apart, in `objective_unit`."""
        return resolvable_difference(self.objective_noise_std, seeds)

    def summary(self, seeds: int) -> str:
        """What it means for a search whose mixtures are compared with so many seeds each, in a few sentences."""
        by = f"the search's own {self.trials} trials" if self.origin == "search" else f"{self.trials} trials"
        memory = self.resources_of(self.source)
        measured = (
            ""
            if memory is None or memory.peak_bytes is None or memory.estimated_bytes is None
            else f" A pack of {memory.members} took {memory.peak_bytes / 1e9:.2f} GB where {memory.estimated_bytes / 1e9:.2f} were estimated."
        )
        return (
            f"by {by} of {self.source.size} at a learning rate of {self.own_rate:g}: a seed moves the objective by {self.objective_noise_std:.3g} {self.objective_unit} "
            f"({self.degrees_of_freedom} degrees of freedom), so {seeds} seeds tell apart differences of {self.resolvable(seeds):.3g} or more. "
            f"{self.reason if self.swept else 'Learning rates were not compared.'}{measured}"
        )

    def resources_of(self, source: Source) -> Resources | None:
        return next((entry for entry in self.resources if entry.source == source), None)

    def to_json(self) -> dict[str, Any]:
        return {"version": VERSION, **asdict(self), "screened": dict(self.screened)}

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Calibration:
        """Inverts `to_json`, also after a trip through JSON text."""
        fields = {key: value for key, value in body.items() if key != "version"}
        made = {
            "source": Source(**body["source"]),
            "rates": tuple(_rate(row) for row in body["rates"]),
            "references": tuple(body["references"]),
            "noise": tuple(_noise(row) for row in body["noise"]),
            "curves": tuple(
                MetricCurve(**{**row, "law": None if row["law"] is None else PowerLaw(**row["law"])}) for row in body["curves"]
            ),
            "resources": tuple(Resources(**{**row, "source": Source(**row["source"])}) for row in body["resources"]),
        }
        return cls(**{**fields, **made})


def _rate(row: Mapping[str, Any]) -> RateResult:
    return RateResult(**{**row, "ranking": None if row["ranking"] is None else Ranking(**row["ranking"])})


def _noise(row: Mapping[str, Any]) -> MetricNoise:
    return MetricNoise(**{**row, "by_mixture": {name: (int(seeds), float(std)) for name, (seeds, std) in row["by_mixture"].items()}})
