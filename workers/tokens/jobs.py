"""Which token files an experiment needs: one job each, with all that determines its content.

A job names its documents, how they are read and split, and what they must fit into. The digest of its specification is part of its file's
name, so under one name there is ever one content.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixopt.config import Experiment
from mixopt.corpus.config import DomainConfig, HubConfig, TargetConfig
from mixopt.corpus.documents import NO_LIMITS, Document, Limits, Pair, estimated_text_bytes, read_items
from mixopt.corpus.files import InputFile, Url, identity, is_elsewhere, resolve_files
from mixopt.corpus.hub import Commits, HubDataset
from mixopt.corpus.splits import Side, take_side
from mixopt.errors import ConfigError, DataError
from mixopt.progress import Reporter, Silent

# Raise it when the same input would give other token files; files of an older version are then made again.
PREPARE_VERSION = 1


@dataclass(frozen=True)
class Job:
    """One token file to make; the unit of work.

    Attributes:
        owner: who it is for, in messages: "domain 'code'".
        name: how the names of its files begin: "code.train".
        kind: "text", or "completion".
        files: what is read, unless `hub` is.
        columns: the text column, or prompt and completion columns.
        side: the side of the hash split to keep; None keeps all documents.
        window: tokens that a completion must fit into; 0 for text, which has no limit.
        limits: how much of the source is read, before the split.
        counts_prompts: of pairs to train on, whose prompts are seen: the bytes of prompts count, too, and not only those of what is scored.
    """

    owner: str
    name: str
    kind: str
    files: tuple[InputFile, ...]
    columns: tuple[str, ...]
    side: Side | None = None
    held_out: float = 0.0
    window: int = 0
    hub: HubDataset | None = None
    limits: Limits = NO_LIMITS
    counts_prompts: bool = False

    @property
    def is_remote(self) -> bool:
        """Whether anything is read over a network."""
        return self.hub is not None or any(isinstance(file, Url) for file in self.files)

    def source_identity(self) -> dict[str, Any]:
        """What is read, as JSON values: input files by size and time, not by content. A key is there only where it says something."""
        source: dict[str, Any] = {"files": [identity(file) for file in self.files], "columns": list(self.columns)}
        if self.hub is not None:
            source["hub"] = self.hub.identity()
        if self.limits:
            source["limits"] = [self.limits.documents, self.limits.bytes]
        return source

    def specification(self, tokenizer_hash: str) -> dict[str, Any]:
        """Everything the token file depends on, as JSON values."""
        prompts = {"counts_prompts": True} if self.counts_prompts else {}
        return {
            **prompts,
            "version": PREPARE_VERSION,
            "kind": self.kind,
            **self.source_identity(),
            "split": [self.side.value, self.held_out] if self.side else None,
            "window": self.window,
            "tokenizer": tokenizer_hash,
        }


@dataclass(frozen=True)
class Jobs:
    """The jobs of an experiment, by domain (training, held-out) and target."""

    domains: dict[str, tuple[Job, Job]]
    targets: dict[str, Job]

    def all(self) -> list[Job]:
        return [*(job for pair in self.domains.values() for job in pair), *self.targets.values()]

    def training(self) -> list[Job]:
        return [train for train, _ in self.domains.values()]


def experiment_jobs(experiment: Experiment, commits: Commits, reporter: Reporter) -> Jobs:
    """The jobs of an experiment; its files and hub data sets are found, and none is read.

    Raises:
        DataError, ConfigError: files or data sets are missing or not readable here, or a file is both trained on and held out.
    """
    window = experiment.proxy.window
    domains = {domain.name: _domain_jobs(domain, window, commits, reporter) for domain in experiment.domains}
    targets = {target.name: _target_job(target, window, commits, reporter) for target in experiment.targets}
    jobs = Jobs(domains, targets)
    _check_held_out(jobs, reporter)
    for job in jobs.all():
        unknown = [file for file in job.files if isinstance(file, Url) and not file.version]
        if unknown:
            reporter.note(f"{job.owner}: the server of {unknown[0]} gives neither tag nor time; a change that keeps the size is not seen.")
    return jobs


def local_jobs(experiment: Experiment) -> list[Job]:
    """Those jobs of an experiment whose documents lie in files of this machine: found without a network, and without a word.

    Raises:
        DataError, ConfigError: files are missing or of an unknown kind.
    """
    commits = Commits(experiment.output_dir / "tokens")
    jobs: list[Job] = []
    for domain in experiment.domains:
        if domain.hub is None and not any(map(is_elsewhere, (*(domain.path or ()), *(domain.valid or ())))):
            jobs.extend(_domain_jobs(domain, experiment.proxy.window, commits, Silent()))
    here = [target for target in experiment.targets if target.hub is None and not any(map(is_elsewhere, target.path or ()))]
    return [*jobs, *(_target_job(target, experiment.proxy.window, commits, Silent()) for target in here)]


def job_items(job: Job, files: tuple[InputFile, ...] | None = None) -> Iterator[Document | Pair]:
    """The documents or pairs on the job's side; `files` are local copies that stand for its source, already limited."""
    if files is None:
        items = read_items(job.hub or job.files, job.columns, job.owner, job.limits)
    else:
        items = read_items(files, copied_columns(job), job.owner)
    yield from take_side(items, job.held_out, job.side, job.owner) if job.side is not None else items


def copied_columns(job: Job) -> tuple[str, ...]:
    """Names of the columns in a local copy."""
    return tuple(f"text{index}" for index in range(len(job.columns)))


def parts_of(item: Document | Pair) -> tuple[str, ...]:
    """The texts of an item; the last one is scored."""
    return (item.text,) if isinstance(item, Document) else (item.prompt, item.completion)


def text_bytes(jobs: Iterable[Job], copies: dict[Job, Path]) -> float | None:
    """About how many bytes of text the jobs read; two sides of one split read the same text once. None if nobody knows."""
    total = 0.0
    seen: set[Any] = set()
    for job in jobs:
        columns = copied_columns(job) if job in copies else job.columns
        files: tuple[InputFile, ...] = (copies[job],) if job in copies else job.files
        if (files, job.hub, columns) in seen:
            continue
        seen.add((files, job.hub, columns))
        known = estimated_text_bytes(files, *columns) if files else None
        if job not in copies and job.limits.bytes is not None:
            known = min(known, job.limits.bytes) if known is not None else job.limits.bytes
        if known is None:
            return None
        total += known
    return total


def nothing_left(job: Job, dropped: int) -> DataError:
    owner = f"{job.owner[0].upper()}{job.owner[1:]}"
    if dropped:
        return DataError(
            f"{owner}: all {dropped} completions are empty or longer than a window of {job.window} tokens.",
            "Raise `proxy.window` or shorten the completions.",
        )
    if job.limits:
        return DataError(f"{owner} holds no text within its limits.", "Raise `max_documents` or `max_bytes`.")
    where = str(job.hub) if job.hub is not None else ", ".join(str(file) for file in job.files[:3])
    return DataError(f"{owner} holds no text.", f"Check {where}.")


def _domain_jobs(domain: DomainConfig, window: int, commits: Commits, reporter: Reporter) -> tuple[Job, Job]:
    """Training and held-out file of a domain."""
    owner = f"domain '{domain.name}'"
    pairs = domain.kind == "completion"
    train = Job(
        owner=owner,
        name=f"{domain.name}.train",
        kind=domain.kind,
        files=resolve_files(domain.path or (), owner),
        columns=domain.columns,
        window=window if pairs else 0,
        side=Side.TRAIN if domain.valid is None else None,
        held_out=domain.held_out if domain.valid is None else 0.0,
        hub=_hub_dataset(domain.hub, owner, commits, reporter),
        limits=Limits(domain.max_documents, domain.max_bytes),
        counts_prompts=pairs,
    )
    valid = dataclasses.replace(train, name=f"{domain.name}.valid", counts_prompts=False)
    if domain.valid is None:
        return train, dataclasses.replace(valid, side=Side.VALID)
    held_out_owner = f"held-out set of {owner}"
    valid = dataclasses.replace(valid, owner=held_out_owner, files=resolve_files(domain.valid, held_out_owner))
    return train, dataclasses.replace(valid, hub=None, limits=NO_LIMITS)


def _target_job(target: TargetConfig, window: int, commits: Commits, reporter: Reporter) -> Job:
    owner = f"target '{target.name}'"
    return Job(
        owner=owner,
        name=f"target-{target.name}",
        kind=target.kind,
        files=resolve_files(target.path or (), owner),
        columns=target.columns,
        window=window if target.kind == "completion" else 0,
        hub=_hub_dataset(target.hub, owner, commits, reporter),
        limits=Limits(target.max_documents),
    )


def _hub_dataset(hub: HubConfig | None, owner: str, commits: Commits, reporter: Reporter) -> HubDataset | None:
    if hub is None:
        return None
    commit, is_new = commits.resolve("dataset", hub.dataset, hub.revision, owner)
    if is_new:
        branch = hub.revision or "the main branch"
        reporter.note(f"{owner}: {hub.dataset} is read at commit {commit[:12]} of {branch}, from now on.")
    return HubDataset(hub.dataset, hub.config, hub.split, commit)


def _check_held_out(jobs: Jobs, reporter: Reporter) -> None:
    """Refuses held-out files that a domain trains on, as a pattern takes them in by mistake; of targets it only tells, for their columns
    may be others.

    Raises:
        ConfigError: some are.
    """
    targets = list(jobs.targets.values())
    trained = {_place(file): train.owner for train, _ in jobs.domains.values() for file in train.files}
    for job in [*(valid for _, valid in jobs.domains.values() if valid.side is None), *targets]:
        shared = [file for file in job.files if _place(file) in trained]
        if shared and job in targets:
            reporter.note(f"{job.owner} reads {shared[0]}, which {trained[_place(shared[0])]} trains on: its losses may measure memory.")
        elif shared:
            raise ConfigError(
                f"{shared[0]} is in the {job.owner}, and {trained[_place(shared[0])]} trains on it.",
                "Take it out of `path`, or leave `valid` out to hold a share of the documents out.",
            )


def _place(file: InputFile) -> InputFile:
    return file if isinstance(file, Url) else file.resolve()
