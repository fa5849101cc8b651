"""The file that a benchmark writes its rows to: that it can be written is known before anything is measured, and a reader never sees half of it."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any


def why_unwritable(path: Path) -> str | None:
    """A sentence; None: it can be written. Makes its folder."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        return f"--json {path} cannot be written ({error.strerror})."
    return f"--json {path} is a folder." if path.is_dir() else None


def write_rows(path: Path, rows: Sequence[Any]) -> None:
    """All rows so far, which are dataclasses."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, path)
