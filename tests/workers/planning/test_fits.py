"""What does not fit is said first, with a remedy; what fits is not mentioned."""

from __future__ import annotations

from dataclasses import replace

from mixopt.cost import Disk, DomainEpochs, Machine, Memory, Speed, Stage
from workers.planning.fits import problems, warnings

MACHINE = Machine("this machine", "cpu", 2, 4e9, 10e9)
DISK = Disk(1e8, 1e8, 1e8, 1e6, 1e6, 1e6, needed_bytes=3e8)
MEMORY = Memory(pack_bytes=1e9, driver_bytes=1.6e9, total_bytes=3.6e9)
SPEED = Speed(1e9, "assumed", "assumed")
STAGE = Stage(
    name="search",
    source="trained/nano/1000000",
    what="48 trials",
    trials=48,
    at_most=False,
    reused=0,
    tokens=48 * 10**6,
    flops=1e14,
    flops_left=1e14,
    total_parameters=400_000,
    active_parameters=300_000,
    embedding_parameters=200_000,
    flops_per_token=2e6,
    measuring_share=0.1,
    packs=12,
    pack_size=4,
    seconds_per_trial=55,
    seconds=1300,
    pack_bytes=1e9,
    speed=SPEED,
)
DOMAIN = DomainEpochs("web", 1e9, 4.0, 1.0, 0.2, 0.2, 10**6, 10**5, "", 0.2, 0.2)


def test_what_fits_is_no_problem() -> None:
    assert problems(MACHINE, MEMORY, DISK, [STAGE]) == ()
    assert problems(replace(MACHINE, memory_bytes=None, disk_bytes=None), replace(MEMORY, total_bytes=1e15), DISK, [STAGE]) == ()
    assert warnings([STAGE], [DOMAIN]) == ()


def test_memory_names_what_can_be_lowered() -> None:
    (problem,) = problems(replace(MACHINE, memory_bytes=3.5e9), MEMORY, DISK, [STAGE])
    assert "2 packs of 4 and the driver take 3.6 GB, and 3.5 GB are available on this machine" in problem.message
    for remedy in ("`ray.pack_size`", "`ray.cpus`", "`nano`"):
        assert remedy in problem.remedy
    alone = replace(STAGE, pack_size=1, source="trained/small/1000000", pack_bytes=2e9)
    (problem,) = problems(replace(MACHINE, slots=1, memory_bytes=1e9), MEMORY, DISK, [STAGE, alone])
    assert "pack_size" not in problem.remedy
    assert "cpus" not in problem.remedy
    assert "`small`" in problem.remedy


def test_memory_of_a_gpu_is_compared_where_it_is_known() -> None:
    on_gpu, stage = replace(MEMORY, device_bytes=90e9), replace(STAGE, device_bytes=90e9, pack_size=64)
    machine = replace(MACHINE, device="cuda", device_bytes=80e9)
    (problem,) = problems(machine, on_gpu, DISK, [STAGE, stage])
    assert "a pack of 64 takes about 90 GB, and it has 80 GB" in problem.message
    assert problem.remedy.startswith("Lower `ray.pack_size`; or take a smaller proxy")
    assert problems(replace(machine, device_bytes=None), on_gpu, DISK, [stage]) == ()
    assert problems(machine, replace(on_gpu, device_bytes=70e9), DISK, [stage]) == ()


def test_disk_counts_what_is_still_to_come() -> None:
    (problem,) = problems(replace(MACHINE, disk_bytes=2e8), MEMORY, DISK, [STAGE])
    assert "0.3 GB more are needed" in problem.message
    assert "0.2 GB are free" in problem.message
    assert "`output`" in problem.remedy
    assert problems(replace(MACHINE, disk_bytes=2e8), MEMORY, replace(DISK, needed_bytes=1e8), [STAGE]) == ()


def test_domains_that_proxies_cannot_follow_are_named() -> None:
    floored, capped = replace(DOMAIN, name="math", note="floored"), replace(DOMAIN, name="books", note="capped")
    found = warnings([replace(STAGE, measuring_share=0.26)], [DOMAIN, floored, capped])
    assert len(found) == 3
    assert found[0].startswith("Proxies repeat math less often")
    assert found[1].startswith("Proxies repeat books more often")
    assert "26%" in found[2]


def test_a_verification_that_mostly_measures_says_so() -> None:
    check = replace(STAGE, name="verification", measuring_share=0.94)
    (found,) = warnings([STAGE, check], [DOMAIN])
    assert "adds 94%" in found
    assert "`verification.evaluation_tokens`" in found
    assert warnings([STAGE, replace(check, measuring_share=0.3)], [DOMAIN]) == ()
