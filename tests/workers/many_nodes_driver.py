"""A process with a cluster of two nodes on this machine, one of which is lost while packs train on it; used by test_many_nodes.py.

A process of its own, because pytest's may have joined another cluster already. Prints one line of JSON.

    python many_nodes_driver.py FOLDER
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np


def write_tokens(path: Path, seed: int) -> Path:
    from proxy_models.token_store import TokenWriter

    generator = np.random.default_rng(seed)
    with TokenWriter(path, 512, "tokenizer") as writer:
        for _ in range(60):
            ids = (generator.integers(1, 512) + generator.integers(1, 9) * np.arange(100)) % 511 + 1
            writer.add([*ids.tolist(), 0], text_bytes=300)
        writer.close(f"content-{path.stem}")
    return path


def make_trial(seed: int, tokens: int) -> Any:
    from mixopt.mixture import Mixture, Schedule
    from mixopt.proxy_config import ProxyConfig
    from mixopt.trial import Source, Trial, TrialDomain, trial_identity
    from workers.convert import recipe_for

    source = Source("trained", "nano", tokens)
    recipe = recipe_for(ProxyConfig(window=64, tokens_per_step=128, tokens=tokens), "nano", 512)
    schedule = Schedule.constant(Mixture.of({"code": 0.5, "prose": 0.5}))
    domains = tuple(TrialDomain(name, f"content-{name}", 2048) for name in ("code", "prose"))
    identity = trial_identity(schedule, source, seed, recipe, domains, "tokenizer", "1")
    return Trial(identity, schedule, source, seed, recipe, domains, "tokenizer", "1")


def main(folder: Path) -> None:
    from workers.ray_runner import LOCAL_SETTINGS

    temporary = tempfile.mkdtemp(prefix="mixopt-")  # short, for the sockets of Ray
    os.environ.update({**LOCAL_SETTINGS, "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_TMPDIR": temporary})
    from ray.cluster_utils import Cluster

    from mixopt.runner import Completed, Evaluation, Failed
    from workers.ray_runner import RayRunner
    from workers.trial_folder import TrialFolder

    small = {"num_cpus": 1, "object_store_memory": 80 << 20}
    Path(temporary, "ray").mkdir()
    cluster = Cluster(initialize_head=True, head_node_args={**small, "include_dashboard": False})
    lost = cluster.add_node(**small)
    trials = [make_trial(seed, 128 * 600) for seed in range(2)]
    catalog = {f"content-{name}": write_tokens(folder / f"{name}.tokens", seed) for seed, name in enumerate(("code", "prose"))}
    valid = Evaluation("key", "valid/code", "text", write_tokens(folder / "valid.tokens", 7), max_tokens=512, curve_tokens=128)
    store = folder / "store"
    runner = RayRunner(store, catalog, {trials[0].source.key: [valid]}, pack_size=1, address=cluster.address, checkpoint_seconds=0.2)
    slots = [runner.capacity().slots]
    runner.submit(trials)
    ends: list[Any] = []
    removed = False
    for event in runner.events():
        if isinstance(event, Completed | Failed):
            ends.append(event)
        if not removed and all((store / "trials" / trial.trial_id / "checkpoint.safetensors").exists() for trial in trials):
            removed = True
            cluster.remove_node(lost, allow_graceful=False)
    while runner.capacity().slots == slots[0]:
        time.sleep(0.2)
    slots.append(runner.capacity().slots)
    starts = {
        trial.trial_id: [line["tokens"] for line in TrialFolder(store, trial.trial_id).read_log() if line["event"] == "training"]
        for trial in trials
    }
    runner.close()
    cluster.shutdown()
    shutil.rmtree(temporary, ignore_errors=True)
    body = {
        "removed": removed,
        "slots": slots,
        "completed": sorted(event.trial_id for event in ends if isinstance(event, Completed)),
        "failed": [str(event) for event in ends if isinstance(event, Failed)],
        "starts": starts,
    }
    print(json.dumps(body), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
