"""The tokenizer of an output folder: trained on the domains, or copied from a file or the Hugging Face hub, and kept.

It is named by its settings and kept while documents change: every trained proxy depends on it, and adding a domain must not retire them. So it
may be a little behind the corpus; deleting it trains it anew.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from mixopt.corpus.config import TokenizerConfig
from mixopt.corpus.hub import Commits, download_tokenizer
from mixopt.corpus.tokenizer import CorpusTokenizer, load_tokenizer, sample_by_bytes, train_tokenizer, write_atomically
from mixopt.errors import DataError
from mixopt.progress import Reporter
from workers.tokens.files import digest_of, read_json, record_path
from workers.tokens.jobs import PREPARE_VERSION, Job, nothing_left, parts_of, text_bytes
from workers.tokens.sources import Sources


def prepare_tokenizer(
    settings: TokenizerConfig, folder: Path, training: list[Job], sources: Sources, commits: Commits, reporter: Reporter
) -> tuple[CorpusTokenizer, bool]:
    """The tokenizer of these settings under `folder`, and whether it was there already; trained or copied if missing or damaged.

    Raises:
        DataError, ConfigError: a given one cannot be read or does not fit, or there is no text to train on.
    """
    given = load_tokenizer(Path(settings.path)) if settings.path is not None else None
    commit = commits.resolve("model", settings.hub, settings.revision, "the tokenizer")[0] if settings.hub is not None else ""
    wanted = _wanted(settings, given, commit)
    path = folder / _file_name(wanted)
    record = read_json(record_path(path))
    if path.exists() and record is not None and record.get("settings") == wanted:
        if hashlib.sha256(path.read_bytes()).hexdigest() == record.get("hash"):
            return load_tokenizer(path), True
        reporter.note(f"{path} is damaged and is made again.")
    if given is not None:
        write_atomically(path, given.path.read_bytes())
    elif settings.hub is not None:
        write_atomically(path, download_tokenizer(settings.hub, wanted["commit"]))
    else:
        _train_again(training, settings, path, record, sources, reporter)
    tokenizer = load_tokenizer(path)
    if "vocab_size" not in wanted:
        name = given.path if given is not None else f"{settings.hub} at {wanted['commit'][:12]}"
        reporter.note(f"Tokenizer {name}: {tokenizer.vocab_size:,} entries, '{tokenizer.end_token}' ends a document.")
    write_atomically(record_path(path), json.dumps({"settings": wanted, "hash": tokenizer.hash}, indent=1).encode("utf-8"))
    return tokenizer, False


def expected_name(settings: TokenizerConfig) -> str | None:
    """Name of the tokenizer's file in an output folder; None if only the Hugging Face hub could tell.

    Raises:
        DataError, ConfigError: a given one cannot be read or does not fit.
    """
    if settings.hub is not None:
        return None
    return _file_name(_wanted(settings, load_tokenizer(Path(settings.path)) if settings.path is not None else None, ""))


def _wanted(settings: TokenizerConfig, given: CorpusTokenizer | None, commit: str) -> dict[str, Any]:
    """What determines a tokenizer, but for the documents."""
    if given is not None:
        wanted: dict[str, Any] = {"given": given.hash}
    elif settings.hub is not None:
        wanted = {"hub": settings.hub, "commit": commit}
    else:
        wanted = {"vocab_size": settings.vocab_size, "sample_bytes": settings.sample_bytes}
    return wanted | {"version": PREPARE_VERSION}


def _file_name(wanted: dict[str, Any]) -> str:
    return f"tokenizer.{digest_of(wanted)}.json"


def _train_again(
    training: list[Job], settings: TokenizerConfig, path: Path, record: dict[str, Any] | None, sources: Sources, reporter: Reporter
) -> None:
    """Trains the tokenizer of these settings; where a damaged one lies, only if it comes out as it was.

    Raises:
        DataError: it comes out otherwise, so that the stored tokens would not fit it. Whoever deletes it asks for that.
    """
    damaged = path.exists() and record is not None
    trained = path.with_name(f".{path.name}.again.tmp") if damaged else path
    _train_on_sample(training, settings.vocab_size, settings.sample_bytes, trained, sources, reporter)
    if trained is path:
        return
    known = str((record or {}).get("hash"))
    if hashlib.sha256(trained.read_bytes()).hexdigest() != known:
        trained.unlink()
        raise DataError(
            f"Tokenizer {path} is damaged, and the one that today's documents give does not fit the stored tokens.",
            "Restore the file, or delete it to tokenize with a new one; its trials are then not reused.",
        )
    os.replace(trained, path)


def _train_on_sample(training: list[Job], vocab_size: int, sample_bytes: int, path: Path, sources: Sources, reporter: Reporter) -> None:
    """Trains on the same number of bytes of each domain's training text, or all of it where there is less."""
    sample: list[str] = []
    copies = sources.copies(training)
    with reporter.stage("Reading text for the tokenizer", text_bytes(training, copies), "bytes") as stage:
        for job in training:
            texts = (text for item in sources.items(job) for text in parts_of(item))
            taken = sample_by_bytes(_counted(texts, stage.advance), sample_bytes // len(training))
            if not taken:
                raise nothing_left(job, 0)
            sample.extend(taken)
    with reporter.stage("Training the tokenizer", None, "bytes") as stage:
        train_tokenizer(_counted(sample, stage.advance), vocab_size, path)


def _counted(texts: Iterable[str], advance: Callable[[float], None]) -> Iterator[str]:
    for text in texts:
        advance(len(text.encode("utf-8")))
        yield text
