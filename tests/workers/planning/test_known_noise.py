"""What is known of noise before a search: nothing is made up, and where a number comes from is said."""

from __future__ import annotations

import numpy as np
import pytest

from mixopt.swarm import Swarm
from mixopt.trial import Source
from workers.planning.known_noise import UNKNOWN, from_notes, from_swarm

METRICS = ["clear", "noisy"]


def swarm() -> Swarm:
    """Six mixtures, two of them twice. A mixture moves `clear` by far more than a seed does; `noisy` only a seed moves."""
    shares = [0.5, 0.5, 0.9, 0.9, 0.1, 0.3, 0.6, 0.8]
    noise = [0.02, -0.02, 0.02, -0.02, 0.01, -0.01, 0.01, -0.01]
    losses = [[2 + share + error / 10, 3 + error] for share, error in zip(shares, noise, strict=True)]
    schedules = np.array([[[share, 1 - share]] for share in shares])
    return Swarm.from_arrays(("a", "b"), schedules, METRICS, np.array(losses), Source("trained", "nano", 10**6))


def test_a_target_that_only_seeds_move_is_noise() -> None:
    known = from_swarm(swarm(), METRICS, "this search")
    assert known is not None
    assert known.origin == "record"
    assert {target.metric: bool(target.screened) for target in known.targets} == {"clear": False, "noisy": True}
    assert known.sentence.startswith("1 of the 2 losses in the objective is noise at this size (measured by 8 trials of this search")
    (clear,) = [target for target in known.targets if target.metric == "clear"]
    assert clear.seed_std == pytest.approx(0.00283, rel=0.01)


def test_where_all_are_noise_all_are_named() -> None:
    """The objective would then keep them, having nothing else; a plan must not say that none is noise."""
    known = from_swarm(swarm(), ["noisy"], "this search")
    assert known is not None
    assert known.sentence.startswith("1 of the 1 losses in the objective is noise")
    assert "not above its seed noise" in known.targets[0].screened


def test_too_few_trials_know_nothing() -> None:
    assert from_swarm(Swarm.empty(("a", "b")), METRICS, "this search") is None
    some = swarm()
    assert from_swarm(some.select(some.trial_ids[4:]), METRICS, "this search") is None


@pytest.mark.parametrize(
    ("size", "tokens", "noted"), [("nano", 10**6, True), ("nano", 500_000, True), ("nano", 150_000, False), ("micro", 10**6, False)]
)
def test_notes_speak_of_their_own_size_only(size: str, tokens: int, noted: bool) -> None:
    known = from_notes(size, tokens)
    assert (known.origin, known.targets) == ("notes" if noted else "none", ())
    if noted:
        assert "another corpus" in known.sentence
        assert "0.021" in known.sentence
        assert "0.061" in known.sentence
    else:
        assert known.sentence == UNKNOWN
