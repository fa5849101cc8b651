"""What stands in a corpus before anything is trained on it: sizes, shortest and longest documents, duplicates, overlap with targets.

Documents pass once, one by one; 16 bytes per document stay (a hash of its text, and its row), and the hashed runs of words of the targets.
Domains are independent, so a process can take each. The trade-off: duplicates are exact ones only, and everything is counted by hash.
"""

from __future__ import annotations

import hashlib
import heapq
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from mixopt.config import Experiment
from mixopt.corpus.config import DomainConfig, TargetConfig
from mixopt.corpus.documents import Document, Limits, Pair, Source, read_items
from mixopt.corpus.files import resolve_files
from mixopt.corpus.hub import HubDataset
from mixopt.corpus.ngrams import I64, U64
from mixopt.corpus.overlap import Overlap, OverlapCounter, TargetItem, TargetRuns
from mixopt.corpus.splits import Side, side_of_item

# Of the shortest and of the longest documents, so many are named.
EXTREMES = 3

Advance = Callable[[float], None]


@dataclass(frozen=True, order=True)
class Extreme:
    """A document that is among the shortest or longest of its side."""

    bytes: int
    source: str


class Sources:
    """Where documents stand (`file.jsonl:3`), by their number; keeps a row per document, and each file's name once."""

    def __init__(self) -> None:
        self._files: list[str] = []
        self._first = array("Q")  # number of the first document of each file
        self._rows = array("Q")  # 0: the file is one document

    def add(self, source: str) -> None:
        file, _, row = source.rpartition(":")
        if not (file and row.isdecimal()):
            file, row = source, "0"
        if not self._files or self._files[-1] != file:
            self._files.append(file)
            self._first.append(len(self._rows))
        self._rows.append(int(row))

    def __getitem__(self, number: int) -> str:
        file = self._files[int(np.searchsorted(np.frombuffer(self._first, dtype=np.uint64), number, side="right")) - 1]
        return f"{file}:{self._rows[number]}" if self._rows[number] else file


@dataclass(eq=False)
class SideScan:
    """One side of a domain, as it was read.

    Attributes:
        documents, bytes: of those that are not empty; a pair is one document, its completion after its prompt.
        scored_bytes: bytes of completions, and of documents that are not pairs.
        empty: documents without a character.
        shortest, longest: of those that are not empty, most extreme first.
        hashes: of each document that is not empty, in order.
        sources: of the same documents.
    """

    documents: int = 0
    empty: int = 0
    bytes: int = 0
    scored_bytes: int = 0
    shortest: list[Extreme] = field(default_factory=list)
    longest: list[Extreme] = field(default_factory=list)
    hashes: array[int] = field(default_factory=lambda: array("Q"))
    sources: Sources = field(default_factory=Sources)

    def add(self, item: Document | Pair) -> int:
        """Counts a document or pair; returns its bytes."""
        document = item.document() if isinstance(item, Pair) else item
        content = document.text.encode("utf-8", "surrogatepass")
        if not content:
            self.empty += 1
            return 0
        self.documents += 1
        self.bytes += len(content)
        self.scored_bytes += len(item.completion.encode("utf-8", "surrogatepass")) if isinstance(item, Pair) else len(content)
        self.hashes.append(int.from_bytes(hashlib.blake2b(content, digest_size=8, person=b"mixopt/twins").digest(), "big"))
        self.sources.add(document.source)
        extreme = Extreme(len(content), document.source)
        if len(self.shortest) < EXTREMES or extreme.bytes < self.shortest[-1].bytes:
            self.shortest = heapq.nsmallest(EXTREMES, [*self.shortest, extreme])
        if len(self.longest) < EXTREMES or extreme.bytes > self.longest[-1].bytes:
            self.longest = heapq.nlargest(EXTREMES, [*self.longest, extreme])
        return len(content)

    def distinct(self) -> tuple[U64, I64]:
        """Hashes of distinct documents, ascending, and the number of the first document of each."""
        return np.unique(np.frombuffer(self.hashes, dtype=np.uint64), return_index=True)

    def repeats(self) -> tuple[int, str]:
        """How many documents repeat an earlier one, and where one stands together with its twin; "" if none does."""
        hashes = np.frombuffer(self.hashes, dtype=np.uint64)
        first = self.distinct()[1]
        count = len(hashes) - len(first)
        if not count:
            return 0, ""
        repeated = np.ones(len(hashes), dtype=np.bool_)
        repeated[first] = False
        second = int(np.argmax(repeated))
        earlier = int(np.argmax(hashes == hashes[second]))
        return count, f"{self.sources[earlier]} and {self.sources[second]}"


@dataclass(frozen=True, eq=False)
class DomainScan:
    """Both sides of a domain, and what its training text has in common with targets; `complete`: all was read."""

    name: str
    train: SideScan
    valid: SideScan
    overlaps: tuple[Overlap, ...]
    complete: bool


@dataclass(frozen=True)
class Shared:
    """Texts that stand in two places, as "domain 'web'" and "held-out set of domain 'web'"; `example`: where one of them stands in each."""

    first: str
    second: str
    held_out: bool
    documents: int
    example: str


def scan_domain(domain: DomainConfig, runs: TargetRuns, limit_bytes: float, advance: Advance) -> DomainScan:
    """Reads a domain, at most about `limit_bytes` of each of its sets of files; `advance` is called with bytes of text that were read.

    Raises:
        DataError, ConfigError: as `read_documents`.
    """
    sides = {Side.TRAIN: SideScan(), Side.VALID: SideScan()}
    counter = OverlapCounter(runs)
    complete = True
    for side, items in _item_sets(domain):
        read = 0
        for item in items:
            if read >= limit_bytes:
                complete = False
                break
            actual = side or side_of_item(item, domain.held_out)
            size = sides[actual].add(item)
            if actual is Side.TRAIN:
                document = item.document() if isinstance(item, Pair) else item
                counter.add(document.text, document.source)
            read += size
            advance(size)
    return DomainScan(domain.name, sides[Side.TRAIN], sides[Side.VALID], tuple(counter.close(domain.name)), complete)


def read_targets(experiment: Experiment) -> dict[str, list[TargetItem]]:
    """The items of every target.

    Raises:
        DataError, ConfigError: as `read_documents`.
    """
    return {target.name: list(_items(target)) for target in experiment.targets}


def shared_documents(scans: list[DomainScan]) -> list[Shared]:
    """Texts that stand in the training text of two domains, or in training text and in a held-out set; most first."""
    parts = [(f"domain '{scan.name}'", False, scan.train) for scan in scans]
    parts += [(f"the held-out set of domain '{scan.name}'", True, scan.valid) for scan in scans]
    distinct = [part.distinct() for _, _, part in parts]
    every, counts = np.unique(np.concatenate([hashes for hashes, _ in distinct]), return_counts=True)
    several = every[counts > 1]  # usually next to none, so that comparing all pairs costs nothing
    kept = []
    for hashes, first in distinct:
        mask = np.isin(hashes, several, assume_unique=True)
        kept.append((hashes[mask], first[mask]))
    result = []
    for i, (first_name, first_held_out, first_part) in enumerate(parts):
        for j in range(i + 1, len(parts)):
            second_name, held_out, second_part = parts[j]
            common, a, b = np.intersect1d(kept[i][0], kept[j][0], assume_unique=True, return_indices=True)
            if first_held_out or not len(common):
                continue
            one = int(np.argmin(kept[i][1][a]))
            places = first_part.sources[int(kept[i][1][a[one]])], second_part.sources[int(kept[j][1][b[one]])]
            result.append(Shared(first_name, second_name, held_out, len(common), " and ".join(places)))
    return sorted(result, key=lambda shared: -shared.documents)


def _item_sets(domain: DomainConfig) -> Iterator[tuple[Side | None, Iterator[Document | Pair]]]:
    """(side, or None where the hash of a text tells; documents or pairs) of a domain's sets of files."""
    owner = f"domain '{domain.name}'"
    items = read_items(_source(domain, owner), domain.columns, owner, Limits(domain.max_documents, domain.max_bytes))
    yield None if domain.valid is None else Side.TRAIN, items
    if domain.valid is not None:
        owner = f"held-out set of {owner}"
        yield Side.VALID, read_items(resolve_files(domain.valid, owner), domain.columns, owner)


def _source(of: DomainConfig | TargetConfig, owner: str) -> Source:
    """Files, or a data set of the hub as it is now: `prepare` is what keeps its commit."""
    if of.hub is not None:
        return HubDataset(of.hub.dataset, of.hub.config, of.hub.split, of.hub.revision or "main")
    return resolve_files(of.path or (), owner)


def _items(target: TargetConfig) -> Iterator[TargetItem]:
    owner = f"target '{target.name}'"
    for item in read_items(_source(target, owner), target.columns, owner, Limits(target.max_documents)):
        yield TargetItem(item.text) if isinstance(item, Document) else TargetItem(item.prompt, item.completion)
