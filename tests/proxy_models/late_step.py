"""A step on the CPU that behaves as one on a GPU may: places come in fixed numbers, and how a step went is told some steps later."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import Tensor

from proxy_models.pack_step import PackStep, StepReport


class LateStep(PackStep):
    """Keeps members that diverged from stepping, as flags on a device would, and reports each step when `delay` more have been issued."""

    fixed_places = True
    delay = 3

    _late: list[StepReport]
    _dead: set[int]

    def step(self, tokens_KBS: Tensor, rate_scale_K: Sequence[float], active_K: Sequence[bool], scored_KBT: Tensor | None = None) -> None:
        if not hasattr(self, "_late"):
            self._late, self._dead = [], set()
        super().step(tokens_KBS, rate_scale_K, [active and k not in self._dead for k, active in enumerate(active_K)], scored_KBT)
        (report,) = super().reports(wait=True)
        dead = [k for k, active in enumerate(active_K) if active and not report.stepped_K[k]]
        losses = [math.nan if k in self._dead else loss for k, loss in enumerate(report.losses_nats_K)]
        self._dead.update(dead)
        self._late.append(StepReport(losses, report.norms_K, report.stepped_K))

    def reports(self, wait: bool) -> list[StepReport]:
        known = len(self._late) if wait else max(0, len(self._late) - self.delay)
        reports, self._late = self._late[:known], self._late[known:]
        return reports

    def place(self, k: int, seed: int, rate: float, state: Mapping[str, Tensor] | None = None) -> None:
        self._check_settled()
        super().place(k, seed, rate, state)
        if hasattr(self, "_dead"):
            self._dead.discard(k)

    def select(self, members: Sequence[int]) -> None:
        self._check_settled()
        super().select(members)
        self._dead = {members.index(k) for k in getattr(self, "_dead", set()) if k in members}

    def member_state(self, k: int) -> dict[str, Tensor]:
        self._check_settled()
        return super().member_state(k)

    def _check_settled(self) -> None:
        assert not getattr(self, "_late", []), "it is not known yet how the last steps went"
