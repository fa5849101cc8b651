"""What every size of the dial is and costs here: `mixopt proxies`.

Shapes, parameters and FLOPs are counted, memory is estimated, and every speed says where it comes from: the record of an experiment, a probe
just now, another size, or an assumption. The trade-off: a probe leaves out what it could not finish in its time or what would not fit into
memory; such a size is scaled from the nearest one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from mixopt.config import Experiment
from mixopt.corpus.config import TokenizerConfig
from mixopt.cost import Machine, Shape, Speed
from mixopt.errors import ConfigError, RunError
from mixopt.progress import Reporter
from mixopt.proxy_config import ProxyConfig as ProxySettings
from proxy_models.config import PARAMETRIZATIONS, RULES, SIZES, Rule, default_learning_rate, proxy_config
from proxy_models.parametrization import MUP_RULES, TensorRule
from workers.checks import check_settings
from workers.compose import compose
from workers.machine import look_at, this_machine
from workers.memory import member_memory, pack_memory_bytes
from workers.packing import pack_size_of
from workers.planning.estimate import recorded_speeds
from workers.planning.expected_corpus import corpus_of
from workers.planning.known import read_known
from workers.planning.probe import probe_for
from workers.planning.speed import choose_speed


@dataclass(frozen=True)
class Circumstances:
    """For what the sizes are described.

    Attributes:
        vocab_size, window, tokens_per_step: of the proxies; tokens are per member.
        pack_size: trials of a pack; None: by tokens per step and device.
        recorded: shape -> useful FLOPs per second and slot, and trials it rests on.
        notes: what the numbers rest on.
        parametrization: whose learning rates are shown.
    """

    vocab_size: int
    window: int
    tokens_per_step: int
    machine: Machine
    pack_size: int | None = None
    recorded: Mapping[Shape, tuple[float, int]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    parametrization: str = "standard"


@dataclass(frozen=True)
class SizeRow:
    """One size. Bytes and FLOPs are of one member unless said.

    Attributes:
        active_parameters, embedding_parameters: as `proxy_models.config.ParameterCounts`; the embedding is part of both other counts.
        pack_size: members of a pack by default; `pack_bytes` with its process.
        tokens_per_second: of one slot while all are busy, training alone.
    """

    size: str
    width: int
    layers: int
    heads: int
    routed_experts: int
    active_experts: int
    shared_experts: int
    expert_width: int
    total_parameters: int
    active_parameters: int
    embedding_parameters: int
    flops_per_token: float
    member_bytes: float
    pack_size: int
    pack_bytes: float
    learning_rate: float
    tokens_per_second: float
    speed: Speed


@dataclass(frozen=True)
class SizeTable:
    """All that `mixopt proxies` shows."""

    around: Circumstances
    rows: tuple[SizeRow, ...]
    rules: tuple[Rule, ...] = RULES

    @property
    def tensor_rules(self) -> tuple[TensorRule, ...]:
        """How initial weights and rates of tensors follow the shape; none in the standard parametrization."""
        return MUP_RULES if self.around.parametrization == "mup" else ()

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "vocab_size": self.around.vocab_size,
            "window": self.around.window,
            "tokens_per_step": self.around.tokens_per_step,
            "where": self.around.machine.where,
            "device": self.around.machine.device,
            "slots": self.around.machine.slots,
            "sizes": [asdict(row) for row in self.rows],
            "rules": [asdict(rule) for rule in self.rules],
            "parametrization": self.around.parametrization,
            "tensor_rules": [
                {"group": rule.group, "tensors": rule.tensors, "initial_std": str(rule.std), "rate": str(rule.rate), "why": rule.why}
                for rule in self.tensor_rules
            ],
            "notes": list(self.around.notes),
        }


def circumstances(
    experiment: Experiment | None,
    vocab_size: int | None = None,
    window: int | None = None,
    tokens_per_step: int | None = None,
    parametrization: str | None = None,
) -> Circumstances:
    """Those of an experiment, or of this machine with the defaults of an experiment file; what is given explicitly comes first.

    Raises:
        ConfigError: the numbers do not fit each other, or the experiment's settings are wrong.
        MixoptError: the experiment cannot be composed; as `compose`.
    """
    proxy = experiment.proxy if experiment else ProxySettings()
    window = window or proxy.window
    tokens_per_step = tokens_per_step or proxy.tokens_per_step
    parametrization = parametrization or proxy.parametrization
    if parametrization not in PARAMETRIZATIONS:
        raise ConfigError(f"There is no parametrization '{parametrization}'.", f"Known ones: {', '.join(PARAMETRIZATIONS)}.")
    if tokens_per_step % window:
        raise ConfigError(f"--tokens-per-step {tokens_per_step} is not a multiple of the window, {window}.", "Change one of the two.")
    if experiment is None:
        vocab_size = vocab_size or TokenizerConfig().vocab_size
        return Circumstances(vocab_size, window, tokens_per_step, this_machine(), parametrization=parametrization)
    check_settings(experiment)
    notes = []
    try:
        machine = look_at(experiment)
    except RunError as error:
        notes.append(f"{error.message} What follows is for this machine instead. {error.hint}")
        machine = this_machine(experiment)
    corpus = corpus_of(experiment)
    search = compose(experiment, corpus.manifest)
    known = read_known(search, corpus.prepared, anywhere=machine.where != "this machine")
    vocab_size = vocab_size or corpus.manifest.vocab_size
    if not corpus.prepared and experiment.tokenizer.hub is not None:
        notes.append(
            f"The vocabulary of {experiment.tokenizer.hub} is not known before `mixopt prepare`; {vocab_size:,} entries are assumed."
        )
    recorded = recorded_speeds(search, corpus, known)
    pack_size = experiment.ray.pack_size
    return Circumstances(vocab_size, window, tokens_per_step, machine, pack_size, recorded, tuple(notes), parametrization)


def describe_sizes(around: Circumstances, may_probe: bool, reporter: Reporter) -> SizeTable:
    """Every size of the dial, in its order.

    Args:
        may_probe: spend some seconds of training per size that the record does not know, on this machine.
    """
    machine = around.machine
    shapes = [Shape(size, around.vocab_size, around.window, around.tokens_per_step) for size in SIZES]
    missing = {shape: _pack_size(around, shape) for shape in shapes if shape not in around.recorded}
    probed, notes = probe_for(machine, missing if may_probe else {}, reporter)
    speeds = {shape: choose_speed(shape, around.recorded, probed, machine.device, machine.where) for shape in shapes}
    rows = tuple(_row(shape, around, speed) for shape, speed in speeds.items())
    return SizeTable(replace(around, notes=(*around.notes, *notes)), rows)


def _row(shape: Shape, around: Circumstances, speed: Speed) -> SizeRow:
    config = proxy_config(shape.size, shape.vocab_size)
    counts = config.parameters()
    per_token = config.training_flops_per_token(shape.window)
    members, device = _pack_size(around, shape), around.machine.device
    return SizeRow(
        size=shape.size,
        width=config.d_model,
        layers=config.n_layers,
        heads=config.n_heads,
        routed_experts=config.n_experts,
        active_experts=config.top_k,
        shared_experts=config.n_shared_experts,
        expert_width=config.d_expert,
        total_parameters=counts.total,
        active_parameters=counts.active,
        embedding_parameters=counts.embedding,
        flops_per_token=per_token,
        member_bytes=member_memory(config, shape.window, shape.tokens_per_step, device).peak,
        pack_size=members,
        pack_bytes=pack_memory_bytes(config, shape.window, shape.tokens_per_step, members, device),
        learning_rate=default_learning_rate(shape.size, around.parametrization),
        tokens_per_second=speed.flops_per_second / per_token,
        speed=speed,
    )


def _pack_size(around: Circumstances, shape: Shape) -> int:
    return around.pack_size or pack_size_of(shape, around.machine.device)
