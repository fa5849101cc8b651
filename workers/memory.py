"""Memory of a process that trains a pack, from the shape of its members.

A member is a sum of parts: weights and moments, which are always there, and on top the larger of two things that never meet: a training step
(saved activations, gradients, what one layer works with) and a checkpoint (copies of weights and moments). What does not grow with members is
apart. The trade-off: tensors are counted as the code of `proxy_models` makes them, so that a change there wants one here; a test counts the live bytes of
real steps, and `benchmarks/memory.py` measures whole processes.

On a CPU everything is float32 and the result is measured. On a GPU the operands of products are bfloat16, experts multiply in grouped products, as on an
H100 or H200, and the result is arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from proxy_models.config import ProxyConfig

Device = Literal["cpu", "cuda"]

FLOAT, INDEX = 4.0, 8.0
"""Bytes of a float32 and of an int64."""
HALF = 2.0
"""Bytes of a bfloat16, the operands of products on a GPU."""

PROCESS_BYTES = 380e6
"""Python and torch with code loaded and used once, 0.35 GB (`benchmarks/memory.py`), and Ray's worker."""
PADDING = 1.2
"""Rows of expert products per chosen expert, about: blocks are padded to the fullest expert where that costs less than a product for each
(`proxy_models.moe.CALL_MULTIPLICATIONS`), and tiny steps may have several times as many, which are little memory."""
QUERY_BLOCK, CHUNK_TOKENS = 128, 128
"""As in `proxy_models.layers` and `proxy_models.loss`, which load torch. Attention keeps an exponential per query and key up to the end of the
query's block, the loss makes logits of so many tokens at a time."""
HOLES, HOLES_DENSE = 1.35, 0.8
"""Resident memory that a step takes beyond its live bytes, in layers' worth of saved activations: holes that one layer's dropped tensors leave and
later ones do not fill; more where rows per expert change from step to step. `benchmarks/memory.py` measured 0.6 to 2.0 (median 1.2) and 0.5 to 1.0
(median 0.8)."""

GPU_PROCESS_BYTES = 1.5e9
"""CUDA context and libraries, about 1 GB, and the loss's workspace, 0.5 GB: an assumption."""
GPU_HOST_BYTES = 3e9
"""Of the host, per process that uses a GPU: an assumption."""


@dataclass(frozen=True)
class MemberMemory:
    """Bytes of one member.

    Attributes:
        state: weights and two moments.
        step: the most that a training step has on top.
        checkpoint: what writing a checkpoint has on top; no step runs meanwhile.
    """

    state: float
    step: float
    checkpoint: float

    @property
    def peak(self) -> float:
        return self.state + max(self.step, self.checkpoint)


def pack_memory_bytes(config: ProxyConfig, window: int, tokens_per_step: int, members: int, device: Device = "cpu") -> float:
    """Memory of a process that trains `members` proxies of one shape together: resident on a CPU, of the device on a GPU."""
    member = member_memory(config, window, tokens_per_step, device)
    if device == "cuda":
        return GPU_PROCESS_BYTES + members * member.peak
    return PROCESS_BYTES + logits_bytes(config, tokens_per_step) + members * member.peak


def host_memory_bytes(config: ProxyConfig, window: int, tokens_per_step: int, members: int, device: Device = "cpu") -> float:
    """Resident memory of such a process; on a GPU what it has beside the device: the copies of a checkpoint."""
    if device == "cuda":
        return GPU_HOST_BYTES + members * member_memory(config, window, tokens_per_step, device).checkpoint
    return pack_memory_bytes(config, window, tokens_per_step, members)


def logits_bytes(config: ProxyConfig, tokens_per_step: int) -> float:
    """The workspace of the loss on a CPU, one for the pack."""
    return FLOAT * min(CHUNK_TOKENS, tokens_per_step) * config.vocab_size


def member_memory(config: ProxyConfig, window: int, tokens_per_step: int, device: Device = "cpu") -> MemberMemory:
    """The parts of one member."""
    copies = 3 * FLOAT * config.parameters().total
    holes = 0.0 if device == "cuda" else HOLES if config.n_experts else HOLES_DENSE
    step = step_bytes(config, window, tokens_per_step, device) + holes * saved_by_layer(config, window, tokens_per_step, device)
    return MemberMemory(state=copies, step=step, checkpoint=copies)


def step_bytes(config: ProxyConfig, window: int, tokens_per_step: int, device: Device = "cpu") -> float:
    """Most bytes of tensors that a step has alive at a time, beside weights and moments.

    The backward pass makes a layer's gradients as it drops its activations, so the peak is at its first layer or at its last.
    """
    counts = config.parameters()
    embedding = FLOAT * counts.embedding
    gradients = FLOAT * (counts.total - counts.embedding - config.d_model) / config.n_layers
    saved = saved_by_layer(config, window, tokens_per_step, device)
    if device == "cuda":
        saved += gradients / 2  # the bfloat16 copies of its matrices
    # The embedded tokens and ids; what is behind the last layer is dropped by then.
    ends = tokens_per_step * (FLOAT * config.d_model + 4 * INDEX)
    working = tokens_per_step * _working_set(config, device)
    first, last = config.n_layers * saved + gradients, saved + config.n_layers * gradients
    return embedding + ends + working + max(first, last)


def saved_by_layer(config: ProxyConfig, window: int, tokens_per_step: int, device: Device = "cpu") -> float:
    """Activations that one layer keeps for its backward pass."""
    return tokens_per_step * (_attention(config, window, device) + _experts(config, device))


def _attention(config: ProxyConfig, window: int, device: Device) -> float:
    """Bytes per token that attention saves for its backward pass."""
    narrow = HALF if device == "cuda" else FLOAT
    stream = 2 * FLOAT * config.d_model  # before and after the norm
    if device == "cuda":  # input, query, key and value, the rotated two, output twice; flash attention keeps a sum per head
        return stream + 8 * narrow * config.d_model + FLOAT * config.n_heads
    return stream + 6 * narrow * config.d_model + FLOAT * config.n_heads * (_keys_per_query(window) + 1)


def _keys_per_query(window: int) -> float:
    """Keys up to the end of each query's block, on average."""
    ends = [min(start + QUERY_BLOCK, window) for start in range(0, window, QUERY_BLOCK)]
    return sum(end * (end - start) for start, end in zip(range(0, window, QUERY_BLOCK), ends, strict=True)) / window


def _experts(config: ProxyConfig, device: Device) -> float:
    """Bytes per token that the experts of a layer save, dispatch included."""
    narrow = HALF if device == "cuda" else FLOAT
    rows = config.top_k * PADDING
    stream = 2 * FLOAT * config.d_model + narrow * config.d_model
    shared = 3 * narrow * config.d_shared
    routed = rows * (narrow * (config.d_model + 3 * config.d_expert + 1) + INDEX)
    choice = config.top_k * (2 * INDEX + FLOAT)  # expert and row of each, and its weight
    if config.auxiliary_loss:
        choice += FLOAT * (config.n_experts + 1)  # the scores, and what is expected of them
    return stream + shared + routed + choice


def _working_set(config: ProxyConfig, device: Device) -> float:
    """Bytes per token of gradients on their way through one layer: two of the stream, five of the widest hidden state."""
    narrow = HALF if device == "cuda" else FLOAT
    return 2 * FLOAT * config.d_model + 5 * narrow * max(config.top_k * PADDING * config.d_expert, config.d_shared)
