"""Builds the embedded corpus: eight domains of text, three of prompt/completion pairs and two targets as Parquet files, and the experiment file that
searches over the text.

The same environment gives the same files. Exact duplicates are dropped across all domains, and the experiment file is written last, so that
its presence means the corpus is whole. The split goes by the hash of the file that a document was cut from: the pieces of one file resemble
each other so much that held-out pieces of a file trained on would measure memory.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import chain, islice
from pathlib import Path

from mixopt.corpus.demo.installation import Installation
from mixopt.corpus.demo.pairs import PAIR_SOURCES, collect_pairs
from mixopt.corpus.demo.sources import DOMAIN_SOURCES, DomainSource, Text, pieces
from mixopt.corpus.demo.targets import TARGET_SOURCES, Example, TargetSource, choose, without_overlap
from mixopt.corpus.splits import Side, side_of
from mixopt.errors import DataError
from mixopt.progress import Reporter, Silent

EXPERIMENT_NAME = "experiment.yaml"
# Enough for proxies that see each domain as often as the target run would, little enough to tokenize in seconds.
DOMAIN_BYTES = 2_000_000
LEAST_TRAIN_BYTES = 1_000_000
HELD_OUT = 0.05
TARGET_EXAMPLES = 300
LEAST_TARGET_EXAMPLES = 100
TARGET_CANDIDATES = 900
# Fine-tuning sets are small.
PAIRS_BYTES = 600_000
LEAST_PAIRS_BYTES = 200_000


@dataclass(frozen=True)
class Part:
    """A domain or target of the corpus.

    Attributes:
        documents, bytes: of the training text or pairs, or of a target's examples.
        held_out_documents: of a domain; 0 for targets.
        taken_from: where its text comes from, in words.
    """

    name: str
    documents: int
    bytes: int
    held_out_documents: int
    taken_from: str


@dataclass(frozen=True)
class DemoCorpus:
    """What was built; `experiment` is the file to search with."""

    experiment: Path
    parts: tuple[Part, ...]


def build_demo_corpus(out: Path, reporter: Reporter | None = None) -> DemoCorpus:
    """Writes `train/`, `valid/`, `targets/`, `pairs/` and `experiment.yaml` under `out`.

    Raises:
        DataError: mixopt is not installed, or this environment holds less than 1 MB of text for a domain, or 200 KB of pairs.
    """
    reporter = reporter or Silent()
    installation = Installation()
    seen: set[bytes] = set()
    training: list[str] = []
    parts = []
    with reporter.stage("Building the embedded corpus", DOMAIN_BYTES * len(DOMAIN_SOURCES), "bytes") as stage:
        for source in DOMAIN_SOURCES:
            texts = _collect(source, installation, seen)
            sides: dict[Side, list[Text]] = {Side.TRAIN: [], Side.VALID: []}
            for text in texts:
                sides[side_of(text.file, HELD_OUT)].append(text)
            parts.append(_write_domain(source, sides[Side.TRAIN], sides[Side.VALID], out))
            training.extend(text.text for text in sides[Side.TRAIN])
            stage.advance(sum(map(_size, texts)))
    with reporter.stage("Choosing held-out examples", TARGET_EXAMPLES * len(TARGET_SOURCES), "examples") as stage:
        candidates = {target.name: list(islice(target.read(installation), TARGET_CANDIDATES)) for target in TARGET_SOURCES}
        # All at once, because going through the training text is what takes the time.
        distinct = set(without_overlap(chain.from_iterable(candidates.values()), training))
        chosen: list[Example] = []
        for target in TARGET_SOURCES:
            examples = choose([example for example in candidates[target.name] if example in distinct], TARGET_EXAMPLES)
            parts.append(_write_target(target, examples, out))
            chosen.extend(examples)
            stage.advance(len(examples))
    with reporter.stage("Collecting pairs", len(PAIR_SOURCES), "domains") as stage:
        for skill in PAIR_SOURCES:
            parts.append(_write_pairs(skill, collect_pairs(skill, installation, PAIRS_BYTES, chosen), out))
            stage.advance(1)
    template = resources.files("mixopt.corpus.demo").joinpath(EXPERIMENT_NAME).read_text(encoding="utf-8")
    experiment = out / EXPERIMENT_NAME
    temporary = experiment.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(template, encoding="utf-8")
    os.replace(temporary, experiment)
    return DemoCorpus(experiment, tuple(parts))


def _collect(source: DomainSource, installation: Installation, seen: set[bytes]) -> list[Text]:
    """Documents of a domain up to its size, without any that is in `seen`; adds them to it."""
    collected: list[Text] = []
    size = 0
    for text in chain.from_iterable(map(pieces, source.read(installation))):
        digest = hashlib.sha256(text.text.encode("utf-8")).digest()
        if digest in seen:
            continue
        seen.add(digest)
        collected.append(text)
        size += _size(text)
        if size >= DOMAIN_BYTES:
            break
    return collected


def _write_domain(source: DomainSource, train: Sequence[Text], valid: Sequence[Text], out: Path) -> Part:
    size = sum(map(_size, train))
    if size < LEAST_TRAIN_BYTES or not valid:
        lack = f"fewer than {LEAST_TRAIN_BYTES:,}" if size < LEAST_TRAIN_BYTES else "but no file to hold out"
        raise DataError(
            f"This environment holds {size:,} bytes of training text for the embedded domain '{source.name}' ({source.description}), {lack}.",
            "Install mixopt with its pinned packages: `pip install -e . -c constraints.txt`.",
        )
    for side, texts in ((Side.TRAIN, train), (Side.VALID, valid)):
        columns = {"text": [text.text for text in texts], "source": [text.source for text in texts]}
        _write_parquet(out / side.value / f"{source.name}.parquet", columns)
    return Part(source.name, len(train), size, len(valid), _taken_from(source.description, Counter(text.origin for text in train)))


def _write_target(target: TargetSource, examples: Sequence[Example], out: Path) -> Part:
    if len(examples) < LEAST_TARGET_EXAMPLES:
        raise DataError(
            f"This environment holds {len(examples)} examples for the embedded target '{target.name}', fewer than {LEAST_TARGET_EXAMPLES}.",
            "Install mixopt with its pinned packages: `pip install -e . -c constraints.txt`.",
        )
    _write_examples(out / "targets" / f"{target.name}.parquet", examples)
    taken_from = _taken_from(target.description, Counter(example.origin for example in examples))
    return Part(target.name, len(examples), _examples_size(examples), 0, taken_from)


def _write_pairs(source: TargetSource, pairs: Sequence[Example], out: Path) -> Part:
    """Training and held-out pairs of a domain, split by the file they were cut from."""
    sides: dict[Side, list[Example]] = {Side.TRAIN: [], Side.VALID: []}
    for pair in pairs:
        sides[side_of(pair.source, HELD_OUT)].append(pair)
    train, valid = sides[Side.TRAIN], sides[Side.VALID]
    size = _examples_size(train)
    if size < LEAST_PAIRS_BYTES or not valid:
        raise DataError(
            f"This environment holds {size:,} bytes of pairs for the embedded domain '{source.name}' and {len(valid)} to hold out, too few.",
            "Install mixopt with its pinned packages: `pip install -e . -c constraints.txt`.",
        )
    for side, examples in sides.items():
        _write_examples(out / "pairs" / side.value / f"{source.name}.parquet", examples)
    return Part(source.name, len(train), size, len(valid), _taken_from(source.description, Counter(pair.origin for pair in train)))


def _write_examples(path: Path, examples: Sequence[Example]) -> None:
    _write_parquet(path, {name: [getattr(example, name) for example in examples] for name in ("prompt", "completion", "source")})


def _examples_size(examples: Sequence[Example]) -> int:
    return sum(len(f"{example.prompt}{example.completion}".encode()) for example in examples)


def _taken_from(description: str, origins: Mapping[str, int]) -> str:
    """ "C++ headers: torch 2.13.0" or "type stubs: torch 2.13.0, numpy 2.4.6 and 23 others", most documents first."""
    names = sorted(origins, key=lambda name: (-origins[name], name))
    rest = f" and {len(names) - 3} others" if len(names) > 3 else ""
    return f"{description}: {', '.join(names[:3])}{rest}"


def _write_parquet(path: Path, columns: Mapping[str, Iterable[str]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    pq.write_table(pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()}), temporary, compression="zstd")
    os.replace(temporary, path)


def _size(text: Text) -> int:
    return len(text.text.encode("utf-8"))
