"""Which training documents repeat words of which target items: runs of 13 words in common, as language-model papers count contamination.

Thirteen words, lower case, is the usual length (GPT-3, arXiv 2005.14165, appendix C). A question of 8 to 12 words has no such run and counts
when it stands whole in a document. What every prompt of a target begins and ends with ("Question:", "Answer:") is taken off, for nobody's
web page holds it. The runs of the targets are held as sorted 64-bit hashes, documents pass in batches: memory grows with targets, not with
the corpus. The trade-off: shorter questions cannot be checked, which the result says, and a paraphrase is not found.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mixopt.corpus.ngrams import U64, Words, run_hashes, words_of

RUN_WORDS = 13
SHORTEST_QUESTION_WORDS = 8
# Of fewer prompts a common beginning may be chance.
TEMPLATE_ITEMS = 20
# Characters hashed at once: what is in use stays in the processor's cache (62 MB/s, against 34 MB/s with four times as many).
BATCH_CHARACTERS = 1 << 18
EXCERPT_CHARACTERS = 200

I64 = np.ndarray[tuple[int], np.dtype[np.int64]]
Bools = np.ndarray[tuple[int], np.dtype[np.bool_]]


@dataclass(frozen=True)
class TargetItem:
    """One item of a target: the question and all that follows it; for a text target the document, and nothing."""

    question: str
    rest: str = ""


@dataclass(frozen=True, eq=False)
class TargetRuns:
    """The runs of words of all targets, by hash.

    Attributes:
        targets: names; everything below counts them from 0.
        items, checkable: per target, how many items it has and how many are long enough to be looked for.
        runs: distinct hashes, ascending, shape (runs,).
        first_owner: entries `first_owner[r]` to `first_owner[r + 1]` of `owners` are the items that hold run r, shape (runs + 1,).
        owners: numbers of items, counted through all targets.
        first_item: number of the first item of each target, shape (targets + 1,).
        filters: length of runs in words, ascending -> whether any run of this length begins with these bits; keeps nearly all words of a
            corpus from being searched for among the runs.
    """

    targets: tuple[str, ...]
    items: tuple[int, ...]
    checkable: tuple[int, ...]
    runs: U64
    first_owner: I64
    owners: I64
    first_item: I64
    filters: dict[int, Bools]

    @classmethod
    def from_items(cls, targets: Mapping[str, Sequence[TargetItem]]) -> TargetRuns:
        """The runs of `targets`, by name."""
        hashes, owners, lengths, checkable = [], [], [], []
        first_item = np.cumsum([0, *(len(items) for items in targets.values())])
        for offset, items in zip(first_item[:-1].tolist(), targets.values(), strict=True):
            found, of_items, used = _runs_of_target(items)
            hashes.append(found)
            owners.append(of_items + offset)
            lengths.append(used)
            checkable.append(len(np.unique(of_items)))
        every, owner, length = _join(hashes, np.uint64), _join(owners, np.int64), _join(lengths, np.int64)
        order = np.lexsort((owner, every))
        runs, first = np.unique(every[order], return_index=True)
        return cls(
            targets=tuple(targets),
            items=tuple(map(len, targets.values())),
            checkable=tuple(checkable),
            runs=runs,
            first_owner=np.append(first, len(owner)),
            owners=owner[order],
            first_item=first_item,
            filters={words: _filter(every[length == words]) for words in np.unique(length).tolist()},
        )

    def find(self, words: Words) -> Iterator[tuple[int, I64, I64]]:
        """(length, first word, run) of the runs that stand in texts: for each length two arrays, in the order of the words."""
        if not len(self.runs):
            return
        for length, hashes in run_hashes(words.hashes, list(self.filters)):
            perhaps = self.filters[length]
            places = np.flatnonzero(perhaps[hashes >> _shift(perhaps)])
            places = places[words.texts[places] == words.texts[places + length - 1]]
            numbers = np.minimum(np.searchsorted(self.runs, hashes[places]), len(self.runs) - 1)
            hit = self.runs[numbers] == hashes[places]
            if hit.any():
                yield length, places[hit], numbers[hit]

    def owners_of(self, runs: I64) -> tuple[I64, I64]:
        """(index into `runs`, item) of every item that holds one of `runs`."""
        counts = self.first_owner[runs + 1] - self.first_owner[runs]
        index = np.repeat(np.arange(len(runs)), counts)
        within = np.arange(len(index)) - np.repeat(np.cumsum(counts) - counts, counts)
        return index, self.owners[self.first_owner[runs][index] + within]

    def target_of(self, items: I64) -> I64:
        return np.searchsorted(self.first_item, items, side="right") - 1


@dataclass(frozen=True)
class Example:
    """Where training text and a target meet first; `item` is counted from 1."""

    document: str
    item: int
    words: str


@dataclass(frozen=True)
class Overlap:
    """What the training text of a domain has in common with a target: how many documents, how many items, and one place."""

    domain: str
    target: str
    documents: int
    items: int
    example: Example


class OverlapCounter:
    """Counts overlaps of the documents of one domain with every target; `add` them one by one, then `close`."""

    def __init__(self, runs: TargetRuns) -> None:
        self._runs = runs
        self._seen = np.zeros(len(runs.runs), dtype=np.bool_)
        self._documents = np.zeros(len(runs.targets), dtype=np.int64)
        self._last = np.full(len(runs.targets), -1, dtype=np.int64)  # the document counted last, which may go on in the next batch
        self._examples: dict[int, Example] = {}
        self._batch: list[tuple[int, str, str]] = []  # number of the document, its source, a part of its text
        self._characters = self._added = 0

    def add(self, text: str, source: str) -> None:
        """Counts a document, whose place is named `source`."""
        for part in parts_of(text.lower()):
            self._batch.append((self._added, source, part))
            self._characters += len(part)
            if self._characters >= BATCH_CHARACTERS:
                self._scan()
        self._added += 1

    def close(self, domain: str) -> list[Overlap]:
        """The overlaps found, for targets that have any."""
        self._scan()
        runs = self._runs
        items = np.unique(runs.owners_of(np.flatnonzero(self._seen))[1])
        counts = np.bincount(runs.target_of(items), minlength=len(runs.targets))
        return [
            Overlap(domain, runs.targets[number], int(self._documents[number]), int(counts[number]), example)
            for number, example in sorted(self._examples.items())
        ]

    def _scan(self) -> None:
        if not self._batch:
            return
        runs, numbers = self._runs, np.array([number for number, _, _ in self._batch])
        words = words_of([part for _, _, part in self._batch])
        pairs = []
        for length, places, found in runs.find(words):
            self._seen[found] = True
            index, items = runs.owners_of(found)
            targets = runs.target_of(items)
            pairs.append(np.stack([numbers[words.texts[places[index]]], targets]))
            for target, first in zip(*(part.tolist() for part in np.unique(targets, return_index=True)), strict=True):
                if target not in self._examples:
                    place = int(places[index[first]])
                    source = self._batch[int(words.texts[place])][1]
                    item = int(items[first] - runs.first_item[target]) + 1
                    self._examples[target] = Example(source, item, _shown(words.excerpt(place, length)))
        if pairs:
            documents, targets = np.unique(np.concatenate(pairs, axis=1), axis=1)
            new = documents > self._last[targets]
            self._documents += np.bincount(targets[new], minlength=len(runs.targets))
            np.maximum.at(self._last, targets, documents)
        self._batch, self._characters = [], 0


def _shown(text: str) -> str:
    """On one line, and free of what no terminal and no UTF-8 file takes (halves of surrogate pairs)."""
    return " ".join(text.split())[:EXCERPT_CHARACTERS].encode("utf-8", "replace").decode("utf-8")


def parts_of(lowered: str, characters: int = BATCH_CHARACTERS) -> Iterator[str]:
    """A long text in parts that overlap by enough words for every run to lie whole in one of them; no word is cut in two."""
    start = 0
    while len(lowered) - start > 2 * characters:
        border = _word_end(lowered, start + characters)
        end = border
        for _ in range(RUN_WORDS):
            end = _word_end(lowered, _word_begin(lowered, end))
        yield lowered[start:end]
        start = border
    yield lowered[start:]


def _word_begin(text: str, place: int) -> int:
    """Where the next word begins at or after `place`."""
    match = _LETTER.search(text, place)
    return match.start() if match else len(text)


def _word_end(text: str, place: int) -> int:
    """Where the letters that stand at `place` end; `place` itself where there is none."""
    match = _NO_LETTER.search(text, place)
    return match.start() if match else len(text)


_LETTER, _NO_LETTER = re.compile(r"\w"), re.compile(r"\W")


def _runs_of_target(items: Sequence[TargetItem]) -> tuple[U64, I64, I64]:
    """Hash, item and length of every run."""
    questions = _per_text([item.question for item in items])
    wholes = _per_text([item.question + item.rest for item in items])
    before, after = _template(questions)
    hashes, owners, lengths = [], [], []
    for number, (question, whole) in enumerate(zip(questions, wholes, strict=True)):
        bare = question[before : len(question) - after]
        whole = whole[before:]
        short = [(text, len(text)) for text in (bare, whole) if SHORTEST_QUESTION_WORDS <= len(text) < RUN_WORDS]
        for text, length in [*short, (whole, RUN_WORDS)]:
            for _, found in run_hashes(text, [length]):
                hashes.append(found)
                owners.append(np.full(len(found), number))
                lengths.append(np.full(len(found), length))
    return _join(hashes, np.uint64), _join(owners, np.int64), _join(lengths, np.int64)


def _per_text(texts: Sequence[str]) -> list[U64]:
    """Hashes of the words of each text."""
    result: list[U64] = []
    for batch in _batches(texts):
        words = words_of([text.lower() for text in batch])
        result += np.split(words.hashes, np.searchsorted(words.texts, np.arange(1, len(batch))))
    return result


def _batches(texts: Sequence[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _template(questions: Sequence[U64]) -> tuple[int, int]:
    """How many words all questions begin and end with alike; both 0 when there are too few to tell."""
    if len(questions) < TEMPLATE_ITEMS:
        return 0, 0
    before = _common(questions)
    return before, _common([question[before:][::-1] for question in questions])


def _common(sequences: Sequence[U64]) -> int:
    first, common = sequences[0], len(sequences[0])
    for other in sequences:
        common = min(common, len(other))
        different = np.flatnonzero(first[:common] != other[:common])
        common = int(different[0]) if len(different) else common
    return common


def _filter(runs: U64) -> Bools:
    """A table of bits, eight times as large as there are runs: small enough for the cache, large enough to stop seven of eight words."""
    bits = min(max(3 + len(runs).bit_length(), 10), 27)
    perhaps = np.zeros(1 << bits, dtype=np.bool_)
    perhaps[runs >> _shift(perhaps)] = True
    return perhaps


def _shift(table: Bools) -> np.uint64:
    return np.uint64(64 - (len(table).bit_length() - 1))


def _join(arrays: Iterable[np.ndarray[tuple[int], np.dtype[np.generic]]], kind: type[np.generic]) -> np.ndarray:
    return np.concatenate([np.zeros(0, dtype=kind), *arrays])
