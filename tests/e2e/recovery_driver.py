"""A driver that can be killed: trains one short and two long trials on Ray and prints each event as a line of JSON.

Run by test_recovery.py as a process of its own: python recovery_driver.py STORE
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from mixopt.mixture import Mixture, Schedule
from mixopt.proxy_config import ProxyConfig as ProxySettings
from mixopt.runner import Completed, Evaluation, Failed, Progress
from mixopt.trial import Source, Trial, TrialDomain, trial_identity
from proxy_models.token_store import TokenWriter
from workers.convert import recipe_for
from workers.ray_runner import RayRunner

VOCAB, WINDOW, STEP = 512, 64, 256
SHORT, LONG = Source("trained", "nano", 8 * STEP), Source("trained", "nano", 700 * STEP)
CHECKPOINT_SECONDS = 0.3


def write_tokens(path: Path, seed: int) -> Path:
    generator = np.random.default_rng(seed)
    with TokenWriter(path, VOCAB, "tokenizer") as writer:
        for _ in range(80):
            writer.add([*generator.integers(1, VOCAB, size=100).tolist(), 0], text_bytes=300)
        writer.close(f"content-{path.stem}")
    return path


def make_trial(source: Source, seed: int) -> Trial:
    recipe = recipe_for(ProxySettings(window=WINDOW, tokens_per_step=STEP, tokens=source.tokens), "nano", VOCAB)
    schedule = Schedule.constant(Mixture(("a", "b"), (0.5, 0.5)))
    domains = (TrialDomain("a", "content-a", 4096), TrialDomain("b", "content-b", 4096))
    identity = trial_identity(schedule, source, seed, recipe, domains, "tokenizer", "1")
    return Trial(identity, schedule, source, seed, recipe, domains, "tokenizer", "1")


def main(store: Path) -> None:
    store.mkdir(parents=True, exist_ok=True)
    catalog = {f"content-{name}": write_tokens(store / f"{name}.tokens", seed) for seed, name in enumerate("ab")}
    held_out = Evaluation("key", "valid/a", "text", write_tokens(store / "v.tokens", 9), max_tokens=256)
    evaluations = {SHORT.key: [held_out], LONG.key: [held_out]}
    trials = [make_trial(SHORT, 0), make_trial(LONG, 1), make_trial(LONG, 2)]
    print(json.dumps({"short": [trials[0].trial_id], "long": [trial.trial_id for trial in trials[1:]]}), flush=True)
    # One slot for the pair, one for the short trial: planned apart, so that the pair shares a pack.
    runner = RayRunner(store, catalog, evaluations, cpus=2, checkpoint_seconds=CHECKPOINT_SECONDS)
    try:
        runner.submit(trials[:1])
        runner.submit(trials[1:])
        for event in runner.events():
            line: dict[str, object] = {"event": type(event).__name__, "trial_id": event.trial_id}
            if isinstance(event, Progress):
                line["tokens"] = event.tokens
            if isinstance(event, Completed):
                line["losses"] = [m.loss_nats for m in event.outcome.measurements]
            if isinstance(event, Failed):
                line["failure"] = [event.failure.kind.value, event.failure.message]
            print(json.dumps(line), flush=True)
    finally:
        runner.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
