"""The plan on a terminal: problems first, tables within 80 columns, no number without its unit."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from mixopt.cost import (
    Advice,
    Budget,
    Disk,
    DomainEpochs,
    Machine,
    Memory,
    NoiseKnown,
    NoiseOfTarget,
    Plan,
    Preparation,
    Problem,
    Speed,
    Stage,
)
from mixopt.plan_page import duration, show_plan, size

SEARCH = Stage(
    name="search",
    source="trained/nano/1000000",
    what="128 trials of the strategy regression",
    trials=128,
    at_most=False,
    reused=31,
    tokens=127_926_272,
    flops=3.058e14,
    flops_left=2e14,
    total_parameters=406_848,
    active_parameters=333_120,
    embedding_parameters=262_144,
    flops_per_token=2.39e6,
    measuring_share=0.1,
    packs=25,
    pack_size=4,
    seconds_per_trial=55.0,
    seconds=2667.0,
    pack_bytes=461e6,
    speed=Speed(44e9, "record", "measured from 31 nano trials in the record"),
)
VERIFICATION = replace(
    SEARCH, name="verification", source="trained/micro/1500000", trials=15, at_most=True, reused=0, flops=1.82e14, tokens=22_487_040
)
NAMES = ("web_crawl_en", "code_javascript", "math")
PLAN = Plan(
    name="pretraining",
    search_id="39531562f1aec579f451",
    strategy="regression",
    seeds=3,
    budget_tokens=3e11,
    machine=Machine("this machine", "cpu", 2, 21e9, 77e9),
    preparation=Preparation(False, 1.5e8, 28.0, "at 8 MB/s"),
    stages=(SEARCH, VERIFICATION),
    memory=Memory(8e8, 1.6e9, 3.2e9),
    disk=Disk(1e8, 1.8e8, 1.6e8, 1e6, 5e6, 8e5, 4e8),
    domains=tuple(DomainEpochs(name, 4.2e11, 4.0, 1.0, 0.2, 12.34, None, 1_400_000, "floored", 0.21, 1.23) for name in NAMES),
    noise=NoiseKnown(
        "record", "1 of the 2 is noise.", (NoiseOfTarget("target/arc", 0.07, ""), NoiseOfTarget("target/coin", 0.2, "varies by 0.1"))
    ),
    advice=Advice("Olmix says so.", False, 333_120, 15e6, "width 448", 15_519_168, 1.04e8, "6 per parameter", "one H100", (
        Budget("20 tokens per active parameter", 3.1e8, 1.55e18, 1.78e7, 1.57e4),
    )),
    problems=(),
    warnings=("Proxies repeat math less often.",),
    notes=("Time is training.",),
)  # fmt: skip


def shown(plan: Plan, width: int = 80) -> list[str]:
    console = Console(width=width, file=io.StringIO())
    show_plan(plan, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_tables_fit_80_columns_with_whole_names() -> None:
    lines = shown(PLAN)
    tables = [line for line in lines if line.startswith(" ")]
    assert all(len(line.rstrip()) <= 80 for line in tables if not line.startswith("  "))
    for name in NAMES:
        (row,) = [line for line in lines if line.startswith(f" {name} ")]
        assert "0.20/0.21" in row
        assert "12.34/1.23" in row
        assert row.rstrip().endswith("floored")
    (row,) = [line for line in lines if line.startswith(" search")]
    assert row.split() == ["search", "128", "31", "128M", "3.06e14", "55", "s", "25", "x", "4", "44", "min"]
    (row,) = [line for line in lines if line.startswith(" verification")]
    assert row.split()[:4] == ["verification", "≤15", "0", "≤22.5M"]
    (row,) = [line for line in lines if line.startswith(" total")]
    assert row.split()[:5] == ["total", "≤143", "31", "≤150M", "≤4.88e14"]


def test_one_pack_for_trials_that_take_turns_says_so_within_80_columns() -> None:
    one_slot = replace(PLAN, stages=(replace(SEARCH, packs=1), replace(VERIFICATION, packs=1)))
    lines = shown(one_slot)
    assert all(len(line.rstrip()) <= 80 for line in lines if line.startswith((" search", " verification", " total")))
    (row,) = [line for line in lines if line.startswith(" verification")]
    assert "1, ≤4 at once" in row


def test_what_does_not_fit_comes_first() -> None:
    lines = shown(replace(PLAN, problems=(Problem("Memory does not suffice.", "Lower `ray.cpus`."),)))
    assert lines[0].startswith("Plan of pretraining: search 39531562, 3 domains")
    assert lines[1] == "Problem: Memory does not suffice. Lower `ray.cpus`."
    assert not any("Problem" in line for line in shown(PLAN))


def test_every_part_of_the_answer_is_there() -> None:
    text = "\n".join(shown(PLAN))
    for sentence in (
        "Speed of nano: 44 GFLOP/s per slot, measured from 31 nano trials in the record.",
        "Memory: 2 packs of 800 MB, 1.6 GB for the driver and Ray: 3.2 GB; 21 GB available.",
        "up to 160 MB more for checkpoints while trials run; 400 MB still to come, 77 GB free.",
        "Preparing the corpus: 28 s for 150 MB of text, at 8 MB/s.",
        "coin: varies by 0.1",
        "arc 0.07.",
        "nano has 333K active parameters (of these 262K in the embedding), 45 times fewer",
        "with 310M tokens each (20 tokens per active parameter): 1.55e18 FLOPs, 206 days here, 4.36 h on one GPU",
        "Note well: Proxies repeat math less often.",
    ):
        assert sentence in text
    assert "enough by this evidence" in "\n".join(shown(replace(PLAN, advice=replace(PLAN.advice, enough=True))))
    one_size = replace(PLAN, stages=(SEARCH, replace(VERIFICATION, source="trained/nano/2000000")))
    assert "\n".join(shown(one_size)).count("Speed of nano") == 1, "the same speed is said once"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (55, "55 s"), (840, "14 min"), (12_960, "3.6 h"), (2.3e7, "266 days"), (1.2e8, "1,389 days")]
)
def test_durations_read_as_people_say_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(("value", "text"), [(12, "12 bytes"), (4.8e7, "48 MB"), (2.5e9, "2.5 GB"), (1.2e12, "1.2 TB")])
def test_sizes_have_a_unit(value: float, text: str) -> None:
    assert size(value) == text
