"""Fixtures of the record and the loop: made-up trials and outcomes, and a runner that trains nothing but keeps every promise."""

from __future__ import annotations

import math
import os
import random
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from mixopt.domains import Domain, DomainSet
from mixopt.factory import TrialFactory
from mixopt.history import History
from mixopt.mixture import Mixture, Schedule
from mixopt.record.tables import metadata, open_database
from mixopt.runner import Capacity, Completed, Failed, Progress, Started, TrialEvent
from mixopt.trial import Failure, FailureKind, Measurement, Outcome, Source, Trial

NAMES = ("web", "code", "math")
METRICS = {"key-a": "target/a", "key-b": "target/b"}


def domain_set(names: Sequence[str] = NAMES) -> DomainSet:
    """Contents are told by their position, so that renamed domains keep their content."""
    return DomainSet(tuple(Domain(name, f"content-{i}", 500_000, 4e8 * (i + 1)) for i, name in enumerate(names)), 1e9)


def factory(names: Sequence[str] = NAMES, tokens: int = 100_000) -> TrialFactory:
    return TrialFactory(domain_set(names), Source("trained", "nano", tokens), {"window": 64}, "tokenizer", "engine-1")


def make_trial(weights: Sequence[float], seed: int = 0, label: str = "design", names: Sequence[str] = NAMES) -> Trial:
    return factory(names).make(Schedule.constant(Mixture(tuple(names), tuple(weights))), seed, label)


def grid(count: int) -> list[Trial]:
    """Distinct trials."""
    return [make_trial((0.2 + 0.6 * i / count, 0.5 * (0.8 - 0.6 * i / count), 0.5 * (0.8 - 0.6 * i / count))) for i in range(count)]


def loss(trial: Trial, key: str) -> float:
    """A smooth law of the mixture with seed noise, the same whenever it is asked."""
    noise = random.Random(f"{trial.trial_id}{key}").gauss(0, 0.01)
    bowl = sum((w - t) ** 2 for w, t in zip(trial.schedule.average().weights, (0.2, 0.5, 0.3), strict=True))
    return 1.0 + bowl + (0.3 if key == "key-b" else 0.0) + noise


def outcome_of(trial: Trial, keys: Collection[str] = tuple(METRICS)) -> Outcome:
    shares = {d.content_hash: tuple(row[i] for row in trial.schedule.array().tolist()) for i, d in enumerate(trial.domains)}
    points = [(key, tokens) for key in keys for tokens in (trial.source.tokens // 2, trial.source.tokens)]
    measured = tuple(Measurement(k, t, loss(trial, k) * math.log(2), loss(trial, k) * trial.source.tokens / t) for k, t in points)
    return Outcome(trial.trial_id, shares, measured, trial.source.tokens, 1e9, 2.0, {"gradient_norm": 0.5})


@dataclass
class FakeRunner:
    """Ends trials in random order; `kept` stands for the disk that outlives a driver.

    Attributes:
        failures: trial id -> failures it meets, first one first.
        keys: evaluations that it scores.
        trained, scored: trial ids, each time one was trained or only scored.
        on_event: called before each event is handed out.
    """

    seed: int = 0
    slots: int = 2
    pack_size: int = 2
    keys: tuple[str, ...] = tuple(METRICS)
    kept: dict[str, Outcome] = field(default_factory=dict)
    failures: dict[str, list[Failure]] = field(default_factory=dict)
    trained: list[str] = field(default_factory=list)
    scored: list[str] = field(default_factory=list)
    submissions: list[list[str]] = field(default_factory=list)
    cancelled: set[str] = field(default_factory=set)
    on_event: Callable[[TrialEvent], None] = lambda event: None
    _queue: list[Trial] = field(default_factory=list)

    def capacity(self) -> Capacity:
        return Capacity(self.slots, self.pack_size)

    def submit(self, trials: Sequence[Trial]) -> None:
        self.submissions.append([trial.trial_id for trial in trials])
        self._queue.extend(trials)

    def events(self) -> Iterator[TrialEvent]:
        order = random.Random(self.seed)
        while self._queue:
            trial = self._queue.pop(order.randrange(len(self._queue)))
            for event in self._run(trial):
                self.on_event(event)
                yield event

    def cancel(self, trial_ids: Collection[str]) -> None:
        self.cancelled.update(trial_ids)

    def close(self) -> None:
        return None

    def _run(self, trial: Trial) -> Iterator[TrialEvent]:
        if trial.trial_id in self.cancelled:
            yield Failed(trial.trial_id, Failure(FailureKind.CANCELLED, "cancelled"))
            return
        yield Started(trial.trial_id)
        yield Progress(trial.trial_id, trial.source.tokens // 2)
        if self.failures.get(trial.trial_id):
            yield Failed(trial.trial_id, self.failures[trial.trial_id].pop(0))
            return
        before = self.kept.get(trial.trial_id)
        if before is None:
            self.trained.append(trial.trial_id)
        elif not set(self.keys) <= {m.evaluation_key for m in before.measurements}:
            self.scored.append(trial.trial_id)
        self.kept[trial.trial_id] = outcome_of(trial, self.keys)
        yield Completed(trial.trial_id, self.kept[trial.trial_id])


@dataclass(frozen=True)
class Lab:
    """What tests build with."""

    names: tuple[str, ...] = NAMES
    metrics: Mapping[str, str] = field(default_factory=lambda: dict(METRICS))
    runner: type[FakeRunner] = FakeRunner

    trial = staticmethod(make_trial)
    grid = staticmethod(grid)
    outcome = staticmethod(outcome_of)
    factory = staticmethod(factory)
    domain_set = staticmethod(domain_set)


@pytest.fixture(scope="session")
def lab() -> Lab:
    return Lab()


@pytest.fixture
def location(tmp_path: Path) -> Path | str:
    """Where the record lies: an SQLite file; or, where MIXOPT_TEST_RECORD holds a URL, that database, emptied first."""
    url = os.environ.get("MIXOPT_TEST_RECORD")
    if url is None:
        return tmp_path / "record.db"
    engine = open_database(url)
    metadata.drop_all(engine)
    engine.dispose()
    return url


@pytest.fixture
def history(location: Path | str) -> Iterator[History]:
    with History.open(location) as record:
        record.add_search("s1", "first", "name: first\n")
        yield record
