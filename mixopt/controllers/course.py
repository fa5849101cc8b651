"""What a controller had a run trained on, as few phases: a schedule whose length does not grow with the number of decisions.

Where there are more than 64 phases, neighbours are joined into their average, two by two. The average of the run is exact at any time;
the main trade-off is that a phase of a long run is then a few decisions, which differ little.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from mixopt.mixture import FloatArray

MOST_PHASES = 64
SAME_WITHIN = 1e-12


@dataclass(frozen=True, eq=False)
class Course:
    """Phases so far.

    Attributes:
        tokens: of each phase, shape (phases,).
        drawn: tokens per domain and phase, as asked for, shape (phases, domains).
        grain: phases are joined until they hold so many tokens; 0 before anything was joined.
    """

    tokens: FloatArray
    drawn: FloatArray
    grain: float = 0.0

    @classmethod
    def empty(cls, domains: int) -> Course:
        return cls(np.zeros(0), np.zeros((0, domains)))

    def then(self, weights: FloatArray, tokens: float) -> Course:
        """The course with so many tokens of a mixture (domains,) behind it."""
        if tokens <= 0:
            return self
        same = len(self.tokens) > 0 and np.abs(self.drawn[-1] / self.tokens[-1] - weights).max() <= SAME_WITHIN
        if same or (len(self.tokens) and self.tokens[-1] < self.grain):
            counts, drawn = self.tokens.copy(), self.drawn.copy()
            counts[-1] += tokens
            drawn[-1] += tokens * weights
            return Course(counts, drawn, self.grain)
        longer = Course(np.append(self.tokens, tokens), np.concatenate([self.drawn, (tokens * weights)[None]]), self.grain)
        return longer._joined() if len(longer.tokens) > MOST_PHASES else longer

    def _joined(self) -> Course:
        starts = np.arange(0, len(self.tokens), 2)
        counts = np.add.reduceat(self.tokens, starts)
        return Course(counts, np.add.reduceat(self.drawn, starts, axis=0), float(np.median(counts)))

    @property
    def average(self) -> FloatArray:
        """The mixture of all tokens, shape (domains,); there must be some."""
        return np.asarray(self.drawn.sum(axis=0) / self.tokens.sum())

    def to_json(self) -> dict[str, Any]:
        return {"tokens": self.tokens.tolist(), "drawn": self.drawn.tolist(), "grain": self.grain}

    @classmethod
    def from_json(cls, stored: dict[str, Any], domains: int) -> Course:
        return cls(
            np.array(stored["tokens"], dtype=np.float64), np.array(stored["drawn"], dtype=np.float64).reshape(-1, domains), stored["grain"]
        )
