"""Asks a strategy for the next trials while those before them still run.

A strategy that fits models when it is asked takes seconds, and a free worker would wait for it. So the question is put as soon as all workers are busy,
in a thread of its own, and its answer is taken when one becomes free. The main trade-off: what ends meanwhile is not in the answer, which is thus
older by the time that one trial takes. An empty answer is asked for again, since it may have waited for just that.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from mixopt.trial import Trial

LEAVE_AFTER_SECONDS = 10.0
"""How long a search that ends early waits for a question that is under way."""

Question = Callable[[], Sequence[Trial]]


class AskAhead:
    """At most one question under way. `begin` it, then `take` its answer, which waits for it and raises what it raised."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._answer: list[Trial] = []
        self._error: BaseException | None = None

    @property
    def under_way(self) -> bool:
        """Whether a question was put whose answer nobody has taken."""
        return self._thread is not None

    def begin(self, question: Question) -> None:
        assert self._thread is None, "one question at a time"

        def think() -> None:
            try:
                self._answer = list(question())
            except BaseException as error:  # noqa: BLE001 - raised again where the answer is taken
                self._error = error

        self._thread = threading.Thread(target=think, name="ask-ahead", daemon=True)
        self._thread.start()

    def take(self) -> list[Trial]:
        """The answer; empty where no question was put."""
        if self._thread is None:
            return []
        self._thread.join()
        answer, error = self._answer, self._error
        self._thread, self._answer, self._error = None, [], None
        if error is not None:
            raise error
        return answer

    def leave(self) -> None:
        """Forgets a question that is under way, once it has come to its end or a while has passed: nothing hangs on its answer."""
        if self._thread is not None:
            self._thread.join(LEAVE_AFTER_SECONDS)
            self._thread = None
