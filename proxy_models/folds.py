"""Losses on parts of a held-out set, so that differences between models come with the error of the text they were measured on.

The rows at the end of training are dealt into folds in their fixed order, all rows of a document into the fold of its first: rows of one
document err alike, and folds that shared it would agree by more than they know. Only where a set has fewer documents than folds are rows dealt
one by one. All models see the same folds, so that differences are paired, and a jackknife over folds gives their error. The trade-off: with
few folds that error is itself roughly known (ten: to about a quarter); more folds cost nothing but hold fewer documents each.

Legend: K pack members, M mixtures, F folds, R rows of a set, T its scored tokens in the order of `scored_losses`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from proxy_models.ensemble import Ensemble
from proxy_models.evaluate import EvaluationSet, Int64Array, Score, scored_losses
from proxy_models.model import PackedProxy

FloatArray = NDArray[np.float64]
FOLDS = 10
"""Default number: their spread is then known to about a quarter, and a set of 100 documents still gives ten to each."""


@dataclass(frozen=True)
class Folds:
    """How the rows at the end of training are dealt. Build it with `Folds.of`.

    Attributes:
        key: of the set.
        row_R: fold of each row, in the fixed order of rows; token_T: of each scored token.
        tokens_F, text_bytes_F: scored tokens, and the bytes that they stand for.
    """

    key: str
    row_R: Int64Array
    token_T: Int64Array
    tokens_F: Int64Array
    text_bytes_F: FloatArray

    @classmethod
    def of(cls, evaluation: EvaluationSet, folds: int = FOLDS) -> Folds:
        """Deals the rows of a set.

        Raises:
            ValueError: fewer than two folds, or rows than folds, or a fold would hold no bytes of text.
        """
        rows = evaluation.rows("end")
        if folds < 2 or folds > len(rows):
            raise ValueError(
                f"{len(rows)} rows of '{evaluation.spec.key}' cannot be dealt into {folds} folds; folds must be 2 to {len(rows)}."
            )
        _, first_R, inverse_R = np.unique(rows.document, return_index=True, return_inverse=True)
        by_document = len(first_R) >= folds
        # Documents are numbered by where their first row comes in the fixed order.
        row_R = (np.argsort(np.argsort(first_R))[inverse_R] if by_document else np.arange(len(rows))) % folds
        order = evaluation.batch_order("end")
        token_T = np.repeat(row_R[order], (rows.last - rows.scored)[order])
        text_bytes_F = np.asarray(np.bincount(row_R, weights=rows.text_bytes, minlength=folds), dtype=np.float64)
        if not (text_bytes_F > 0).all():
            raise ValueError(f"A fold of '{evaluation.spec.key}' holds no bytes of text; ask for fewer than {folds} folds.")
        return cls(evaluation.spec.key, row_R, token_T, np.bincount(token_T, minlength=folds), text_bytes_F)

    def __len__(self) -> int:
        return len(self.tokens_F)


@dataclass(frozen=True)
class FoldLosses:
    """Sums over the folds of one set.

    Attributes:
        key: of the set.
        nats_KF: of every member, or mixture; not finite where it diverged.
        tokens_F, text_bytes_F: as in `Folds`.
    """

    key: str
    nats_KF: FloatArray
    tokens_F: Int64Array
    text_bytes_F: FloatArray

    def scores(self) -> list[Score]:
        """As `evaluate` gives them, within rounding, without what routers did."""
        tokens, text_bytes = int(self.tokens_F.sum()), float(self.text_bytes_F.sum())
        totals = self.nats_KF.sum(axis=1).tolist()
        return [Score(self.key, nats / tokens, nats / math.log(2) / text_bytes) for nats in totals]

    def bits(self) -> FloatArray:
        """Bits of every fold, shape (K, F); over `text_bytes_F` they are its bits per byte."""
        return np.asarray(self.nats_KF / math.log(2))


def fold_losses(model: PackedProxy, evaluation: EvaluationSet, folds: Folds) -> FoldLosses:
    """Losses of every member of a pack on every fold, in one pass that costs what `evaluate` does.

    As there, products are computed as the caller has it (`fast_products`).

    Raises:
        ValueError: the folds are of another set.
    """
    _check(folds, evaluation.spec.key)
    sums = FoldSums(folds, model.members)
    for losses_KT in scored_losses(model, evaluation, "end"):
        sums.add(losses_KT)
    return sums.losses()


class FoldSums:
    """Adds losses up by fold, batch after batch in the order of `scored_losses`, for who has them in passing, as `evaluate` tells its listener."""

    def __init__(self, folds: Folds, members: int) -> None:
        self._folds, self._nats_KF, self._seen = folds, np.zeros((members, len(folds))), 0

    def add(self, losses_KT: FloatArray) -> None:
        """Losses of the next tokens, of every member."""
        fold_T = self._folds.token_T[self._seen : self._seen + losses_KT.shape[1]]
        self._seen += losses_KT.shape[1]
        for member, losses_T in enumerate(losses_KT):
            self._nats_KF[member] += np.bincount(fold_T, weights=losses_T, minlength=len(self._folds))

    def losses(self) -> FoldLosses:
        """What has been added up."""
        return FoldLosses(self._folds.key, self._nats_KF, self._folds.tokens_F, self._folds.text_bytes_F)


def ensemble_fold_losses(ensemble: Ensemble, weights_MK: ArrayLike, folds: Folds) -> FoldLosses:
    """The same of ensembles, a row per mixture, from what is kept of the components.

    Raises:
        ValueError: a row is not in the simplex, the shape is not (M, K), or the folds are of another set.
    """
    _check(folds, ensemble.key)
    return FoldLosses(folds.key, ensemble.fold_nats(weights_MK, folds.token_T, len(folds)), folds.tokens_F, folds.text_bytes_F)


def _check(folds: Folds, key: str) -> None:
    if folds.key != key:
        raise ValueError(f"The folds are of '{folds.key}' and the losses of '{key}'; deal the rows of the same set.")
