"""Scores merged and ensembled trials: averages of components, of which nothing is trained and nothing but the scores is kept.

A merged trial is an average of its components' weights; a pack of them is made in memory from the components' files and scored as any pack
(`proxy_models.merging`). An ensembled trial is an average of the components' probabilities of every scored token, which are had once per component and
kept in its folder as `token_losses.safetensors`. The main trade-off: components are read anew for every pack, a second or less for small proxies, so that
a process that dies loses nothing and holds nothing.

Legend: M mixtures of a pack, K components, B windows, S tokens of a window and one more.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mixopt.code_version import code_version
from mixopt.errors import DataError
from mixopt.runner import Evaluation
from mixopt.trial import AVERAGED, JsonValue, Measurement, Outcome, Trial, content_digest
from workers.convert import evaluation_of, proxy_of, trained_tokens, used_domains
from workers.evaluations import FORWARD_COST
from workers.packing import Device
from workers.trial_folder import TrialFolder

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from proxy_models.ensemble import TokenLosses
    from proxy_models.evaluate import EvaluationSet, Score
    from proxy_models.folds import FoldLosses, Folds, FoldSums
    from proxy_models.merging.components import StoredComponent
    from proxy_models.merging.diagnosis import Diagnosis
    from proxy_models.merging.operators import MergeOperator
    from proxy_models.model import PackedProxy

PLACES = 16
"""Merged proxies that are scored together: more gain nothing on a core (docs/log.md, part 7)."""
INSPECTED_ROWS = 2
"""Rows of each held-out text on which routes are compared: with 8 domains and windows of 256 some 4,000 tokens."""


def score_averages(
    trials: Sequence[Trial], store: Path, evaluations: Sequence[Evaluation], device: Device, places: int = PLACES
) -> Iterator[tuple[Outcome, FoldJson]]:
    """Outcomes of trials of one evaluator, recipe and source, `places` at a time, in their order, with their losses on parts of the held-out sets.

    Raises:
        DamagedCheckpoint, FileNotFoundError, DamagedTokenFile: a component or held-out set cannot be read.
        ValueError: components do not fit each other.
    """
    from proxy_models.evaluate import EvaluationSet

    window = int(trials[0].recipe["window"])
    sets = [EvaluationSet(evaluation_of(evaluation), window) for evaluation in evaluations]
    ensembled = trials[0].source.evaluator == "ensemble"
    scored = _ensembled if ensembled else _merged
    names = list(dict.fromkeys(name for trial in trials for name in trial.recipe["merge"]["weights"]))
    weights_MK = np.array([[trial.recipe["merge"]["weights"].get(name, 0.0) for name in names] for trial in trials])
    tokens = sum(int(one.rows("end").lengths.sum()) for one in sets)
    forward = FORWARD_COST * tokens * proxy_of(trials[0]).training_flops_per_token(window)
    flops = 4.0 * tokens * len(names) if ensembled else forward
    batches = [slice(first, first + places) for first in range(0, len(trials), places)]
    started = time.perf_counter()
    found = scored(trials[0], store, names, weights_MK, sets, batches, device)
    for batch, (scores, diagnoses, losses) in zip(batches, found, strict=True):
        members = trials[batch]
        seconds = (time.perf_counter() - started) / len(members)
        for place, (trial, of_sets, merge) in enumerate(zip(members, scores, diagnoses, strict=True)):
            yield _outcome(trial, of_sets, merge, flops, seconds), _fold_json(losses, place)
        started = time.perf_counter()


FoldJson = dict[str, JsonValue]
"""Held-out set -> bits on every fold of its rows ("bits") and the bytes that each stands for ("text_bytes")."""


def folds_of(one: EvaluationSet) -> Folds | None:
    """How the rows of a held-out set are dealt for the errors of differences; None where there are too few."""
    from proxy_models.folds import FOLDS, Folds

    try:
        return Folds.of(one, min(FOLDS, len(one.rows("end"))))
    except ValueError:
        return None


def _fold_json(losses: Mapping[str, FoldLosses], place: int) -> FoldJson:
    """Bits on every fold and the bytes that it stands for, by held-out set, of one of the averages."""
    return {key: {"bits": one.bits()[place].tolist(), "text_bytes": one.text_bytes_F.tolist()} for key, one in losses.items()}


Found = Iterator[tuple[list[list["Score"]], list[dict[str, JsonValue]], Mapping[str, "FoldLosses"]]]


def _merged(
    first: Trial,
    store: Path,
    names: Sequence[str],
    weights_MK: NDArray[np.float64],
    sets: Sequence[EvaluationSet],
    batches: Sequence[slice],
    device: Device,
) -> Found:
    from proxy_models.evaluate import evaluate
    from proxy_models.folds import FoldSums
    from proxy_models.merging.components import StoredComponent
    from proxy_models.merging.diagnosis import Inspector
    from proxy_models.products import fast_products

    merge = first.recipe["merge"]
    config = proxy_of(first)
    components = [StoredComponent(name, TrialFolder(store, name).weights_path, merge["base"]) for name in names]
    base = StoredComponent(merge["base"], TrialFolder(store, merge["base"]).weights_path)
    operator = operator_of(merge["operator"])
    with fast_products():
        inspector = Inspector(config, components, base, _inspected(sets), device)
        dealt = {one.spec.key: folds for one in sets if (folds := folds_of(one)) is not None}
        for batch in batches:
            pack = _pack(first, components, weights_MK[batch], operator, base, device)
            sums = {key: FoldSums(folds, pack.members) for key, folds in dealt.items()}
            scores = evaluate(pack, sets, "end", _adder(sums))
            yield scores, [summary(one) for one in inspector.of_pack(pack)], {key: one.losses() for key, one in sums.items()}


def _adder(sums: Mapping[str, FoldSums]) -> Callable[[EvaluationSet, NDArray[np.float64]], None]:
    def add(one: EvaluationSet, losses_KT: NDArray[np.float64]) -> None:
        if one.spec.key in sums:
            sums[one.spec.key].add(losses_KT)

    return add


def _pack(
    trial: Trial,
    components: Sequence[StoredComponent],
    weights_MK: NDArray[np.float64],
    operator: MergeOperator,
    base: StoredComponent,
    device: Device,
) -> PackedProxy:
    """The merges of these mixtures as one pack: one contraction where the operator is linear, else one after the other."""
    from proxy_models.merging.contraction import merged_pack
    from proxy_models.merging.merge import merge
    from proxy_models.merging.operators import Linear
    from proxy_models.model import PackedProxy

    if isinstance(operator, Linear):
        return merged_pack(proxy_of(trial), components, weights_MK, device)
    pack = PackedProxy(proxy_of(trial), [0] * len(weights_MK), device, draw=False)
    for m, row in enumerate(weights_MK.tolist()):
        pack.load_member_state(m, merge(components, dict(zip([one.name for one in components], row, strict=True)), operator, base))
    return pack


def write_merge(trial: Trial, store: Path) -> None:
    """Writes the weights of a merged trial into its folder, for who wants to have them; scoring needs no copy.

    Raises:
        DataError: a component's weights are missing or damaged.
    """
    from proxy_models.checkpoint import DamagedCheckpoint
    from proxy_models.merging.components import StoredComponent
    from proxy_models.merging.merge import save_merge

    merge = trial.recipe["merge"]
    try:
        components = [StoredComponent(name, TrialFolder(store, name).weights_path, merge["base"]) for name in merge["weights"]]
        base = StoredComponent(merge["base"], TrialFolder(store, merge["base"]).weights_path)
    except (FileNotFoundError, DamagedCheckpoint) as error:
        raise DataError(
            f"The weights of a component of trial {trial.trial_id[:8]} are missing or damaged: {error}",
            "`mixopt components FILE` trains it anew.",
        ) from error
    save_merge(TrialFolder(store, trial.trial_id).weights_path, components, merge["weights"], operator_of(merge["operator"]), base)


def operator_of(described: Mapping[str, Any]) -> MergeOperator:
    """The operator of a recipe.

    Raises:
        ValueError: a setting is out of range.
    """
    from proxy_models.merging import operators, sparse_operators

    kinds = {
        "linear": operators.Linear,
        "task_arithmetic": operators.TaskArithmetic,
        "spherical": operators.Spherical,
        "ties": sparse_operators.Ties,
        "dare": sparse_operators.Dare,
        "breadcrumbs": sparse_operators.Breadcrumbs,
    }
    settings = {name: value for name, value in described.items() if name != "kind"}
    made: MergeOperator = kinds[described["kind"]](**settings)
    return made


def _inspected(sets: Sequence[EvaluationSet]) -> Any:
    """Windows on which routes are compared: the longest rows of every held-out text (of all sets, where none is text), cut to one length, (B, S)."""
    import torch

    texts = [one for one in sets if one.spec.kind == "text"] or list(sets)
    rows = [row for one in texts for row in next(one.batches("end"))[0][:INSPECTED_ROWS]]
    length = min(len(row) for row in rows)
    return torch.from_numpy(np.stack([row[:length] for row in rows]))


def summary(diagnosis: Diagnosis) -> dict[str, JsonValue]:
    """What of a diagnosis is kept with every merged trial, as JSON values; means over components and layers."""
    moved = [one.total for one in diagnosis.displacement.values()]
    agreement = [share for shares in diagnosis.agreement.values() for share in shares]
    with_base = diagnosis.agreement_with_base or ()
    return {
        "displacement": _mean(moved),
        "largest_displacement": max(moved),
        "agreement": _mean(agreement),
        "lowest_agreement": min((math.fsum(shares) / len(shares) for shares in diagnosis.agreement.values() if shares), default=None),
        "agreement_with_base": _mean(with_base),
        "dead_experts": [list(place) for place in diagnosis.dead_experts],
        "load_variation": _mean(diagnosis.load_variation),
        "tokens": diagnosis.tokens,
    }


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def _ensembled(
    first: Trial,
    store: Path,
    names: Sequence[str],
    weights_MK: NDArray[np.float64],
    sets: Sequence[EvaluationSet],
    batches: Sequence[slice],
    device: Device,
) -> Found:
    from proxy_models.ensemble import Ensemble, side_by_side
    from proxy_models.folds import ensemble_fold_losses

    losses = [component_token_losses(first, TrialFolder(store, name), sets, device) for name in names]
    ensembles = {one.spec.key: Ensemble(side_by_side([part[one.spec.key] for part in losses])) for one in sets}
    dealt = {one.spec.key: folds for one in sets if (folds := folds_of(one)) is not None}
    for batch in batches:
        by_set = [ensemble.scores(weights_MK[batch]) for ensemble in ensembles.values()]
        members = len(weights_MK[batch])
        parts = {key: ensemble_fold_losses(ensembles[key], weights_MK[batch], folds) for key, folds in dealt.items()}
        yield [[scores[m] for scores in by_set] for m in range(members)], [{} for _ in range(members)], parts


def component_token_losses(
    trial: Trial, component: TrialFolder, sets: Sequence[EvaluationSet], device: Device
) -> Mapping[str, TokenLosses]:
    """Losses of a component on every scored token, by key of the held-out set: kept in its folder, measured where they are not there yet.

    Args:
        trial: an ensembled one of the component, whose proxies have its shape.

    Raises:
        DamagedCheckpoint, FileNotFoundError: the component's weights cannot be read.
        ValueError: it diverged, or is of another shape.
    """
    from proxy_models.checkpoint import load_checkpoint
    from proxy_models.ensemble import load_token_losses, save_token_losses, token_losses
    from proxy_models.model import PackedProxy
    from proxy_models.products import fast_products

    spec = content_digest(["token losses", component.trial_id, trial.recipe["window"]])
    found = load_token_losses(component.token_losses_path, spec) or {}
    missing = [one for one in sets if one.spec.key not in found]
    if missing:
        model = PackedProxy(proxy_of(trial), [0], device, draw=False)
        model.load_member_state(0, load_checkpoint(component.weights_path).part("model"))
        with fast_products():
            found = {**found, **{one.spec.key: token_losses(model, one) for one in missing}}
        save_token_losses(component.token_losses_path, list(found.values()), spec)
    return found


def with_earlier(outcome: Outcome, before: Outcome | None) -> Outcome:
    """An outcome with what the same average was scored on before: the first value recorded stands."""
    if before is None:
        return outcome
    known = {m.evaluation_key for m in before.measurements}
    return replace(outcome, measurements=before.measurements + tuple(m for m in outcome.measurements if m.evaluation_key not in known))


def _outcome(trial: Trial, scores: Sequence[Score], merge: Mapping[str, JsonValue], flops: float, seconds: float) -> Outcome:
    from proxy_models.evaluate import with_curve_rows

    tokens = trained_tokens(trial)
    return Outcome(
        trial_id=trial.trial_id,
        realized=used_domains(trial),
        measurements=tuple(Measurement(one.key, tokens, one.loss_nats, one.bits_per_byte) for one in with_curve_rows(scores)),
        tokens=tokens,
        flops=flops,
        seconds=seconds,
        diagnostics={AVERAGED: dict(merge), "code_version": code_version()},
    )
