"""One process of `throughput.py`: trains in one way, a stretch at a time, when it is told to.

    python benchmarks/speed/worker.py JOB       # JOB is JSON: see `main`

Answers are JSON lines on standard output; commands are JSON lines on standard input: {"measure": seconds} trains at least that long in whole
steps and at least one, {"end": true} ends. Between commands it waits, so that several processes can take turns. The trainers here know
nothing of this: they call `Gate.stepped` after every step, and that is where a process waits. Trade-off: a step that is under way is never cut
short, so a stretch may be up to one step longer than asked for.

Which `proxy_models` is measured depends on PYTHONPATH alone: that of an older checkout works as long as it has `train_pack`.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch

NOMINAL_STEPS = 20_000
"""Length of the runs that are measured a part of: no process gets near it, so that no decay or evaluation comes in between."""

ENDLESS_STEPS = 100_000_000
"""The same where no step is trained, which goes a thousand times as fast."""

WARMUP_STEPS = 10
"""Of the learning rate, on both sides."""

SETTLING_SECONDS = 0.5
"""A process is ready after so long and two steps, or after one step if that took longer than `LONG_STEP_SECONDS`."""

LONG_STEP_SECONDS = 3.0

PEAK_SIZE = {"cpu": 2048, "cuda": 8192}
"""Rows and columns of the matrix product whose speed counts as the machine's peak: float32 on a CPU, bfloat16 on a GPU."""


class Gate:
    """Lets a trainer go on for as long as it is asked to, and measures it meanwhile.

    Args:
        commands, answers: the other side.
        synchronize: waits until the device has done all it was given.
    """

    def __init__(self, commands: TextIO, answers: TextIO, synchronize: Callable[[], None]) -> None:
        self._commands, self._answers, self._synchronize = commands, answers, synchronize
        self.ended = False
        self.steps = 0
        self._ready = False
        self._seconds = SETTLING_SECONDS
        self._start(0)

    def _start(self, tokens: int) -> None:
        self._synchronize()
        self._from = (time.perf_counter(), time.process_time(), tokens, self.steps)

    def stepped(self, tokens: int) -> None:
        """Told after every step how many tokens were trained so far, by all members together."""
        self.steps += 1
        wall, cpu, tokens_before, steps_before = self._from
        if not self._ready:
            seconds = time.perf_counter() - wall
            if seconds < SETTLING_SECONDS or (self.steps < 2 and seconds < LONG_STEP_SECONDS):
                return
            self._synchronize()
            self._ready = True
            self.answer({"ready": True})
        else:
            if time.perf_counter() - wall < self._seconds:
                return
            self._synchronize()
            measured = {"wall_seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
            self.answer({**measured, "tokens": tokens - tokens_before, "steps": self.steps - steps_before})
        command = json.loads(self._commands.readline() or '{"end": true}')
        self._seconds = float(command.get("measure", 0.0))
        self.ended = bool(command.get("end"))
        self._start(tokens)

    def answer(self, body: Mapping[str, Any]) -> None:
        print(json.dumps(body), file=self._answers, flush=True)


def train_mixopt(job: Mapping[str, Any], gate: Gate) -> list[list[float]]:
    """Trains a pack with the trainer that searches use: sampler, step, bookkeeping. Returns the losses of every member in nats per token."""
    from proxy_models import train
    from proxy_models.config import default_learning_rate, proxy_config

    config = proxy_config(job["size"], job["vocab_size"])
    settings = _settings(job)
    members = [_member(job, k, default_learning_rate(job["size"])) for k in range(job["members"])]
    losses: list[list[float]] = []

    def keep_losses(pack: Any, *_arguments: Any, **_options: Any) -> None:
        getattr(pack, "_settle", lambda: None)()  # engines that hear of their steps late
        losses.extend([float(loss) for loss in run.losses_nats] for run in pack.runs)

    def should_stop(ids: Sequence[str] | None = None) -> bool | list[str]:
        """Older engines ask whether to stop, newer ones who is to."""
        return gate.ended if ids is None else [*ids] if gate.ended else []

    # A pack that is stopped writes checkpoints, of gigabytes here. (Its name is all that is assumed of engines, older and newer.)
    if hasattr(train, "Pack"):
        train.Pack.save = keep_losses
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(*filter(None, [getattr(train, "TrainingStopped", None)])):
        train.train_pack(
            config,
            settings,
            members,
            [],
            {member.member_id: Path(folder) / member.member_id for member in members},
            job["device"],
            on_progress=lambda tokens: gate.stepped(sum(tokens.values())),
            should_stop=should_stop,
        )
    return losses


def _settings(job: Mapping[str, Any], steps: int = NOMINAL_STEPS) -> Any:
    from proxy_models.train import TrainSettings

    return TrainSettings(
        tokens=steps * job["tokens_per_step"],
        window=job["window"],
        tokens_per_step=job["tokens_per_step"],
        schedule="constant",
        warmup_fraction=WARMUP_STEPS / steps,
        checkpoint_seconds=1e9,
    )


def _member(job: Mapping[str, Any], k: int, learning_rate: float) -> Any:
    """Member k: its own seed and its own mixture, as the trials of a search have."""
    from proxy_models.train import DomainStream, MemberSpec

    shares = np.random.default_rng(k).dirichlet(np.ones(len(job["domains"])))
    domains = tuple(DomainStream(Path(path).name, Path(path), job["unique_tokens"]) for path in job["domains"])
    return MemberSpec(f"member{k}", k, learning_rate, domains, (tuple((shares / shares.sum()).tolist()),))


def train_transformers(job: Mapping[str, Any], gate: Gate) -> list[list[float]]:
    """Trains OLMoE of the `transformers` library in the proxy's shape, in the loop that one would write for it.

    Its routed experts are the proxy's routed and shared ones together, of which each token takes as many as in the proxy. Attention and experts are the
    library's defaults: torch's attention kernel and `torch.nn.functional.grouped_mm`. The cache for generation is off. On a GPU under autocast to bfloat16;
    since that leaves the experts' weights in float32, for which there is no fast grouped product, "bfloat16_weights" asks for weights, moments and
    updates in bfloat16: faster, and less exact than what it is compared with. A window of T tokens counts as T, though the library predicts T - 1 of them.
    """
    from transformers import OlmoeConfig, OlmoeForCausalLM

    from proxy_models.config import default_learning_rate, proxy_config
    from proxy_models.token_store import TokenStore

    proxy = proxy_config(job["size"], job["vocab_size"])
    config = OlmoeConfig(
        vocab_size=proxy.vocab_size,
        hidden_size=proxy.d_model,
        intermediate_size=proxy.d_expert,
        num_hidden_layers=proxy.n_layers,
        num_attention_heads=proxy.n_heads,
        max_position_embeddings=job["window"],
        num_experts=proxy.n_experts + proxy.n_shared_experts,
        num_experts_per_tok=proxy.top_k + proxy.n_shared_experts,
        norm_topk_prob=True,
        tie_word_embeddings=True,
        use_cache=False,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
        attn_implementation="sdpa",
    )
    torch.manual_seed(0)
    device = torch.device(job["device"])
    narrow = bool(job.get("bfloat16_weights"))
    model = OlmoeForCausalLM(config).to(device, torch.bfloat16 if narrow else torch.float32).train()
    fused = {"fused": True} if job.get("fused") else {}
    peak_rate = default_learning_rate(job["size"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak_rate, betas=(0.9, 0.95), weight_decay=0.1, **fused)
    forward = torch.compile(model) if job.get("compile") else model
    library = fastest_products() if job.get("fast_products") else contextlib.nullcontext()
    tokens = np.concatenate([TokenStore.open(Path(path)).tokens for path in job["domains"]])
    rng = np.random.default_rng(0)
    batch, window = job["tokens_per_step"] // job["window"], job["window"]
    losses: list[torch.Tensor] = []
    with library:
        while not gate.ended:
            starts = rng.integers(0, len(tokens) - window, size=batch)
            ids = torch.from_numpy(np.stack([tokens[start : start + window] for start in starts]).astype(np.int64)).to(device)
            optimizer.param_groups[0]["lr"] = peak_rate * min(1.0, (len(losses) + 1) / WARMUP_STEPS)
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda" and not narrow):
                loss = forward(input_ids=ids, labels=ids).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            losses.append(loss.detach())
            gate.stepped(len(losses) * job["tokens_per_step"])
    return [[float(loss) for loss in losses]]


def run_data_path(job: Mapping[str, Any], gate: Gate) -> list[list[float]]:
    """Draws, gathers and copies the windows of every step as a pack does, and trains on none of them."""
    from proxy_models import sampler

    settings = _settings(job, ENDLESS_STEPS)
    members = [_member(job, k, 0.0) for k in range(job["members"])]
    windows = settings.steps * settings.windows_per_step
    samplers = [sampler.MemberSampler(one.seed, one.domains, one.weights, one.fractions, windows, job["window"]) for one in members]
    tokens = 0
    while not gate.ended:
        if hasattr(sampler, "next_windows"):
            tokens_KBS = sampler.next_windows(samplers, settings.windows_per_step)
        else:  # engines before this benchmark
            tokens_KBS = np.stack([one.next_windows(settings.windows_per_step) for one in samplers])
        torch.from_numpy(tokens_KBS).to(job["device"])
        tokens += job["members"] * job["tokens_per_step"]
        gate.stepped(tokens)
    return []


def multiply(job: Mapping[str, Any], gate: Gate) -> list[list[float]]:
    """Square matrix products, in the library that is fastest on this processor; "tokens" are their FLOPs."""
    device = torch.device(job["device"])
    size = PEAK_SIZE[device.type]
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16 if device.type == "cuda" else torch.float32)
    out = torch.empty_like(a)
    done = 0
    with fastest_products():
        while not gate.ended:
            torch.mm(a, a, out=out)
            done += 2 * size**3
            gate.stepped(done)
    return []


def fastest_products() -> contextlib.AbstractContextManager[None]:
    """Torch's switch for the library of float32 products, where the engine knows one; as users could set it who knew of it."""
    try:
        from proxy_models.products import fast_products
    except ImportError:  # an older engine
        return contextlib.nullcontext()
    return fast_products()


KINDS: dict[str, Callable[[Mapping[str, Any], Gate], list[list[float]]]] = {
    "mixopt": train_mixopt,
    "transformers": train_transformers,
    "data path": run_data_path,
    "peak": multiply,
}


def main() -> int:
    job = json.loads(sys.argv[1])
    # Whatever a library prints must not end up among the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    torch.set_num_threads(1)
    gate = Gate(sys.stdin, answers, torch.cuda.synchronize if job["device"].startswith("cuda") else lambda: None)
    losses = KINDS[job["kind"]](job, gate)
    gate.answer({"losses_nats": losses, "peak_resident_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024})
    return 0


if __name__ == "__main__":
    sys.exit(main())
