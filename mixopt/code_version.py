"""Which code runs: the version of mixopt and, where it can be known, the commit.

Known in a git checkout, and in an installation that pip made from one. What an outcome or a run says of its code is for people who review it;
what determines weights is the engine's version, which is part of a trial's identity.
"""

from __future__ import annotations

import json
import subprocess
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from mixopt import __version__

CHECKOUT = Path(__file__).resolve().parent.parent
GIT_SECONDS = 5.0


@lru_cache(maxsize=1)
def commit() -> str | None:
    """The commit, twelve digits, with "+changes" behind it if files differ from it; None: not known."""
    if (CHECKOUT / ".git").exists():
        return _described(CHECKOUT)
    try:
        origin = json.loads(distribution("mixopt").read_text("direct_url.json") or "{}")
    except (PackageNotFoundError, ValueError):
        return None
    digits = (origin.get("vcs_info") or {}).get("commit_id")
    return str(digits)[:12] if digits else None


def code_version() -> str:
    """Version and commit in one word, as 0.1.0+6683ead00312."""
    return joined(__version__, commit())


def joined(version: str, known_commit: str | None) -> str:
    """A version with its commit behind it, written as Python writes local versions."""
    return version if not known_commit else f"{version}+{known_commit.replace('+', '.')}"


def _described(checkout: Path) -> str | None:
    # No optional locks: it must not disturb a git command of the user's.
    command = ["git", "--no-optional-locks", "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+changes"]
    try:
        ended = subprocess.run(command, cwd=checkout, capture_output=True, text=True, timeout=GIT_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return ended.stdout.strip() or None if ended.returncode == 0 else None
