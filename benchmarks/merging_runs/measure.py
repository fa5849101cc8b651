"""What merged proxies and ensembles lose on the probe, for every mixture of an arm: one task per arm and general share.

A mixture p is asked of components of general share beta in two ways. `exact`: the weights alpha = (p - beta g) / (1 - beta), whose merge stands for p; linear merges
extrapolate where some are negative, everything else is asked only for what lies within reach. `shrunk`: the weights p themselves, whose merge stands for the mixture
(1 - beta) p + beta g, nearer to the natural mixture g: every operator can, and where losses are linear in the mixture it ranks alike. Without a general share the two
are one.

What is measured is kept as a file beside the trials. The trade-off: operators other than linear are merged one by one, into one pack that is scored.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mixopt.mixture import FloatArray
from mixopt.runner import Evaluation
from mixopt.trial import Trial, content_digest

if TYPE_CHECKING:
    import torch

    from proxy_models.config import ProxyConfig
    from proxy_models.evaluate import Score
    from proxy_models.merging.components import Component
    from proxy_models.merging.operators import MergeOperator

VERSION = 1
REACH = 1e-9
"""Weights above minus this are taken for zero: rounding of whoever made the mixture."""
OWN_WINDOWS, COMMON_WINDOWS = 8, 2
"""Windows of each domain's training text: on its own component, for Fisher information and routing shares; on every model, for agreement of routes."""


@dataclass(frozen=True)
class Measured:
    """Losses of one evaluator for the mixtures of an arm.

    Attributes:
        evaluator: merged, ensemble or trained; operator: of merges.
        weights: exact, shrunk, or nothing where there are no weights.
        size, tokens, schedule, rate_scale: of the proxies, or of their components.
        general: share of the natural mixture in components.
        losses: metric -> bits per byte by mixture; None where the mixture is out of reach.
        shared_flops: of the components; each_flops: of one more mixture, scoring included; zero until whoever knows the costs fills them in.
        displacement: of the components from their base, mean. agreement: share of choices of experts that merges have in common with the base, mean over mixtures and
            layers; None where nobody looked.
    """

    evaluator: str
    operator: str
    weights: str
    size: str
    tokens: int
    schedule: str
    rate_scale: float
    general: float | None
    losses: Mapping[str, Sequence[float | None]]
    shared_flops: float
    each_flops: float
    displacement: float | None = None
    agreement: float | None = None


@dataclass(frozen=True)
class MeasureJob:
    """Plain data of one task.

    Attributes:
        template: what its results share.
        weights_MK: data mixtures that are asked for, columns in the order of components; natural_K: the general mixture.
        names: of the domains; text: their training tokens.
    """

    store: Path
    base: Trial
    components: tuple[Trial, ...]
    names: tuple[str, ...]
    text: tuple[Path, ...]
    natural_K: tuple[float, ...]
    weights_MK: tuple[tuple[float, ...], ...]
    probe: tuple[Evaluation, ...]
    window: int
    every_operator: bool
    template: Measured

    @property
    def path(self) -> Path:
        """Where the results are kept; named by all that they depend on."""
        made_of = [VERSION, self.base.trial_id, [one.trial_id for one in self.components], self.weights_MK, [one.key for one in self.probe]]
        return self.store / "measured" / f"{content_digest([*made_of, self.every_operator])}.json"


def component_weights(mixture_MK: FloatArray, natural_K: FloatArray, general: float) -> FloatArray:
    """Weights of components whose data add up to a mixture: (p - beta g) / (1 - beta), shape (M, K), rows summing to one; rounding is not extrapolation."""
    weights = (mixture_MK - general * natural_K) / (1 - general)
    weights[np.abs(weights) < REACH] = 0.0
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def within_reach(weights_MK: FloatArray) -> FloatArray:
    """Which mixtures need no extrapolation, (M,)."""
    return np.asarray((weights_MK >= 0).all(axis=1))


def measure(job: MeasureJob) -> list[Measured]:
    """Everything that is asked of one set of components."""
    if job.path.exists():
        return [Measured(**one) for one in json.loads(job.path.read_text(encoding="utf-8"))]
    found = _Measurement(job).all()
    job.path.parent.mkdir(exist_ok=True)
    temporary = job.path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(json.dumps([asdict(one) for one in found]), encoding="utf-8")
    os.replace(temporary, job.path)
    return found


class _Measurement:
    def __init__(self, job: MeasureJob) -> None:
        import torch

        from proxy_models.evaluate import EvaluationSet
        from proxy_models.merging.components import StoredComponent
        from workers.convert import evaluation_of, proxy_of
        from workers.trial_folder import TrialFolder

        torch.set_num_threads(1)
        self._job = job
        self._config: ProxyConfig = proxy_of(job.base)
        weights = [TrialFolder(job.store, one.trial_id).weights_path for one in (job.base, *job.components)]
        self._base, *self._components = (
            StoredComponent(name, path, job.base.trial_id) for name, path in zip(("base", *job.names), weights, strict=True)
        )
        self._specs = [evaluation_of(one) for one in job.probe]
        self._sets = [EvaluationSet(spec, job.window) for spec in self._specs]
        self._metrics = [one.metric for one in job.probe]
        self._asked = np.array(job.weights_MK)
        assert job.template.general is not None
        self._exact = component_weights(self._asked, np.array(job.natural_K), job.template.general)

    def all(self) -> list[Measured]:
        displacement, agreement = self._diagnosed()
        found = [self._linear("linear", "exact", self._exact, self._components)]
        plain_routers = [_BaseRouter(one, self._base) for one in self._components]
        found.append(self._linear("linear, base router", "exact", self._exact, plain_routers))
        found.append(self._ensemble("exact", self._exact))
        if self._job.template.general:
            found.append(self._linear("linear", "shrunk", self._asked, self._components))
            found.append(self._linear("linear, base router", "shrunk", self._asked, plain_routers))
            found.append(self._ensemble("shrunk", self._asked))
        if self._job.every_operator:
            for name, operator in self._operators().items():
                found.append(self._one_by_one(name, "exact", self._exact, operator))
                if self._job.template.general:
                    found.append(self._one_by_one(name, "shrunk", self._asked, operator))
        return [replace(one, displacement=displacement, agreement=agreement) for one in found]

    def _measured(self, evaluator: str, operator: str, weights: str, scores: Sequence[Sequence[Score] | None]) -> Measured:
        losses = {
            metric: [None if one is None else one[index].bits_per_byte for one in scores] for index, metric in enumerate(self._metrics)
        }
        return replace(self._job.template, evaluator=evaluator, operator=operator, weights=weights, losses=losses)

    def _linear(self, operator: str, weights: str, weights_MK: FloatArray, components: Sequence[Component]) -> Measured:
        from proxy_models.merging.contraction import score_mixtures

        scores = score_mixtures(self._config, components, weights_MK, self._specs, self._job.window)
        return self._measured("merged", operator, weights, scores)

    def _ensemble(self, weights: str, weights_MK: FloatArray) -> Measured:
        from proxy_models.ensemble import Ensemble, token_losses
        from proxy_models.merging.contraction import merged_pack
        from proxy_models.products import fast_products

        reached = np.flatnonzero(within_reach(weights_MK))
        with fast_products():
            pack = merged_pack(self._config, self._components, np.eye(len(self._components)))
            by_set = [Ensemble(token_losses(pack, one)).scores(weights_MK[reached]) for one in self._sets] if len(reached) else []
        scores: list[list[Score] | None] = [None] * len(weights_MK)
        for place, m in enumerate(reached.tolist()):
            scores[m] = [one[place] for one in by_set]
        return self._measured("ensemble", "", weights, scores)

    def _one_by_one(self, name: str, weights: str, weights_MK: FloatArray, operator: MergeOperator) -> Measured:
        from proxy_models.evaluate import evaluate
        from proxy_models.merging.merge import merge
        from proxy_models.model import PackedProxy
        from proxy_models.products import fast_products

        reached = np.flatnonzero(within_reach(weights_MK)).tolist()
        scores: list[Sequence[Score] | None] = [None] * len(weights_MK)
        if reached:
            pack = PackedProxy(self._config, [0] * len(reached), draw=False)
            for place, m in enumerate(reached):
                shares = dict(zip(self._job.names, weights_MK[m].tolist(), strict=True))
                pack.load_member_state(place, merge(self._components, shares, operator, self._base))
            with fast_products():
                for m, one in zip(reached, evaluate(pack, self._sets, "end"), strict=True):
                    scores[m] = one
        return self._measured("merged", name, weights, scores)

    def _operators(self) -> dict[str, MergeOperator]:
        from proxy_models.merging.components import HeldComponent
        from proxy_models.merging.operators import FisherWeighted, RoutingWeighted, Spherical, TaskArithmetic
        from proxy_models.merging.routes import component_routes, diagonal_fisher
        from proxy_models.merging.sparse_operators import Breadcrumbs, Dare, Ties

        own = {one.name: (one, self._windows(path, OWN_WINDOWS)) for one, path in zip(self._components, self._job.text, strict=True)}
        fisher = {name: HeldComponent(name, diagonal_fisher(self._config, one, tokens)) for name, (one, tokens) in own.items()}
        shares = {name: component_routes(self._config, one, tokens).shares() for name, (one, tokens) in own.items()}
        return {
            "task arithmetic, scale 0.5": TaskArithmetic(0.5),
            "ties": Ties(),
            "dare": Dare(),
            "breadcrumbs": Breadcrumbs(),
            "spherical": Spherical(),
            "routing-weighted": RoutingWeighted(shares),
            "fisher-weighted": FisherWeighted.of(fisher),
        }

    def _diagnosed(self) -> tuple[float, float]:
        """Mean displacement of the components, and mean agreement of all merges' routers with the base's."""
        import torch

        from proxy_models.merging.contraction import merged_pack
        from proxy_models.merging.diagnosis import Inspector

        tokens_BS = torch.cat([self._windows(path, COMMON_WINDOWS) for path in self._job.text])
        inspector = Inspector(self._config, self._components, self._base, tokens_BS)
        diagnoses = inspector.of_pack(merged_pack(self._config, self._components, self._exact))
        agreements = [share for one in diagnoses for share in one.agreement_with_base or ()]
        return float(np.mean([one.total for one in diagnoses[0].displacement.values()])), float(np.mean(agreements))

    def _windows(self, path: Path, count: int) -> torch.Tensor:
        """The first windows of a token file, int64 (count, T + 1)."""
        import torch

        from proxy_models.windows import windows_of

        tokens, _ = windows_of(path, self._job.window).read(np.arange(count))
        return torch.from_numpy(tokens.astype(np.int64))


class _BaseRouter:
    """A component with the base's routers and balancing biases in place, as if they had been frozen."""

    def __init__(self, component: Component, base: Component) -> None:
        self._component, self._base = component, base
        self.name, self.base_id, self.shapes = component.name, component.base_id, component.shapes

    def rows(self, tensor: str, first: int, last: int, expert: int | None = None) -> torch.Tensor:
        from proxy_models.merging.components import moe_tensor

        moe = moe_tensor(tensor)
        of = self._base if moe is not None and not moe.by_expert else self._component
        return of.rows(tensor, first, last, expert)


def trained_losses(
    trials: Sequence[Trial], outcomes: Callable[[str], Any], evaluations: Sequence[Evaluation]
) -> dict[str, list[float]] | None:
    """Metric -> bits per byte at the end of training, by trial; None where a trial is not done."""
    found: dict[str, list[float]] = {one.metric: [] for one in evaluations}
    for trial in trials:
        outcome = outcomes(trial.trial_id)
        if outcome is None:
            return None
        at_end = {m.evaluation_key: m.bits_per_byte for m in outcome.measurements if m.tokens == outcome.tokens}
        for one in evaluations:
            if one.key not in at_end:
                return None
            found[one.metric].append(at_end[one.key])
    return found
