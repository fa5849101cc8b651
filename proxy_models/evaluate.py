"""Losses on held-out text and on completions, in nats per token and bits per byte, for all members of a pack at once.

What is scored comes in rows, each from one document: no token is ever scored with another document in sight. A row begins with one token
of context: the one before it, or for the start of a document the end token, which is what precedes a document in training. So every token
of a document is scored, its bits cover exactly its bytes, and bits per byte compare across tokenizers.

- text: a document is cut into rows of at most T tokens. A row's share of the document's bytes is its share of the document's tokens, the
  end token, which stands for no text, not counted.
- completion: one row per document. A prompt that does not fit is cut on the left, the completion never; only its tokens are scored.

Rows are taken in an order fixed by the content of the set alone, so that a smaller subset is part of a larger one and all members and
trials share it. Rows of a batch are padded to the longest; in a causal model what follows a token cannot change its loss. Trade-off: a row that
begins within a document sees nothing before it but one token, which overstates the loss of long documents equally for every member.

Legend: K pack members, B rows of a batch, S = T + 1 tokens of a row with its context, R rows of a set.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from proxy_models.balancing import Routed, RouterWatch
from proxy_models.checkpoint import load_checkpoint
from proxy_models.config import ProxyConfig
from proxy_models.hashed_order import hashed_order
from proxy_models.model import PackedProxy
from proxy_models.products import fast_products
from proxy_models.token_store import TokenStore
from proxy_models.windows import completion_lengths

# Padded tokens per member and batch. Not a function of K, so that a member's losses do not depend on the size of its pack.
BATCH_TOKENS = 4096
# Padding that a batch may hold, beyond which its shorter rows make a batch of their own: about what a batch costs beside its tokens.
PADDING_TOKENS = 64
# Rows times tokens squared that are computed at least, by rows of nothing, so only where rows have less than 12 tokens. torch sends products of up to
# 4,096 multiplications, all members counted, to another library, whose last digits differ; with a width of 64 and this none is so small, and a
# member's losses do not depend on K.
LEAST_SQUARES = 128

Int64Array = NDArray[np.int64]
Which = Literal["curve", "end"]


@dataclass(frozen=True)
class EvaluationSpec:
    """A held-out set.

    Attributes:
        key: names its measurements.
        path: its token file.
        kind: "text" or "completion".
        max_tokens: at the end of training, the first rows of the fixed order with at most so many tokens (prompts counted, at least one row);
            None: all.
        curve_tokens: the same for points before the end; None: as max_tokens.
        curve_key: names the end's loss on the rows of the points before it, so that a curve can be read on one set of rows; None: not wanted.
    """

    key: str
    path: Path
    kind: Literal["text", "completion"]
    max_tokens: int | None
    curve_tokens: int | None = None
    curve_key: str | None = None


@dataclass(frozen=True)
class Score:
    """Loss on one set: mean nats per scored token, and bits of the scored tokens over the bytes of their text.

    Attributes:
        on_curve: at the end, the same on the rows of the points before it, under their key; None where that is not wanted.
        routed: what the routers did with the scored tokens; None for points before the end, and where there are no routers.
    """

    key: str
    loss_nats: float
    bits_per_byte: float
    on_curve: Score | None = None
    routed: Routed | None = None


def with_curve_rows(scores: Sequence[Score]) -> list[Score]:
    """These scores, each followed by the one on the curve's rows where there is one: all that is recorded."""
    return [one for score in scores for one in (score, score.on_curve) if one is not None]


@dataclass(frozen=True)
class Rows:
    """What is fed and scored, one entry per row; positions count from the start of the row's document.

    Attributes:
        document: index of the document.
        first, last: tokens first to last - 1 are predicted; the context is token first - 1, or the end token.
        scored: of these, tokens from here on count.
        text_bytes: bytes that the scored tokens stand for.
    """

    document: Int64Array
    first: Int64Array
    scored: Int64Array
    last: Int64Array
    text_bytes: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.document)

    @property
    def lengths(self) -> Int64Array:
        """Predicted tokens of each row, scored or not."""
        return self.last - self.first

    def take(self, index: Int64Array) -> Rows:
        return Rows(self.document[index], self.first[index], self.scored[index], self.last[index], self.text_bytes[index])


class EvaluationSet:
    """A held-out set laid out in rows for one window.

    Raises:
        ValueError: it is empty, stands for no bytes, is of an unknown kind, or a completion is longer than the window.
        DamagedTokenFile, FileNotFoundError: its token file cannot be read.
    """

    def __init__(self, spec: EvaluationSpec, window: int) -> None:
        self.spec = spec
        self._store = TokenStore.open(spec.path)
        if not self._store.info.documents:
            raise ValueError(f"Evaluation set {spec.path} holds no documents.")
        if spec.kind == "text":
            rows = _text_rows(self._store, window)
        elif spec.kind == "completion":
            rows = _completion_rows(self._store, window)
        else:
            raise ValueError(f"Evaluation kind is '{spec.kind}'; it is 'text' or 'completion'.")
        self._rows = rows.take(hashed_order(len(rows), "evaluation", self._store.info.content_hash))
        self.vocab_size = self._store.info.vocab_size
        if not min(self.rows("curve").text_bytes.sum(), self.rows("end").text_bytes.sum()) > 0:
            raise ValueError(f"Evaluation set {spec.path} scores no bytes of text; bits per byte have no meaning for it.")

    def rows(self, which: Which) -> Rows:
        """The rows scored at the end of training or at points before it, in the fixed order."""
        limit = self.spec.max_tokens
        if which == "curve" and self.spec.curve_tokens is not None:
            limit = self.spec.curve_tokens
        if limit is None:
            return self._rows
        fitting = int(np.searchsorted(np.cumsum(self._rows.lengths), limit, side="right"))
        return self._rows.take(np.arange(max(1, fitting)))

    def batch_order(self, which: Which) -> Int64Array:
        """Which row of `rows` comes when in `batches`."""
        return _longest_first(self.rows(which))

    def on_curve(self, which: Which) -> NDArray[np.bool_]:
        """Which rows are scored at points before the end too, in the order of `batches`."""
        return np.asarray(self.batch_order(which) < len(self.rows("curve")))

    def batches(self, which: Which) -> Iterator[tuple[Int64Array, NDArray[np.bool_]]]:
        """Padded tokens (B, S) and which predicted tokens count (B, S - 1), longest rows first."""
        rows = self.rows(which).take(self.batch_order(which))
        lengths = rows.lengths
        start = 0
        while start < len(rows):
            longest = int(lengths[start])
            padding = np.cumsum(longest - lengths[start : start + max(1, BATCH_TOKENS // longest)])
            stop = start + int(np.searchsorted(padding, PADDING_TOKENS, side="right"))
            yield self._batch(rows.take(np.arange(start, stop)), longest)
            start = stop

    def _batch(self, rows: Rows, longest: int) -> tuple[Int64Array, NDArray[np.bool_]]:
        tokens_BS = np.zeros((len(rows), longest + 1), dtype=np.int64)
        counts_BT = np.zeros((len(rows), longest), dtype=np.bool_)
        ends = self._store.document_ends
        for b in range(len(rows)):
            document, first, scored, last = (int(array[b]) for array in (rows.document, rows.first, rows.scored, rows.last))
            end = int(ends[document])
            start = int(ends[document - 1]) if document else 0
            tokens_BS[b, 0] = self._store.tokens[end - 1 if first == 0 else start + first - 1]
            tokens_BS[b, 1 : last - first + 1] = self._store.tokens[start + first : start + last]
            counts_BT[b, scored - first : last - first] = True
        return tokens_BS, counts_BT


Listener = Callable[["EvaluationSet", NDArray[np.float64]], None]
"""Told of the losses of every batch of a set, as `scored_losses` gives them."""


def evaluate(model: PackedProxy, evaluations: Sequence[EvaluationSet], which: Which, listener: Listener | None = None) -> list[list[Score]]:
    """Scores every member on every set; one list per member, in the order of `evaluations`. Losses of a diverged member are not finite."""
    per_set = []
    for evaluation in evaluations:
        if which == "end" and model.moe_layers:
            with RouterWatch(model) as watch:
                scores = _evaluate_set(model, evaluation, which, watch, listener)
            scores = [replace(score, routed=routed) for score, routed in zip(scores, watch.routed(), strict=True)]
        else:
            scores = _evaluate_set(model, evaluation, which, None, listener)
        per_set.append(scores)
    return [[scores[k] for scores in per_set] for k in range(model.members)]


@fast_products()
def score_weights(
    config: ProxyConfig, weights_path: Path, evaluations: Sequence[EvaluationSpec], window: int, device: torch.device | str = "cpu"
) -> list[Score]:
    """Scores a trial that was trained earlier from its `weights.safetensors`, on the subsets of the end of training and, within them, the curve's.

    Raises:
        FileNotFoundError, DamagedCheckpoint, DamagedTokenFile: a file cannot be read.
        ValueError: the weights are of another configuration, or a set cannot be scored (`EvaluationSet`).
    """
    model = PackedProxy(config, [0], device)
    model.load_member_state(0, load_checkpoint(weights_path).part("model"))
    return evaluate(model, [EvaluationSet(spec, window) for spec in evaluations], "end")[0]


def scored_losses(model: PackedProxy, evaluation: EvaluationSet, which: Which) -> Iterator[NDArray[np.float64]]:
    """Losses in nats of every member's scored tokens, (K, tokens of a batch), in the order of `EvaluationSet.batches`."""
    for losses_KBT, counts_BT in _batch_losses(model, evaluation, which, None):
        yield losses_KBT[:, counts_BT]


def _batch_losses(
    model: PackedProxy, evaluation: EvaluationSet, which: Which, watch: RouterWatch | None
) -> Iterator[tuple[NDArray[np.float64], NDArray[np.bool_]]]:
    """Losses (K, B, T) of each batch, padding included, and which of its tokens count (B, T)."""
    device = model.embedding.device
    for tokens_BS, counts_BT in evaluation.batches(which):
        rows, longest = counts_BT.shape
        enough_BS = np.pad(tokens_BS, ((0, max(0, -(-LEAST_SQUARES // longest**2) - rows)), (0, 0)))
        tokens_KBS = torch.from_numpy(enough_BS).to(device).expand(model.members, -1, -1)
        if watch is not None:
            watch.expect(torch.from_numpy(np.pad(counts_BT, ((0, len(enough_BS) - rows), (0, 0)))))
        yield model.token_losses(tokens_KBS).double().cpu().numpy()[:, :rows], counts_BT


def _evaluate_set(
    model: PackedProxy, evaluation: EvaluationSet, which: Which, watch: RouterWatch | None, listener: Listener | None
) -> list[Score]:
    curve_key = evaluation.spec.curve_key if which == "end" else None
    on_curve_R = evaluation.on_curve(which)
    total, on_curve = _Total(model.members), _Total(model.members)
    for losses_KBT, counts_BT in _batch_losses(model, evaluation, which, watch):
        total.add(losses_KBT, counts_BT)
        if listener is not None:
            listener(evaluation, losses_KBT[:, counts_BT])
        if curve_key is not None:
            on_curve_B, on_curve_R = on_curve_R[: len(counts_BT)], on_curve_R[len(counts_BT) :]
            on_curve.add(losses_KBT, counts_BT & on_curve_B[:, None])
    scores = total.scores(evaluation.spec.key, evaluation.rows(which))
    if curve_key is None:
        return scores
    pairs = zip(scores, on_curve.scores(curve_key, evaluation.rows("curve")), strict=True)
    return [replace(score, on_curve=part) for score, part in pairs]


class _Total:
    """Sums of losses of every member over chosen tokens."""

    def __init__(self, members: int) -> None:
        self._nats_K = np.zeros(members)
        self._tokens = 0

    def add(self, losses_KBT: NDArray[np.float64], counts_BT: NDArray[np.bool_]) -> None:
        # Chosen before summed: padding is left out rather than multiplied by zero, which would keep a NaN.
        self._nats_K += losses_KBT[:, counts_BT].sum(axis=1)
        self._tokens += int(counts_BT.sum())

    def scores(self, key: str, rows: Rows) -> list[Score]:
        text_bytes = float(rows.text_bytes.sum())
        return [Score(key, float(nats) / self._tokens, float(nats) / math.log(2) / text_bytes) for nats in self._nats_K.tolist()]


def _longest_first(rows: Rows) -> Int64Array:
    """The order in which rows are batched."""
    return np.argsort(-rows.lengths, kind="stable")


def _document_lengths(store: TokenStore) -> Int64Array:
    return np.diff(store.document_ends, prepend=0)


def _text_rows(store: TokenStore, window: int) -> Rows:
    if store.scored_from.any():
        raise ValueError(f"{store.path} holds prompts and completions, but was given as plain text.")
    lengths = _document_lengths(store)
    rows_of_document = -(-lengths // window)
    document = np.repeat(np.arange(len(lengths)), rows_of_document)
    first_row = np.cumsum(rows_of_document) - rows_of_document
    first = (np.arange(len(document)) - first_row[document]) * window
    last = np.minimum(first + window, lengths[document])
    text_tokens = lengths[document] - 1
    # A document of nothing but its end token stands for its (presumably zero) bytes in one row.
    share = np.where(text_tokens > 0, (np.minimum(last, text_tokens) - first) / np.maximum(text_tokens, 1), 1.0)
    return Rows(document, first, first, last, np.asarray(store.document_bytes[document] * share, dtype=np.float64))


def _completion_rows(store: TokenStore, window: int) -> Rows:
    completion_lengths(store, window)  # raises
    lengths = _document_lengths(store)
    first = np.maximum(lengths - window, 0)
    scored = np.asarray(store.scored_from, dtype=np.int64)
    return Rows(np.arange(len(lengths)), first, scored, lengths, store.document_bytes.astype(np.float64))
