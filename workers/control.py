"""How a driver and the packs it started talk while they run: a folder of small files in the store.

    control/<runner>/<pack>.json       written by the pack: tokens trained so far per trial, and which trials have ended and how
    control/<runner>/<trial>.cancel    written by the driver: stop this trial

Files rather than queues or actors: they cost no process, work in process and on a cluster alike (both sides share the store anyway), and a
pack whose driver is gone notices, because its folder is. A pack that is run again in another process finds there which of its trials have
ended. The trade-off is latency: both sides look a few times a second.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from mixopt.trial import Failure, FailureKind

LOOK_SECONDS = 0.25
"""How often a pack looks for cancelled trials and a driver for progress; small against a second, large against a step."""

REPORT_SECONDS = 0.5


class PackControl:
    """The side of the pack. Takes up what an earlier process of the same pack has told."""

    def __init__(self, folder: Path, pack_id: str) -> None:
        self._folder = folder
        self._path = folder / f"{pack_id}.json"
        self._tokens, self._ended = _read(self._path)
        self._next_report = 0.0
        self._next_look = 0.0
        self._cancelled: frozenset[str] = frozenset()
        self._driver_gone = False

    def report(self, tokens: Mapping[str, int], at_once: bool = False) -> None:
        """Tokens trained so far by trial id; written at most twice a second unless `at_once`."""
        self._tokens.update(tokens)
        now = time.monotonic()
        if now < self._next_report and not at_once:
            return
        self._next_report = now + REPORT_SECONDS
        temporary = self._path.with_suffix(f".{os.getpid()}.tmp")
        try:
            temporary.write_text(json.dumps({"tokens": self._tokens, "ended": self._ended}), encoding="utf-8")
            os.replace(temporary, self._path)
        except OSError:
            # The driver has gone and taken the folder along: `cancelled` ends the pack. Or the file system stumbles: training does not stop for
            # that, the next report tells all of it again, and the pack returns its results besides.
            return

    def end(self, trial_id: str, failure: Failure | None) -> None:
        """Tells that a trial has ended: with this failure, or with the outcome that lies in its folder."""
        self._ended[trial_id] = None if failure is None else [failure.kind.value, failure.message, failure.tokens]
        self.report({}, at_once=True)

    def failed(self) -> dict[str, Failure]:
        """Trials that were told to have failed, by this process or an earlier one."""
        return {trial_id: _failure(body) for trial_id, body in self._ended.items() if body is not None}

    def tokens(self, trial_id: str) -> int:
        """Last reported tokens of a trial."""
        return self._tokens.get(trial_id, 0)

    def cancelled(self, trial_ids: Collection[str]) -> frozenset[str]:
        """Those of `trial_ids` that shall stop: all of them once the driver is gone."""
        now = time.monotonic()
        if now >= self._next_look:
            self._next_look = now + LOOK_SECONDS
            try:
                self._cancelled = frozenset(name.removesuffix(".cancel") for name in os.listdir(self._folder) if name.endswith(".cancel"))
            except FileNotFoundError:
                self._driver_gone = True
            except OSError:
                pass  # what was known a moment ago holds until the next look
        if self._driver_gone:
            return frozenset(trial_ids)
        return self._cancelled & frozenset(trial_ids) if self._cancelled else frozenset()


class DriverControl:
    """The side of the driver. Creates the folder, and removes it on `close`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True)

    def cancel(self, trial_ids: Iterable[str]) -> None:
        for trial_id in trial_ids:
            (self.folder / f"{trial_id}.cancel").touch()

    def is_cancelled(self, trial_id: str) -> bool:
        """Whether this trial was asked to stop."""
        return (self.folder / f"{trial_id}.cancel").exists()

    def allow(self, trial_id: str) -> None:
        """Takes back an earlier `cancel`, for a trial that is submitted again."""
        (self.folder / f"{trial_id}.cancel").unlink(missing_ok=True)

    def progress(self, pack_id: str) -> dict[str, int]:
        """Tokens trained so far by trial id; empty until the pack has begun to work."""
        return _read(self._path(pack_id))[0]

    def ended(self, pack_id: str) -> dict[str, Failure | None]:
        """Trials that have ended: with a failure, or None: with the outcome that lies in their folder."""
        return {trial_id: None if body is None else _failure(body) for trial_id, body in _read(self._path(pack_id))[1].items()}

    def forget(self, pack_id: str) -> None:
        self._path(pack_id).unlink(missing_ok=True)

    def close(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, pack_id: str) -> Path:
        return self.folder / f"{pack_id}.json"


def _read(path: Path) -> tuple[dict[str, int], dict[str, list[Any] | None]]:
    """What a pack has told: tokens and ends by trial id; nothing before it has begun."""
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}, {}
    return {str(trial_id): int(tokens) for trial_id, tokens in body["tokens"].items()}, body["ended"]


def _failure(body: list[Any]) -> Failure:
    kind, message, tokens = body
    return Failure(FailureKind(kind), str(message), int(tokens))
