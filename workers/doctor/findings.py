"""What `doctor` says: findings, and checks that cannot take it down.

Every check runs in a thread of its own with a limit in seconds; one that raises or does not come back becomes a finding itself. The trade-off:
a thread that hangs (a dead network disk) cannot be ended and is left behind, as a daemon that does not keep the process.
"""

from __future__ import annotations

import enum
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mixopt.errors import MixoptError


class Status(enum.StrEnum):
    """OK: nothing to do. WARNING: it works, slower or less safely than it could. PROBLEM: work will fail."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at; `remedy` is empty where there is nothing to do."""

    topic: str
    status: Status
    found: str
    remedy: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def ok(topic: str, found: str) -> Finding:
    return Finding(topic, Status.OK, found)


def warning(topic: str, found: str, remedy: str) -> Finding:
    return Finding(topic, Status.WARNING, found, remedy)


def problem(topic: str, found: str, remedy: str) -> Finding:
    return Finding(topic, Status.PROBLEM, found, remedy)


def counted(count: int, what: str) -> str:
    """ "1 domain", "2 domains"."""
    return f"{count} {what}{'' if count == 1 else 's'}"


@dataclass(frozen=True)
class Check:
    """Looks at one topic, within `seconds`."""

    topic: str
    look: Callable[[], Sequence[Finding]]
    seconds: float = 30.0


def run_checks(checks: Sequence[Check], done: Callable[[], None] = lambda: None) -> list[Finding]:
    """The findings of all checks, in their order; they run at once. `done` is called as each is."""
    running = []
    for check in checks:
        found: list[Finding] = []
        thread = threading.Thread(target=_run, args=(check, found), name=f"doctor-{check.topic}", daemon=True)
        thread.start()
        running.append((check, thread, found, time.monotonic() + check.seconds))
    findings: list[Finding] = []
    for check, thread, found, deadline in running:
        thread.join(max(0.0, deadline - time.monotonic()))
        if thread.is_alive():
            findings.append(
                problem(
                    check.topic, f"No answer within {check.seconds:.0f} seconds.", "Look for a disk or server that hangs; try again later."
                )
            )
        else:
            findings.extend(found)
        done()
    return findings


def _run(check: Check, found: list[Finding]) -> None:
    try:
        found.extend(check.look())
    except MixoptError as error:
        found.append(problem(check.topic, error.message, error.hint or "Mend what it says."))
    except Exception as error:  # noqa: BLE001 - whatever goes wrong while looking is a finding, never the end of the doctor
        reason = " ".join(str(error).split())[:300]
        found.append(problem(check.topic, f"It could not be looked at: {type(error).__name__}: {reason}", "Mend what it says, if you can."))
