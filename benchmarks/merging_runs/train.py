"""Trains a few trials in this process; many such processes may share one store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from mixopt.runner import Evaluation, Failed
from mixopt.trial import Trial


def train(store: Path, catalog: Mapping[str, Path], evaluations: Sequence[Evaluation], trials: Sequence[Trial]) -> None:
    """Brings trials of one source and recipe to their end, as the ordinary runner does.

    Raises:
        RuntimeError: one failed.
    """
    from workers.local import LocalRunner

    runner = LocalRunner(store, catalog, {trials[0].source.key: evaluations})
    try:
        runner.submit(trials)
        failed = [event for event in runner.events() if isinstance(event, Failed)]
    finally:
        runner.close()
    if failed:
        raise RuntimeError(f"trial {failed[0].trial_id}: {failed[0].failure.message}")
