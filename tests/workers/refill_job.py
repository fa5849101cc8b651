"""A pack of two places for four trials, of which the first diverges at once; as a program, one that is killed while it refills a place.

    python refill_job.py FOLDER WHEN NUMBER

kills itself (SIGKILL) before or after it has given the place of somebody who left to the next, the NUMBERth time.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mixopt.mixture import Mixture, Schedule
from mixopt.proxy_config import ProxyConfig
from mixopt.runner import Evaluation
from mixopt.trial import Source, Trial, TrialDomain, trial_identity
from proxy_models.token_store import TokenWriter
from workers.convert import recipe_for
from workers.train_pack import PackJob, run_pack

STEP, STEPS = 64, 8
SOURCE = Source("trained", "nano", STEPS * STEP)


def make_trial(seed: int, rate: float) -> Trial:
    recipe = recipe_for(ProxyConfig(window=64, tokens_per_step=STEP, tokens=SOURCE.tokens, learning_rate=rate), "nano", 128)
    schedule = Schedule.constant(Mixture(("a",), (1.0,)))
    domains = (TrialDomain("a", "content-a", 1024),)
    identity = trial_identity(schedule, SOURCE, seed, recipe, domains, "tokenizer", "1")
    return Trial(identity, schedule, SOURCE, seed, recipe, domains, "tokenizer", "1")


def make_job(folder: Path, control: Path) -> PackJob:
    """Diverging, then three that do not; checkpoints after every step."""
    path = folder / "a.tokens"
    if not path.exists():
        with TokenWriter(path, 128, "tokenizer") as writer:
            writer.add((np.arange(1, 1400) * 7 % 127 + 1).tolist(), text_bytes=3000)
            writer.close("content-a")
    trials = (make_trial(0, 1e30), *(make_trial(seed, 3e-3) for seed in (1, 2, 3)))
    evaluations = (Evaluation("key", "valid/a", "text", path, 64),)
    return PackJob("pack", folder, control, trials, {"content-a": path}, evaluations, checkpoint_seconds=0.0, places=2)


def die_at(when: str, number: int) -> None:
    from proxy_models.pack import MemberRun, Pack

    arrange, refills = Pack.arrange, 0

    def arrange_or_die(self: Pack, newcomers: Sequence[MemberRun], waiting: int) -> None:
        nonlocal refills
        refills += bool(newcomers and self.runs)
        due = refills == number and bool(newcomers)
        if due and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        arrange(self, newcomers, waiting)
        if due:
            os.kill(os.getpid(), signal.SIGKILL)

    Pack.arrange = arrange_or_die  # type: ignore[method-assign]


if __name__ == "__main__":
    die_at(sys.argv[2], int(sys.argv[3]))
    run_pack(make_job(Path(sys.argv[1]), Path(sys.argv[1]) / "control"))
