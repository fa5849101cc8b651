from __future__ import annotations

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixopt.cost import Shape
from mixopt.mixture import Mixture, Schedule
from mixopt.trial import Source, Trial, TrialDomain
from proxy_models.places import FIXED_PLACES
from workers.packing import PACK_BYTES, default_pack_size, pack_size_of, plan_packs


def trial(number: int, tokens: int = 8192, tokens_per_step: int = 1024, rate: float = 3e-3) -> Trial:
    return Trial(
        trial_id=f"{number:020x}",
        schedule=Schedule.constant(Mixture(("a", "b"), (0.5, 0.5))),
        source=Source("trained", "nano", tokens),
        seed=number,
        recipe={"vocab_size": 512, "tokens_per_step": tokens_per_step, "window": 64, "learning_rate": rate},
        domains=(TrialDomain("a", "hash-a", 4096), TrialDomain("b", "hash-b", 4096)),
        tokenizer_hash="t",
        engine_version="1",
    )


shapes = st.tuples(st.sampled_from([8192, 16384]), st.sampled_from([256, 512, 1024]), st.sampled_from([1e-3, 3e-3]))
trial_lists = st.lists(shapes, max_size=40).map(lambda rows: [trial(number, *row) for number, row in enumerate(rows)])
slot_counts = st.integers(1, 9)
pack_sizes = st.none() | st.integers(1, 12)


@given(trial_lists, slot_counts, pack_sizes)
def test_every_trial_is_in_exactly_one_pack_of_its_shape_and_no_pack_is_too_large(
    trials: list[Trial], slots: int, pack_size: int | None
) -> None:
    packs = plan_packs(trials, slots, pack_size)
    assert sorted(t.trial_id for pack in packs for t in pack.trials) == sorted(t.trial_id for t in trials)
    for pack in packs:
        assert len({(t.source.key, t.recipe["tokens_per_step"]) for t in pack.trials}) == 1
        assert 1 <= pack.places <= (pack_size or default_pack_size(pack.trials[0].recipe["tokens_per_step"]))
        assert pack.places == len(pack.trials) or slots == 1, "somebody waits while another slot could be free first"


def test_members_of_a_pack_have_rates_of_their_own_and_everything_else_in_common() -> None:
    """A sweep of learning rates is one pack; any other setting makes another."""
    trials = [trial(number, rate=rate) for number, rate in enumerate((3e-5, 3e-4, 3e-3, 9e-3))]
    (pack,) = plan_packs(trials, slots=1, pack_size=4)
    assert pack.trials == tuple(trials)
    other = dataclasses.replace(trial(9), recipe={**trial(9).recipe, "clip": 0.5})
    assert len(plan_packs([*trials, other], slots=1, pack_size=8)) == 2


@given(st.integers(1, 60), slot_counts, st.integers(1, 12))
def test_slots_get_equal_work(count: int, slots: int, pack_size: int) -> None:
    packs = [pack.trials for pack in plan_packs([trial(number) for number in range(count)], slots, pack_size, busy=slots == 1)]
    assert max(map(len, packs)) - min(map(len, packs)) <= 1
    # Slots take the next pack as they become free, so rounds are what counts.
    rounds = math.ceil(len(packs) / slots)
    assert rounds == math.ceil(math.ceil(count / pack_size) / slots), "more rounds than the trials need"
    assert len(packs) == min(count, rounds * slots), "a slot idles while others train packs that could be split"


@given(st.integers(1, 60), st.integers(1, 12))
def test_one_slot_gets_all_trials_in_as_many_rounds_as_they_need(count: int, pack_size: int) -> None:
    (pack,) = plan_packs([trial(number) for number in range(count)], 1, pack_size)
    assert len(pack.trials) == count
    rounds = math.ceil(count / pack_size)
    assert math.ceil(count / pack.places) == rounds, "more rounds than the trials need"
    assert pack.places == 1 or math.ceil(count / (pack.places - 1)) > rounds, "fewer places would do, and be taken more evenly"


@given(st.integers(1, 300), st.integers(1, 9), st.none() | st.integers(1, 80))
def test_gpus_get_equal_shares_of_all_trials_in_fixed_places(count: int, slots: int, pack_size: int | None) -> None:
    packs = plan_packs([trial(number) for number in range(count)], slots, pack_size, "cuda")
    sizes = [len(pack.trials) for pack in packs]
    assert (sum(sizes), len(sizes)) == (count, min(count, slots))
    assert max(sizes) - min(sizes) <= 1
    for pack in packs:
        assert pack.places in FIXED_PLACES
        assert pack.places <= (pack_size or 64)


def test_nobody_waits_in_a_pack_while_other_slots_are_busy() -> None:
    """They come free while this one works, and should find packs to start."""
    for device in ("cpu", "cuda"):
        packs = plan_packs([trial(number) for number in range(12)], 1, 4, device, busy=1)
        assert [len(pack.trials) for pack in packs] == [4, 4, 4]


@given(trial_lists, slot_counts, pack_sizes)
def test_the_plan_depends_on_its_arguments_alone(trials: list[Trial], slots: int, pack_size: int | None) -> None:
    assert plan_packs(trials, slots, pack_size) == plan_packs(list(trials), slots, pack_size)


def test_the_dearest_packs_start_first() -> None:
    packs = plan_packs([trial(0, 8192), trial(1, 65536), trial(2, 16384)], slots=1)
    assert [pack.trials[0].source.tokens for pack in packs] == [65536, 16384, 8192]


def test_packs_are_small_where_steps_are_large_and_larger_on_gpus() -> None:
    assert [default_pack_size(n) for n in (128, 512, 1024, 4096)] == [16, 8, 4, 4]
    assert [default_pack_size(n, "cuda") for n in (512, 1024, 16_384, 1_000_000)] == [64, 64, 4, 1]


@pytest.mark.parametrize(("slots", "pack_size"), [(0, None), (1, 0)])
def test_nothing_to_run_on_is_refused(slots: int, pack_size: int | None) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        plan_packs([trial(0)], slots, pack_size)


def test_packs_of_large_proxies_are_as_small_as_memory_asks() -> None:
    """By default 16 members would step together at 128 tokens; of medium that would be some 60 GB."""
    assert [pack_size_of(Shape(size, 8192, 128, 128)) for size in ("nano", "micro", "small", "medium", "large")] == [16, 16, 16, 1, 1]
    assert pack_size_of(Shape("medium-dense", 8192, 128, 128)) in range(2, 16)
    assert pack_size_of(Shape("micro", 8192, 512, 1024), "cuda") == 64
    assert pack_size_of(Shape("medium", 8192, 512, 1024), "cuda") in range(8, 64)
    assert PACK_BYTES["cpu"] < PACK_BYTES["cuda"]
