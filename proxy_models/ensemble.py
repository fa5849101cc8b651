"""Mixtures of data experts: a mixture's proxy is the ensemble of one model per domain, weighted token by token (arXiv 2502.15950).

P(x_t | x_<t, w) = sum_k w_k P_k(x_t | x_<t), so all that a mixture's loss needs is every component's loss of every scored token. They are had once and kept;
any mixture then costs K x T multiplications on a CPU, and its loss is convex in the weights. The main trade-off: no component has learned from
another's domain, so the loss of an ensemble ranks mixtures and says little of their level; a regression on runs that were really trained corrects it.

Legend: K components, M mixtures, T scored tokens of a held-out set.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from proxy_models.checkpoint import Checkpoint, load_matching, save_checkpoints
from proxy_models.evaluate import EvaluationSet, Score, scored_losses
from proxy_models.merging.merge import simplex_rows
from proxy_models.model import PackedProxy

FloatArray = NDArray[np.float64]
LARGEST_PRODUCT = 2**23
"""Mixtures times tokens whose probabilities are held at once: 64 MiB."""


@dataclass(frozen=True)
class TokenLosses:
    """Losses of all scored tokens of one held-out set, in the fixed order of its rows.

    Attributes:
        key: of the set.
        losses_KT: nats; one row per component.
        text_bytes: that the scored tokens stand for.

    Raises:
        ValueError: the losses are no table, or one is not finite, as those of a component that diverged.
    """

    key: str
    losses_KT: NDArray[np.float32]
    text_bytes: float

    def __post_init__(self) -> None:
        if self.losses_KT.ndim != 2 or not self.losses_KT.size:
            raise ValueError(f"Token losses of '{self.key}' have shape {self.losses_KT.shape}; it must be (components, tokens), neither 0.")
        wrong = np.flatnonzero(~np.isfinite(self.losses_KT).all(axis=1))
        if len(wrong):
            raise ValueError(f"Token losses of '{self.key}' are not finite for component {wrong[0]}; leave that component out.")
        if not self.text_bytes > 0:
            raise ValueError(
                f"The tokens of '{self.key}' stand for {self.text_bytes} bytes of text; bits per byte have no meaning for them."
            )


def token_losses(model: PackedProxy, evaluation: EvaluationSet) -> TokenLosses:
    """What each member of a pack, as a component, loses on every token that is scored at the end of training."""
    parts = [losses_KT.astype(np.float32) for losses_KT in scored_losses(model, evaluation, "end")]
    return TokenLosses(evaluation.spec.key, np.concatenate(parts, axis=1), float(evaluation.rows("end").text_bytes.sum()))


def side_by_side(parts: Sequence[TokenLosses]) -> TokenLosses:
    """One set's losses of components that were scored apart, in this order.

    Raises:
        ValueError: there are none, or they are not of the same tokens.
    """
    if not parts:
        raise ValueError("An ensemble needs at least one component; parts is empty.")
    first = parts[0]
    for part in parts[1:]:
        if (part.key, part.losses_KT.shape[1], part.text_bytes) != (first.key, first.losses_KT.shape[1], first.text_bytes):
            raise ValueError(
                f"Token losses of '{first.key}' ({first.losses_KT.shape[1]} tokens) and of '{part.key}' ({part.losses_KT.shape[1]} tokens) are not "
                "of the same tokens; score all components on one held-out set."
            )
    return TokenLosses(first.key, np.concatenate([part.losses_KT for part in parts]), first.text_bytes)


def save_token_losses(path: Path, sets: Sequence[TokenLosses], spec_hash: str) -> None:
    """Writes them as safetensors, atomically.

    Args:
        spec_hash: of what they were made from: components and their order.
    """
    tensors = {losses.key: torch.from_numpy(losses.losses_KT) for losses in sets}
    facts = {"spec": spec_hash, "text_bytes": {losses.key: losses.text_bytes for losses in sets}}
    save_checkpoints({path: Checkpoint(tensors, facts)})


def load_token_losses(path: Path, spec_hash: str) -> dict[str, TokenLosses] | None:
    """Set by key; None where the file is missing, damaged, or of something else: it is then made anew."""
    found = load_matching(path, spec_hash)
    if found is None:
        return None
    text_bytes: Mapping[str, float] = found.facts["text_bytes"]
    return {key: TokenLosses(key, tensor.numpy(), text_bytes[key]) for key, tensor in found.tensors.items()}


class Ensemble:
    """The ensembles of all mixtures of K components on one held-out set.

    Probabilities are kept in float64, relative to the best component of each token, so that none is lost to rounding.
    """

    def __init__(self, losses: TokenLosses) -> None:
        self._losses = losses
        self._least_T = losses.losses_KT.min(axis=0).astype(np.float64)
        self._shares_KT = np.exp(self._least_T - losses.losses_KT)

    @property
    def key(self) -> str:
        """Of the held-out set."""
        return self._losses.key

    def nats(self, weights_MK: ArrayLike) -> FloatArray:
        """Mean loss per scored token of every mixture, nats, shape (M,): -mean_t log sum_k w_k P_k(x_t).

        Raises:
            ValueError: a row is not in the simplex, or the shape is not (M, K).
        """
        weights = self._checked(weights_MK)
        total_M = np.zeros(len(weights))
        for tokens in self._blocks(len(weights)):
            total_M += (self._least_T[tokens] - np.log(weights @ self._shares_KT[:, tokens])).sum(axis=1)
        return np.asarray(total_M / self._losses.losses_KT.shape[1])

    def fold_nats(self, weights_MK: ArrayLike, fold_T: NDArray[np.int64], folds: int) -> FloatArray:
        """Losses in nats, summed over the tokens of each fold, shape (M, F).

        Args:
            fold_T: fold of each token, in the order of the losses.

        Raises:
            ValueError: as `nats`, or there is not one fold for each token.
        """
        weights = self._checked(weights_MK)
        if fold_T.shape != self._least_T.shape:
            raise ValueError(f"{len(fold_T)} folds were given for {len(self._least_T)} tokens; each token needs one.")
        nats_MF = np.zeros((len(weights), folds))
        for tokens in self._blocks(len(weights)):
            losses_MT = self._least_T[tokens] - np.log(weights @ self._shares_KT[:, tokens])
            for mixture, losses_T in enumerate(losses_MT):
                nats_MF[mixture] += np.bincount(fold_T[tokens], weights=losses_T, minlength=folds)
        return nats_MF

    def slopes(self, weights_MK: ArrayLike) -> FloatArray:
        """Derivatives of `nats` by the weights, shape (M, K): -mean_t P_k(x_t) / sum_l w_l P_l(x_t). Raises as `nats`."""
        weights = self._checked(weights_MK)
        slopes_MK = np.zeros_like(weights)
        for tokens in self._blocks(len(weights)):
            shares_KT = self._shares_KT[:, tokens]
            slopes_MK -= (1 / (weights @ shares_KT)) @ shares_KT.T
        return np.asarray(slopes_MK / self._losses.losses_KT.shape[1])

    def scores(self, weights_MK: ArrayLike) -> list[Score]:
        """As `evaluate` scores a model, one per mixture. Raises as `nats`."""
        tokens, text_bytes = self._losses.losses_KT.shape[1], self._losses.text_bytes
        found = self.nats(weights_MK).tolist()
        return [Score(self._losses.key, nats, nats * tokens / math.log(2) / text_bytes) for nats in found]

    def _checked(self, weights_MK: ArrayLike) -> FloatArray:
        return simplex_rows(weights_MK, [str(number) for number in range(len(self._losses.losses_KT))])

    def _blocks(self, mixtures: int) -> list[slice]:
        size, tokens = max(1, LARGEST_PRODUCT // mixtures), len(self._least_T)
        return [slice(first, first + size) for first in range(0, tokens, size)]
