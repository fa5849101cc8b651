"""How fast a slot trains: from trials in the record, from a probe, from another shape, or assumed; and always which of these.

Speed is useful training FLOPs per second of one slot while all slots are busy. A recorded trial's seconds include measuring its losses, so
that part is taken out again. The trade-off: trials of all times count alike, and a machine may have been busy with other work during some.
"""

from __future__ import annotations

import json
import math
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

from mixopt.cost import Shape, Speed
from mixopt.history import TrialRecord
from proxy_models.config import proxy_config
from workers.convert import shape_of
from workers.packing import Device

ASSUMED_FLOPS_PER_SECOND = 100e9
"""Of one core, about: 47,000 tokens per CPU-second of nano with 4,096 entries at a window of 512, on an AMD EPYC core with AVX-512 whose products run in
oneDNN, times its 2.39 million FLOPs per token is 112 billion. Other processors may differ several times."""

GPU_NAME = "one H100"
GPU_PEAK_FLOPS = 989e12
"""H100 SXM, bfloat16 with dense matrices, NVIDIA's data sheet of the H100."""
GPU_UTILISATION = 0.1
"""An assumption: products of inner dimension 64 to 512 are far from peak. The roofline of methods/packed-training.md (section 6, arithmetic too) gives
packs of micro and small 7 to 15% of peak at 256 to 1,024 tokens per step, of which it expects about half; a proxy some times wider should do better than
that half."""


def measured_speed(
    records: Sequence[TrialRecord], measuring_shares: Mapping[str, float], default_share: float
) -> dict[Shape, tuple[float, int]]:
    """Speed and number of trials per shape, over all trials that have an outcome.

    Args:
        measuring_shares: source key -> cost of measuring losses as a share of the training; `default_share` for other sources.
    """
    flops: dict[Shape, float] = {}
    seconds: dict[Shape, float] = {}
    counts: dict[Shape, int] = {}
    for record in {record.trial.trial_id: record for record in records}.values():
        outcome = record.outcome
        if outcome is None or not outcome.seconds > 0 or record.trial.source.evaluator != "trained":
            continue
        shape = shape_of(record.trial)
        share = measuring_shares.get(record.trial.source.key, default_share)
        flops[shape] = flops.get(shape, 0.0) + outcome.flops
        seconds[shape] = seconds.get(shape, 0.0) + outcome.seconds / (1 + share)
        counts[shape] = counts.get(shape, 0) + 1
    return {shape: (flops[shape] / seconds[shape], counts[shape]) for shape in flops}


def trained_here(store: Path, records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Those whose folder does not name another host: a record may have been copied, or a cluster have worked on it."""
    here = socket.gethostname()
    return [record for record in records if _host(store / "trials" / record.trial.trial_id / "lock") in (None, here)]


def choose_speed(
    shape: Shape,
    recorded: Mapping[Shape, tuple[float, int]],
    probed: Mapping[Shape, tuple[float, float]],
    device: Device,
    where: str,
) -> Speed:
    """The best there is for `shape`: record, probe, another shape, an assumption.

    Args:
        probed: shape -> speed and seconds of training that it rests on.
        where: the machine that trials will run on, for the sentence.
    """
    if shape in recorded:
        speed, count = recorded[shape]
        return Speed(speed, "record", f"measured from {count} {shape.size} trials in the record")
    if shape in probed:
        speed, seconds = probed[shape]
        elsewhere = "" if where == "this machine" else f" of this machine, not of {where}"
        return Speed(
            speed, "probe", f"measured by a probe of {shape.size} just now, {seconds:.0f} s of training on all slots at once{elsewhere}"
        )
    if recorded or probed:
        near = min([*recorded, *probed], key=lambda other: (other.size != shape.size, _distance(shape, other), other.size))
        speed = recorded[near][0] if near in recorded else probed[near][0]
        source = "trials in the record" if near in recorded else "the probe"
        return Speed(
            speed,
            "scaled",
            f"scaled by FLOPs from {source} of {near.size} (vocabulary {near.vocab_size:,}, window {near.window}, "
            f"{near.tokens_per_step:,} tokens per step), since nothing of this shape was measured",
        )
    if device == "cuda":
        speed = GPU_PEAK_FLOPS * GPU_UTILISATION
        return Speed(
            speed, "assumed", f"assumed, not measured on {where}: {GPU_UTILISATION:.0%} of an H100's {GPU_PEAK_FLOPS / 1e12:.0f} TFLOP/s"
        )
    return Speed(
        ASSUMED_FLOPS_PER_SECOND, "assumed", f"assumed, not measured on {where}: {ASSUMED_FLOPS_PER_SECOND / 1e9:.0f} GFLOP/s per core"
    )


def _distance(one: Shape, other: Shape) -> float:
    """How unlike two shapes of different or equal size are, by the ratios of what speed depends on; only its order matters."""
    work, other_work = (proxy_config(shape.size, shape.vocab_size).training_flops_per_token(shape.window) for shape in (one, other))
    pairs = (
        (one.tokens_per_step, other.tokens_per_step),
        (one.vocab_size, other.vocab_size),
        (one.window, other.window),
        (work, other_work),
    )
    return sum(abs(math.log(a / b)) for a, b in pairs)


def _host(lock: Path) -> str | None:
    try:
        body = json.loads(lock.read_text(encoding="utf-8"))
        return str(body["host"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
