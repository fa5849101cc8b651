"""The prepared corpus as it is, or as it may be expected to become: what a plan needs before `mixopt prepare` has run.

Expected counts are estimated from the bytes of files on this machine and the beginnings of those that are compressed or limited, and said to be
estimates; of text that lies elsewhere nothing is guessed. A manifest is believed where it names the files that `prepare` would make of the documents
as they are now. The trade-off: what lies elsewhere is taken to be as it was, because a plan asks no server.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from mixopt.config import Experiment
from mixopt.corpus.config import DomainConfig, TargetConfig
from mixopt.corpus.documents import Limits, estimated_text_bytes, read_items
from mixopt.corpus.files import is_elsewhere, resolve_files
from mixopt.corpus.manifest import DomainFiles, Manifest, TargetFile, TokenFile
from mixopt.corpus.tokenizer import load_tokenizer
from mixopt.domains import ASSUMED_BYTES_PER_TOKEN
from mixopt.errors import DataError
from workers.tokens.files import output_of
from workers.tokens.jobs import local_jobs, parts_of
from workers.tokens.tokenizer import expected_name

UNKNOWN_TOKENS = 2**52
"""Stands for a count that is not known, where more tokens than this change nothing."""
HASH_LETTERS = "not prepared: "
# Read of a source that is limited to a number of documents, to tell how large they are: a moment's work.
SAMPLED_DOCUMENTS, SAMPLED_BYTES = 256, 4 << 20


@dataclass(frozen=True)
class Corpus:
    """What trials would train on.

    Attributes:
        manifest: real, or expected: then hashes are placeholders, and counts estimates.
        prepared: the manifest is real.
        text_bytes: of all documents; None: some are not on this machine.
        unknown: domains and targets whose size is not known.
        changed: domains, targets and "the tokenizer" that were prepared from other files or with other settings.
    """

    manifest: Manifest
    prepared: bool
    text_bytes: float | None
    unknown: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()


def corpus_of(experiment: Experiment) -> Corpus:
    """The prepared corpus of an experiment, or what to expect of it.

    Raises:
        DataError, ConfigError: a file of the experiment is missing or of an unknown kind.
    """
    expected = _expected(experiment)
    try:
        manifest = Manifest.load(experiment.output_dir / "tokens")
    except DataError:  # missing or damaged, which `prepare` mends
        return expected
    named = {domain.name for domain in experiment.domains} <= set(manifest.domains)
    named = named and {target.name for target in experiment.targets} <= set(manifest.targets)
    if not named or not all(path.exists() for path in _token_files(manifest)):
        return expected
    domains = {domain.name: manifest.domains[domain.name] for domain in experiment.domains}
    targets = {target.name: manifest.targets[target.name] for target in experiment.targets}
    real = Manifest(manifest.root, manifest.tokenizer_path, manifest.tokenizer_hash, manifest.vocab_size, domains, targets)
    changed = _changed(experiment, real)
    return replace(expected, changed=changed) if changed else Corpus(real, True, expected.text_bytes)


def _changed(experiment: Experiment, manifest: Manifest) -> tuple[str, ...]:
    """What `prepare` would make anew, as far as files of this machine tell."""
    name = expected_name(experiment.tokenizer)
    changed = ["the tokenizer"] if name is not None and name != manifest.tokenizer_path else []
    prepared = {file.path for file in _files(manifest)}
    changed += [
        job.owner
        for job in local_jobs(experiment)
        if output_of(job, manifest.root, job.specification(manifest.tokenizer_hash)).name not in prepared
    ]
    return tuple(dict.fromkeys(changed))


def token_file_bytes(manifest: Manifest) -> float:
    """Bytes of all token files: as they lie on disk, or two per expected token (no vocabulary here needs four)."""
    total = 0.0
    for path, file in ((manifest.absolute(file), file) for file in _files(manifest)):
        total += path.stat().st_size if path.exists() else 2.0 * file.tokens if file.tokens < UNKNOWN_TOKENS else 0.0
    return total


def tokens_of(manifest: Manifest) -> dict[Path, int]:
    """Path of every held-out set -> its tokens."""
    held_out = [files.valid for files in manifest.domains.values()] + [target.file for target in manifest.targets.values()]
    return {manifest.absolute(file): file.tokens for file in held_out}


def _files(manifest: Manifest) -> list[TokenFile]:
    sides = [file for files in manifest.domains.values() for file in (files.train, files.valid)]
    return sides + [target.file for target in manifest.targets.values()]


def _token_files(manifest: Manifest) -> list[Path]:
    return [manifest.absolute(file) for file in _files(manifest)]


def _expected(experiment: Experiment) -> Corpus:
    domains: dict[str, DomainFiles] = {}
    targets: dict[str, TargetFile] = {}
    total: float | None = 0.0
    unknown = []
    for domain in experiment.domains:
        train, valid, text_bytes = _domain_bytes(domain)
        files = _file(f"{domain.name}.train", train), _file(f"{domain.name}.valid", valid)
        domains[domain.name] = DomainFiles(*files, kind=domain.kind)
        total = None if total is None or text_bytes is None else total + text_bytes
        if train is None or valid is None:
            unknown.append(f"domain '{domain.name}'")
    for target in experiment.targets:
        size = _target_bytes(target)
        targets[target.name] = TargetFile(target.kind, _file(f"target-{target.name}", size))
        total = None if total is None or size is None else total + size
        if size is None:
            unknown.append(f"target '{target.name}'")
    manifest = Manifest(
        root=experiment.output_dir / "tokens",
        tokenizer_path="tokenizer.json",
        tokenizer_hash="",
        vocab_size=_vocabulary(experiment),
        domains=domains,
        targets=targets,
    )
    return Corpus(manifest, False, total, tuple(unknown))


def _vocabulary(experiment: Experiment) -> int:
    path = experiment.tokenizer.path
    if path is not None and Path(path).is_file():
        return load_tokenizer(Path(path)).vocab_size
    return experiment.tokenizer.vocab_size


def _domain_bytes(domain: DomainConfig) -> tuple[float | None, float | None, float | None]:
    """Bytes of the training side, of the held-out side, and of all that is read."""
    owner = f"domain '{domain.name}'"
    text = _local_bytes(domain.path, domain.columns, owner)
    if text is not None and domain.max_documents is not None:
        text = _of_first(domain.max_documents, _beginning(domain, owner, domain.max_documents), text)
    if domain.max_bytes is not None:
        text = float(domain.max_bytes) if text is None else min(text, float(domain.max_bytes))
    if domain.valid is not None:
        valid = _local_bytes(domain.valid, domain.columns, f"held-out set of {owner}")
        return text, valid, None if text is None or valid is None else text + valid
    if text is None:
        return None, None, None
    return text * (1 - domain.held_out), text * domain.held_out, text


def _target_bytes(target: TargetConfig) -> float | None:
    owner = f"target '{target.name}'"
    size = _local_bytes(target.path, target.columns, owner)
    if size is None or target.max_documents is None:
        return size
    return _of_first(target.max_documents, _beginning(target, owner, target.max_documents), size)


def _beginning(of: DomainConfig | TargetConfig, owner: str, documents: int) -> list[int]:
    """Bytes of the first few documents or pairs."""
    items = read_items(resolve_files(of.path or (), owner), of.columns, owner, _sample_of(documents))
    return [sum(len(part.encode("utf-8")) for part in parts_of(item)) for item in items]


def _sample_of(documents: int) -> Limits:
    return Limits(min(documents, SAMPLED_DOCUMENTS), SAMPLED_BYTES)


def _of_first(documents: int, sizes: list[int], whole: float) -> float:
    """Bytes of the first so many documents, by the mean of the few at the beginning; no more than there are."""
    return min(documents * sum(sizes) / len(sizes), whole) if sizes else whole


def _local_bytes(patterns: tuple[str, ...] | None, columns: tuple[str, ...], owner: str) -> float | None:
    """Bytes of text in files of this machine; None where some lie elsewhere."""
    if patterns is None or any(map(is_elsewhere, patterns)):
        return None
    return estimated_text_bytes(resolve_files(patterns, owner), *columns)


def _file(name: str, text_bytes: float | None) -> TokenFile:
    tokens = UNKNOWN_TOKENS if text_bytes is None else max(1, int(text_bytes / ASSUMED_BYTES_PER_TOKEN))
    return TokenFile(f"{name}.tokens", f"{HASH_LETTERS}{name}", tokens, int(text_bytes or 0), 0)
