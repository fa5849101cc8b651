"""What an experiment file says of components, and of the proxies that are merged of them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from mixopt.config_model import Model, WholeCount, checked_mixture
from mixopt.constraints.rules import NamedMixture
from mixopt.merging.remedies import Retraining

EVALUATORS = ("merged", "ensemble")
"""Evaluators that need no training of their own: an average of components' weights, and one of their tokens' probabilities."""
EVALUATOR_STRATEGIES = ("demix", "mergemix")
"""Strategies that are made of merged proxies."""
HORIZON = 1 / 3
"""Of the tokens of the search's proxies, by default (measured: docs/log.md)."""
FEWEST_STEPS = 8
Evaluator = Literal["merged", "ensemble"]
Operator = Literal["linear", "task_arithmetic", "ties", "dare", "spherical", "breadcrumbs"]


class ComponentsConfig(Model):
    """One component per domain: trained from the trials' own base, on that domain and a share of general data, at a constant rate."""

    general: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of general data in every component. DeMix takes half, which keeps components near each other; mixtures are un-mixed of it. Default: "
        "none, which ranks as well at the lengths of proxies, and with which every mixture is an average.",
    )
    mixture: NamedMixture | dict[str, float] = Field(
        "natural", description="General data: natural, uniform, unimax, or a weight for every domain (those left out: 0), summing to 1."
    )
    tokens: WholeCount | None = Field(
        None,
        description="Training tokens of a component, the horizon. Default: a third of `proxy.tokens`, of which ensembles rank mixtures as well as of all.",
    )
    seed: int = Field(0, ge=0, lt=2**31, description="Seed of the components' data order.")
    router: Literal["trained", "frozen"] = Field("trained", description="Whether routers are trained in components, or stay the base's.")
    operator: Operator = Field("linear", description="How weights are merged; linear needs no setting and ranks best (DeMix).")
    operator_options: dict[str, float | int] = Field(
        {}, description="Settings of the operator, as `density` of ties, dare and breadcrumbs."
    )
    extend: bool = Field(
        True,
        description="Where a domain was added since components were trained, keep their base and general data, and train one component.",
    )
    gate: int = Field(
        10,
        ge=6,
        description="Mixtures, baselines among them, that are trained first and averaged, too: whether averages are trusted is judged on them.",
    )
    remedies: tuple[Retraining, ...] = Field(
        ("shorter horizon", "larger general share", "frozen router"),
        description="What may be tried, by retraining the components, where merged proxies are not trusted; after that proxies are trained.",
    )
    most_share: float = Field(
        0.5, gt=0, le=1, description="Largest share of the search's budget that components, retrained ones included, may cost."
    )

    @field_validator("mixture", mode="before")
    @classmethod
    def _mixture(cls, value: Any) -> Any:
        """Said in one sentence, instead of one per kind that it could be."""
        return checked_mixture(value)

    @model_validator(mode="after")
    def _options_have_an_operator(self) -> ComponentsConfig:
        known = OPERATOR_OPTIONS[self.operator]
        unknown = sorted(set(self.operator_options) - set(known))
        if unknown:
            takes = f"it takes {', '.join(known)}" if known else "it takes none"
            raise ValueError(f"operator_options.{unknown[0]} is no setting of the operator '{self.operator}'; {takes}")
        seed = self.operator_options.get("seed", 0)
        if seed != int(seed) or seed < 0:
            raise ValueError(f"operator_options.seed is {seed}; it must be a whole number of at least 0")
        return self


OPERATOR_OPTIONS: dict[str, tuple[str, ...]] = {
    "linear": (),
    "task_arithmetic": ("scale",),
    "ties": ("density", "scale"),
    "dare": ("density", "scale", "seed"),
    "spherical": (),
    "breadcrumbs": ("density", "outliers", "scale"),
}
