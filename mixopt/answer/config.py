"""What an experiment file says of the objective, and of metrics that may not pay for the others."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from mixopt.answer.floors import Floor
from mixopt.config_model import Model


class FloorConfig(Model):
    """No mixture may be worse than a baseline on a metric by more than so much."""

    metric: str = Field(
        min_length=1, description="A target or domain by its name, target/NAME, valid/NAME, or `all` that the objective counts."
    )
    baseline: Literal["natural", "uniform", "unimax", "best_measured"] | float = Field("natural", description="A mixture, or a loss.")
    by: Annotated[float | str, BeforeValidator(lambda value: _check_margin(value))] = Field(
        0.0, description="In the unit of losses, as 0.01, or in percent of the baseline's loss, as 1%."
    )

    @property
    def floor(self) -> Floor:
        percent = isinstance(self.by, str)
        return Floor(self.metric, self.baseline, float(str(self.by).removesuffix("%")), percent)


def _check_margin(value: Any) -> Any:
    """A number, or text as 1%; said in one sentence, instead of one per kind that it could be."""
    text = str(value).strip()
    try:
        number = float(text.removesuffix("%"))
    except ValueError:
        number = math.nan
    if isinstance(value, bool) or not math.isfinite(number):
        raise ValueError(f"{value!r} is no margin; write a number, as 0.01, or percent, as 1%")
    return f"{number:g}%" if text.endswith("%") else number


class ObjectiveConfig(Model):
    """What is minimized: a function of losses in bits per byte."""

    kind: Literal["noise_scaled", "mean", "weighted", "worst_case", "z_scored"] = Field(
        "noise_scaled",
        description="noise_scaled: weighted mean of (loss - loss at the natural mixture) / seed noise; mean: weighted mean loss; "
        "weighted: the same, where every target states its weight; worst_case: largest noise-scaled difference; "
        "z_scored: weighted mean of (loss - loss at the natural mixture) / standard deviation over the mixtures.",
    )
    over: Literal["targets", "domains", "all"] | None = Field(
        None,
        description="Which losses count: targets, held-out text of the domains, or both. Default: targets if there are any, else domains.",
    )
    pull: Annotated[float | Literal["auto"], BeforeValidator(lambda value: _check_pull(value))] = Field(
        0.05,
        description="Weight of KL(mixture, natural), in standard deviations of the objective over the swarm; auto: chosen by cross-validation.",
    )
    floors: tuple[FloorConfig, ...] = Field((), description="Metrics that may not pay for the others.")
    confidence: float = Field(0.0, ge=0, description="Posterior standard deviations that predictions must keep from the floors.")


def _check_pull(value: Any) -> Any:
    """Said in one sentence, instead of one per kind that it could be."""
    if value == "auto":
        return value
    try:
        pull = float(value)
    except (TypeError, ValueError):
        pull = math.nan
    if isinstance(value, bool) or not (math.isfinite(pull) and pull >= 0):
        raise ValueError(f"{value!r} is no pull; write a number of at least 0, as 0.05, or `auto`")
    return pull
