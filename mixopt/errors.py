"""The errors a user sees: one sentence that says what is wrong, one that says how to mend it.

Every error that leaves mixopt on purpose is a `MixoptError`; the command line prints `message` and `hint` and leaves with `exit_code`.
Anything else that escapes is a bug and keeps its traceback.
"""

from __future__ import annotations


class MixoptError(Exception):
    """Base of all errors meant for the user.

    Args:
        message: what is wrong, naming the field and the value.
        hint: the remedy, as one sentence; empty if there is none.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()

    def __reduce__(self) -> tuple[type[MixoptError], tuple[str, str]]:
        # Exceptions cross process boundaries (Ray); the default would lose the hint.
        return (type(self), (self.message, self.hint))


class ConfigError(MixoptError):
    """The experiment file or a command-line option is wrong."""

    exit_code = 2


class DataError(MixoptError):
    """Documents, token files or stored results are missing, unreadable or damaged."""

    exit_code = 3


class InfeasibleError(MixoptError):
    """No mixture satisfies the constraints."""

    exit_code = 4


class RunError(MixoptError):
    """Trials could not be run: the cluster is unreachable, or too many trials failed."""

    exit_code = 5
