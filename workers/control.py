"""How a driver and the packs it started talk while they run: a folder of small files in the store.

    control/<runner>/<pack>.json       written by the pack: tokens trained so far per trial
    control/<runner>/<trial>.cancel    written by the driver: stop this trial

Files rather than queues or actors: they cost no process, work in process and on a cluster alike (both sides share the store anyway), and a
pack whose driver is gone notices, because its folder is. The trade-off is latency: both sides look a few times a second.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

LOOK_SECONDS = 0.25
"""How often a pack looks for cancelled trials and a driver for progress; small against a second, large against a step."""

REPORT_SECONDS = 0.5


class PackControl:
    """The side of the pack."""

    def __init__(self, folder: Path, pack_id: str) -> None:
        self._folder = folder
        self._path = folder / f"{pack_id}.json"
        self._tokens: dict[str, int] = {}
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
            temporary.write_text(json.dumps(self._tokens), encoding="utf-8")
            os.replace(temporary, self._path)
        except FileNotFoundError:
            return  # The driver has gone and taken the folder along; `cancelled` ends the pack.

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
        return frozenset(trial_ids) if self._driver_gone else self._cancelled & frozenset(trial_ids)


class DriverControl:
    """The side of the driver. Creates the folder, and removes it on `close`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True)

    def cancel(self, trial_ids: Iterable[str]) -> None:
        for trial_id in trial_ids:
            (self.folder / f"{trial_id}.cancel").touch()

    def allow(self, trial_id: str) -> None:
        """Takes back an earlier `cancel`, for a trial that is submitted again."""
        (self.folder / f"{trial_id}.cancel").unlink(missing_ok=True)

    def progress(self, pack_id: str) -> dict[str, int]:
        """Tokens trained so far by trial id; empty until the pack has begun to work."""
        try:
            body = json.loads((self.folder / f"{pack_id}.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        return {str(trial_id): int(tokens) for trial_id, tokens in body.items()}

    def forget(self, pack_id: str) -> None:
        (self.folder / f"{pack_id}.json").unlink(missing_ok=True)

    def close(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
