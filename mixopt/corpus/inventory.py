"""A corpus and its experiment side by side: what is there, how often the target run would repeat it, and what is wrong with it, in sentences.

`take_inventory` reads every document (or a sample) and nothing else; the result is plain data, printed by the command or written as JSON.
Large corpora are read by one process per domain. The trade-off: a domain is the unit, so one very large domain is read by one core.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from typing import Any

from mixopt.config import Experiment
from mixopt.corpus.config import DomainConfig
from mixopt.corpus.documents import estimated_text_bytes
from mixopt.corpus.files import resolve_files
from mixopt.corpus.inspection import DomainScan, Extreme, Shared, SideScan, read_targets, scan_domain, shared_documents
from mixopt.corpus.manifest import Manifest, TokenFile
from mixopt.corpus.overlap import Overlap, TargetItem, TargetRuns
from mixopt.corpus.verdicts import verdicts
from mixopt.domains import ASSUMED_BYTES_PER_TOKEN, Domain, DomainSet, TokenCountSource, inventory_of
from mixopt.errors import DataError, InfeasibleError, RunError
from mixopt.mixture import Mixture
from mixopt.progress import Reporter

QUICK_BYTES = 20e6
"""Read of each set of files by a quick inventory."""
# Below it one process is done before a second has loaded its libraries.
PARALLEL_BYTES = 64e6


@dataclass(frozen=True)
class SideRow:
    """One side of a domain. `counted`: tokens are those of the prepared token file; else they are estimated from the bytes.

    Attributes:
        documents, bytes: of those that are not empty; pairs with their prompts.
        repeats: documents that repeat an earlier one; `repeats_example` names one and its twin.
        shortest, longest: most extreme first.
    """

    documents: int
    empty: int
    bytes: int
    tokens: int
    counted: bool
    repeats: int
    repeats_example: str
    shortest: tuple[Extreme, ...]
    longest: tuple[Extreme, ...]

    @property
    def bytes_per_token(self) -> float:
        return self.bytes / max(self.tokens, 1)


@dataclass(frozen=True)
class DomainRow:
    """A domain: what is at hand, and its part in the target run. UniMax is None where the epoch caps allow no mixture at all."""

    name: str
    group: str
    train: SideRow
    valid: SideRow
    complete: bool
    target_tokens: float
    max_epochs: float
    natural_weight: float
    natural_epochs: float
    unimax_weight: float | None
    unimax_epochs: float | None
    token_count_source: TokenCountSource = "given"


@dataclass(frozen=True)
class TargetRow:
    """A target; `checkable` items are long enough for overlaps to be looked for. `tokens`: None unless prepared."""

    name: str
    kind: str
    items: int
    checkable: int
    bytes: int
    tokens: int | None


@dataclass(frozen=True)
class Inventory:
    """What `take_inventory` found; `verdicts` says it in sentences."""

    name: str
    budget_tokens: float
    domains: tuple[DomainRow, ...]
    targets: tuple[TargetRow, ...]
    shared: tuple[Shared, ...]
    overlaps: tuple[Overlap, ...]
    verdicts: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def take_inventory(experiment: Experiment, reporter: Reporter, quick: bool = False, processes: int = 1) -> Inventory:
    """Reads the corpus of an experiment; writes nothing.

    Args:
        quick: read only the first 20 MB of each set of files.
        processes: of a large corpus, so many domains are read at once.

    Raises:
        DataError, ConfigError: documents are missing, unreadable or not text.
        RunError: a process that read documents was killed.
    """
    items = read_targets(experiment)
    runs = TargetRuns.from_items(items)
    scans = scan_domains(experiment.domains, runs, QUICK_BYTES if quick else float("inf"), reporter, processes)
    manifest = _prepared(experiment)
    domains = _domain_rows(experiment, scans, manifest)
    targets = _target_rows(experiment, items, runs, manifest)
    shared = tuple(shared_documents(scans))
    overlaps = tuple(overlap for scan in scans for overlap in scan.overlaps)
    infeasible = _unimax(_domain_set(experiment, domains))[1]
    return Inventory(
        name=experiment.name,
        budget_tokens=experiment.budget_tokens,
        domains=domains,
        targets=targets,
        shared=shared,
        overlaps=overlaps,
        verdicts=tuple(verdicts(domains, targets, shared, overlaps, infeasible)),
    )


def scan_domains(
    domains: Sequence[DomainConfig], runs: TargetRuns, limit_bytes: float, reporter: Reporter, processes: int = 1
) -> list[DomainScan]:
    """Every domain, in order; by several processes where there is much to read."""
    sizes = {domain.name: _text_bytes(domain, limit_bytes) for domain in domains}
    known = None if None in sizes.values() else sum(size or 0.0 for size in sizes.values())
    with reporter.stage("Reading documents", known, "bytes") as stage:
        if processes < 2 or len(domains) < 2 or (known is not None and known < PARALLEL_BYTES):
            return [scan_domain(domain, runs, limit_bytes, stage.advance) for domain in domains]
        largest_first = sorted(domains, key=lambda domain: -(sizes[domain.name] or 0.0))
        pool = ProcessPoolExecutor(
            min(processes, len(domains)), multiprocessing.get_context("spawn"), initializer=_begin, initargs=(runs, limit_bytes)
        )
        try:
            futures = [pool.submit(_scan, domain) for domain in largest_first]
            scans: dict[str, DomainScan] = {}
            for future in as_completed(futures):
                scan = future.result()
                scans[scan.name] = scan
                stage.advance(scan.train.bytes + scan.valid.bytes)
            pool.shutdown()
        except BrokenProcessPool as error:
            raise RunError(
                "A process that read documents was killed, perhaps for want of memory.", "Add `--quick`, or free memory."
            ) from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for child in multiprocessing.active_children():
                child.terminate()
            raise
    return [scans[domain.name] for domain in domains]


_task: tuple[TargetRuns, float] | None = None  # of a process of the pool; sent once, not with every domain


def _begin(runs: TargetRuns, limit_bytes: float) -> None:
    global _task
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears Ctrl-C, too, and ends its children
    _task = (runs, limit_bytes)


def _scan(domain: DomainConfig) -> DomainScan:
    assert _task is not None
    return scan_domain(domain, *_task, advance=lambda _: None)


def _text_bytes(domain: DomainConfig, limit_bytes: float) -> float | None:
    """About how many bytes of text will be read; None where an address hides it, or a data set of the hub is limited by documents."""
    limit = min(domain.max_bytes or limit_bytes, limit_bytes)
    if domain.hub is not None and limit == float("inf"):
        return None
    total = limit if domain.hub is not None else 0.0
    for paths, most in ((domain.path, limit), (domain.valid, limit_bytes)):
        if paths:
            size = estimated_text_bytes(resolve_files(paths, f"domain '{domain.name}'"), *domain.columns)
            if size is None:
                return None
            total += min(size, most)
    return total


def _prepared(experiment: Experiment) -> Manifest | None:
    try:
        return Manifest.load(experiment.output_dir / "tokens")
    except DataError:
        return None


def _domain_set(experiment: Experiment, rows: Sequence[DomainRow]) -> DomainSet:
    domains = tuple(
        Domain(d.name, "", 0, row.target_tokens, d.group, d.max_epochs, d.bounds, d.repeats)
        for d, row in zip(experiment.domains, rows, strict=True)
    )
    return DomainSet(domains, experiment.budget_tokens, experiment.group_rules)


def _unimax(domains: DomainSet) -> tuple[Mixture | None, str]:
    """Weights of the UniMax mixture, or None and the reason why there is none."""
    try:
        return domains.unimax(), ""
    except InfeasibleError as error:
        return None, str(error)


def _domain_rows(experiment: Experiment, scans: Sequence[DomainScan], manifest: Manifest | None) -> tuple[DomainRow, ...]:
    rows = []
    for domain, scan in zip(experiment.domains, scans, strict=True):
        files = manifest.domains.get(domain.name) if manifest else None
        train = _side_row(scan.train, scan.train.bytes, files.train if files else None)
        target_tokens, source = inventory_of(domain, train.tokens, train.bytes)
        rows.append(
            DomainRow(
                name=domain.name,
                group=domain.group,
                train=train,
                valid=_side_row(scan.valid, scan.valid.scored_bytes, files.valid if files else None),
                complete=scan.complete,
                target_tokens=target_tokens,
                max_epochs=domain.max_epochs,
                natural_weight=0.0,
                natural_epochs=0.0,
                unimax_weight=None,
                unimax_epochs=None,
                token_count_source="estimated" if source == "counted" and not (train.counted and scan.complete) else source,
            )
        )
    domains = _domain_set(experiment, rows)
    natural, unimax = domains.natural(), _unimax(domains)[0]
    epochs = domains.epochs(natural)
    unimax_epochs = domains.epochs(unimax) if unimax else {}
    return tuple(
        replace(
            row,
            natural_weight=natural.as_dict()[row.name],
            natural_epochs=epochs[row.name],
            unimax_weight=unimax.as_dict()[row.name] if unimax else None,
            unimax_epochs=unimax_epochs.get(row.name),
        )
        for row in rows
    )


def _side_row(scan: SideScan, stored_bytes: int, file: TokenFile | None) -> SideRow:
    """A side as it was read, beside its token file, which counts `stored_bytes` of it: of held-out pairs completions only."""
    counted = file is not None and (file.bytes, file.documents) == (stored_bytes, scan.documents)
    if counted and file is not None:
        tokens = file.tokens
    elif file is not None and file.bytes:
        # Documents changed since they were prepared, or were not read to the end: their rate is still the best there is.
        tokens = round(stored_bytes / (file.bytes / file.tokens))
    else:
        tokens = round(scan.bytes / ASSUMED_BYTES_PER_TOKEN)
    repeats, example = scan.repeats()
    return SideRow(scan.documents, scan.empty, scan.bytes, tokens, counted, repeats, example, tuple(scan.shortest), tuple(scan.longest))


def _target_rows(
    experiment: Experiment, items: dict[str, list[TargetItem]], runs: TargetRuns, manifest: Manifest | None
) -> tuple[TargetRow, ...]:
    rows = []
    for target, count, checkable in zip(experiment.targets, runs.items, runs.checkable, strict=True):
        size = sum(len((item.question + item.rest).encode("utf-8", "surrogatepass")) for item in items[target.name])
        file = manifest.targets.get(target.name) if manifest else None
        rows.append(TargetRow(target.name, target.kind, count, checkable, size, file.file.tokens if file else None))
    return tuple(rows)
