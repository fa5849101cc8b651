"""The held-out split: which side a document is on follows from the hash of its text.

So the split does not depend on the order of files, a document that occurs twice never ends up on both sides, and adding documents moves none. Of pairs the
prompt decides, so that no prompt is on both sides, with whatever completions; where there is none, the completion.
The trade-off: the share holds in expectation only, so a small domain may get an empty side, which is an error with its remedy.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Iterable, Iterator
from typing import TypeVar

from mixopt.corpus.documents import Document, Pair
from mixopt.errors import DataError

Item = TypeVar("Item", Document, Pair, Document | Pair)


class Side(enum.StrEnum):
    TRAIN = "train"
    VALID = "valid"


def side_of(text: str, held_out: float) -> Side:
    """The side of a text when the share `held_out` is held out."""
    digest = hashlib.blake2b(text.encode("utf-8"), digest_size=8, person=b"mixopt/split").digest()
    return Side.VALID if int.from_bytes(digest, "big") < held_out * 2.0**64 else Side.TRAIN


def side_of_item(item: Document | Pair, held_out: float) -> Side:
    """The side of a document or pair."""
    return side_of(item.text if isinstance(item, Document) else item.prompt or item.completion, held_out)


def take_side(documents: Iterable[Item], held_out: float, side: Side, owner: str) -> Iterator[Item]:
    """The documents or pairs on one side, in order.

    Raises:
        DataError: at the end, when there are documents and none is on this side.
    """
    seen = taken = 0
    for document in documents:
        seen += 1
        if side_of_item(document, held_out) is side:
            taken += 1
            yield document
    if seen and not taken:
        missing = "training" if side is Side.TRAIN else "held-out"
        raise DataError(
            f"Splitting the {seen} documents of {owner} by hash with held_out {held_out:g} leaves no {missing} document.",
            "Name held-out documents under `valid`, cut long documents into several, or change `held_out`.",
        )
