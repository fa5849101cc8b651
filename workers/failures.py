"""What an exception means for a trial: the typed failure that the search decides by.

Only the kind matters to the search (try again or give up), so this is one table from exception types to kinds. Types are matched by name
along the class hierarchy, because those of torch and Ray must not be imported to look at them, and because Ray re-raises a task's exception
as a class of its own making that derives from the original.
"""

from __future__ import annotations

from mixopt.trial import Failure, FailureKind

KINDS = {
    "TaskCancelledError": FailureKind.CANCELLED,
    "CancelledError": FailureKind.CANCELLED,
    "OutOfMemoryError": FailureKind.OUT_OF_MEMORY,  # torch.OutOfMemoryError and ray.exceptions.OutOfMemoryError
    "MemoryError": FailureKind.OUT_OF_MEMORY,
    "WorkerCrashedError": FailureKind.WORKER_LOST,
    "NodeDiedError": FailureKind.WORKER_LOST,
    "LocalRayletDiedError": FailureKind.WORKER_LOST,
    "ObjectLostError": FailureKind.WORKER_LOST,
    "RaySystemError": FailureKind.WORKER_LOST,
    "DamagedTokenFile": FailureKind.DATA,
    "LostParent": FailureKind.DATA,
    "FileNotFoundError": FailureKind.DATA,
    "DataError": FailureKind.DATA,
}
"""Exception class -> kind. Any other is an error of ours, and trying it again would not help."""

# The CPU allocator of torch raises a plain RuntimeError; this is the part of its message that did not change over the years.
CPU_ALLOCATOR_MESSAGE = "can't allocate memory"

MESSAGE_CHARACTERS = 500


def failure_of(error: BaseException, tokens: int = 0) -> Failure:
    """The failure that `error` stands for; `tokens` had been trained."""
    names = [cls.__name__ for cls in type(error).__mro__]
    kind = next((KINDS[name] for name in names if name in KINDS), FailureKind.ERROR)
    text = " ".join(str(error).split())
    if kind is FailureKind.ERROR and CPU_ALLOCATOR_MESSAGE in text:
        kind = FailureKind.OUT_OF_MEMORY
    return Failure(kind, f"{names[0]}: {text}"[:MESSAGE_CHARACTERS], tokens)
