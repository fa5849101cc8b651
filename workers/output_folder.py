"""Whether the output folder can take what a search writes; asked before any work, because a run that ends on a full disk has been paid for.

A floor, not an estimate: it refuses what cannot end well. A disk that fills up later ends the run with one sentence and the record whole.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mixopt.config import Experiment
from mixopt.errors import ConfigError

SMALLEST_FREE_BYTES = 100_000_000
"""What the smallest search leaves behind: 48 nano proxies of 1.6 MB each, tokens of a few megabytes, the record, and its mirror in MLflow."""


def check_output(experiment: Experiment) -> None:
    """Makes the output folder, writes to it, and looks at the space that is left.

    Raises:
        ConfigError: it cannot be made or written, or too little is free.
    """
    folder = experiment.output_dir
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(f"'output' is {folder}, which cannot be written ({error.strerror}).", "Name another folder.") from error
    trouble = lack_of_space(folder)
    if trouble:
        raise ConfigError(f"'output' is {folder}, {trouble}.", "Free space there, or name a folder on another disk.")


def free_bytes(folder: Path) -> int:
    """Bytes that this user may still write to the file system of `folder`, or of the nearest folder above it that exists."""
    facts = os.statvfs(existing_folder(folder))
    return facts.f_bavail * facts.f_frsize


def lack_of_space(folder: Path) -> str:
    """What is lacking there, as a clause; "" if nothing is."""
    free = free_bytes(folder)
    if free < SMALLEST_FREE_BYTES:
        return f"where {free / 1e6:,.0f} MB are free, less than the {SMALLEST_FREE_BYTES / 1e6:,.0f} MB that the smallest search needs"
    return ""


def existing_folder(folder: Path) -> Path:
    """The folder, or the nearest above it that exists."""
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())


@contextmanager
def named_in_errors(folder: Path) -> Iterator[None]:
    """Gives an error of the operating system that names no file (a full disk met while writing) the name of the output folder."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(folder)
        raise
