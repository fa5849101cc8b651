"""What a plan has to say first: what does not fit, and what will make the answer weaker; each with its remedy."""

from __future__ import annotations

from collections.abc import Sequence

from mixopt.cost import Disk, DomainEpochs, Machine, Memory, Problem, Stage
from mixopt.domains import MINIMUM_UNIQUE_WINDOWS
from workers.evaluations import EVALUATION_SHARE

DEAR_MEASURING = 0.5
"""Share of the training from which on measuring is worth a word; a matter of taste."""


def problems(machine: Machine, memory: Memory, disk: Disk, stages: Sequence[Stage]) -> tuple[Problem, ...]:
    """What would end the search before its end. Nothing is said of what is not known."""
    found = []
    if machine.memory_bytes is not None and memory.total_bytes > machine.memory_bytes:
        largest = max(stages, key=lambda stage: stage.pack_bytes)
        remedies = []
        if largest.pack_size > 1:
            remedies.append("lower `ray.pack_size`")
        if machine.slots > 1 and machine.where == "this machine":
            remedies.append("lower `ray.cpus`")
        remedies.append(f"take a smaller proxy than `{largest.source.split('/')[1]}`, or free memory")
        found.append(
            Problem(
                f"Memory does not suffice: {machine.slots} packs of {largest.pack_size} and the driver take {_gigabytes(memory.total_bytes)}, "
                f"and {_gigabytes(machine.memory_bytes)} are available on {machine.where}.",
                f"{'; '.join(remedies).capitalize()}.",
            )
        )
    if machine.device_bytes is not None and memory.device_bytes > machine.device_bytes:
        largest = max(stages, key=lambda stage: stage.device_bytes)
        found.append(
            Problem(
                f"The memory of a GPU does not suffice: a pack of {largest.pack_size} takes about {_gigabytes(memory.device_bytes)}, and it has "
                f"{_gigabytes(machine.device_bytes)}.",
                f"{'Lower `ray.pack_size`; or t' if largest.pack_size > 1 else 'T'}ake a smaller proxy than `{largest.source.split('/')[1]}`.",
            )
        )
    if machine.disk_bytes is not None and disk.needed_bytes > machine.disk_bytes:
        found.append(
            Problem(
                f"Disk does not suffice: {_gigabytes(disk.needed_bytes)} more are needed in the output folder, and "
                f"{_gigabytes(machine.disk_bytes)} are free.",
                "Free space, name another `output`, or run fewer `search.trials`.",
            )
        )
    return tuple(found)


def warnings(stages: Sequence[Stage], domains: Sequence[DomainEpochs]) -> tuple[str, ...]:
    """What will make the answer weaker, though the search runs."""
    found = []
    floored = [domain.name for domain in domains if domain.note == "floored"]
    capped = [domain.name for domain in domains if domain.note == "capped"]
    if floored:
        found.append(
            f"Proxies repeat {', '.join(floored)} less often than the target run will: below {MINIMUM_UNIQUE_WINDOWS} windows of unique text "
            "a domain is floored, so the search cannot see what repeating it costs. Raise `proxy.tokens` (or lower `proxy.window`)."
        )
    if capped:
        found.append(
            f"Proxies repeat {', '.join(capped)} more often than the target run will: fewer tokens are prepared than such a proxy should see. "
            "Add documents, or lower `proxy.tokens`."
        )
    share = next(stage.measuring_share for stage in stages if stage.name == "search")
    if share > EVALUATION_SHARE:
        found.append(
            f"Measuring losses costs {share:.0%} of the training of each trial, more than {EVALUATION_SHARE:.0%}: raise `proxy.tokens` or lower "
            "`proxy.window`."
        )
    found.extend(
        f"The {stage.name} scores every held-out set, which adds {stage.measuring_share:.0%} to its training; `verification.evaluation_tokens` "
        "limits the tokens per set."
        for stage in stages
        if stage.name == "verification" and stage.measuring_share > DEAR_MEASURING
    )
    return tuple(found)


def _gigabytes(value: float) -> str:
    return f"{value / 1e9:.3g} GB"
