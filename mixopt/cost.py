"""What an experiment will cost, as plain values: trials, FLOPs, time, memory, disk, epochs, and what is known of noise.

`workers.planning.estimate` fills these in and `mixopt.plan_page` shows them, so neither has to know the other. FLOPs and trials are counted; memory,
disk and time are estimates, and every speed says where it comes from. The main trade-off: one speed per shape of proxy, although a machine
that is shared is never twice as fast.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from mixopt.domains import TokenCountSource

Origin = Literal["record", "probe", "scaled", "assumed"]
StageName = Literal["base", "components", "search", "verification base", "verification"]


@dataclass(frozen=True)
class Shape:
    """What decides how fast a slot trains."""

    size: str
    vocab_size: int
    window: int
    tokens_per_step: int


@dataclass(frozen=True)
class Speed:
    """What one slot sustains while all slots are busy.

    Attributes:
        flops_per_second: useful training FLOPs; the time that losses take to be measured is not in it.
        origin: record: trials trained on this machine; probe: a few seconds of training just now; scaled: that of another shape, as if a
            FLOP took as long in both; assumed: neither measured here.
        sentence: the same for people, with numbers.
    """

    flops_per_second: float
    origin: Origin
    sentence: str


@dataclass(frozen=True)
class Machine:
    """Where trials would run.

    Attributes:
        where: "this machine" or "the Ray cluster at ...".
        slots: packs at once.
        memory_bytes: available now; None: unknown.
        disk_bytes: free in the output folder; None: unknown.
        nodes: machines that share the memory.
        device_bytes: memory of one GPU; None: unknown, or there is none.
    """

    where: str
    device: Literal["cpu", "cuda"]
    slots: int
    memory_bytes: float | None
    disk_bytes: float | None
    nodes: int = 1
    device_bytes: float | None = None


@dataclass(frozen=True)
class Stage:
    """One stage: the search, its verification, or the trial that those of either begin with.

    Attributes:
        what: where its trials come from: mixtures and seeds.
        trials: of the whole stage. `at_most`: fewer where arms of the verification turn out to be one mixture.
        reused: of these, trained already.
        tokens, flops: training, all trials; `flops_left` of those not trained yet.
        total_parameters, active_parameters, embedding_parameters: of one proxy, as `proxy_models.config` counts them; the embedding, which is
            also the output matrix, is part of both other counts.
        measuring_share: cost of measuring losses as a share of the training.
        pack_size: most trials that train together in one process; `packs`: how many packs are left to train.
        seconds_per_trial: training and measuring on one slot.
        seconds: of what is left, with the packs and slots that will run.
        pack_bytes: memory of the process of the largest pack.
        device_bytes: what that pack takes of a GPU's memory, by arithmetic; 0 on CPUs.
    """

    name: StageName
    source: str
    what: str
    trials: int
    at_most: bool
    reused: int
    tokens: int
    flops: float
    flops_left: float
    total_parameters: int
    active_parameters: int
    embedding_parameters: int
    flops_per_token: float
    measuring_share: float
    packs: int
    pack_size: int
    seconds_per_trial: float
    seconds: float
    pack_bytes: float
    speed: Speed
    device_bytes: float = 0.0


@dataclass(frozen=True)
class DomainEpochs:
    """How often the target run and the proxies of the search see one domain.

    Attributes:
        largest_weight: that bounds and epoch cap allow.
        natural_epochs, unimax_epochs: of the target run, under these mixtures.
        prepared_tokens: at hand for proxies; None: unknown before `mixopt prepare`.
        unique_tokens: that a proxy may see.
        note: floored: the proxy sees more unique tokens, and repeats the domain less, than the target run; capped: fewer tokens were
            prepared than it should see, so it repeats more; "": as often as the target run.
        proxy_natural_epochs, proxy_unimax_epochs: of a proxy of the search.
    """

    name: str
    target_tokens: float
    max_epochs: float
    largest_weight: float
    natural_epochs: float
    unimax_epochs: float
    prepared_tokens: int | None
    unique_tokens: int
    note: str
    proxy_natural_epochs: float
    proxy_unimax_epochs: float
    token_count_source: TokenCountSource = "given"


@dataclass(frozen=True)
class Preparation:
    """Documents to tokens.

    Attributes:
        done: the manifest names every domain and target.
        text_bytes: to be read; None: unknown (compressed, or not on this machine).
        seconds: None: unknown. `sentence` says where the rate comes from.
    """

    done: bool
    text_bytes: float | None
    seconds: float | None
    sentence: str


@dataclass(frozen=True)
class Disk:
    """Bytes in the output folder once all is done, and while trials run.

    Attributes:
        tokens_bytes: token files; None: unknown.
        trials_bytes: weights and results of all trials; `checkpoints_bytes`: of the trials under way, removed as they finish.
        record_bytes, mlflow_bytes, results_bytes: database, mirror (0 where it is elsewhere), answer, figures and report.
        needed_bytes: of all these, what is not there yet.
    """

    tokens_bytes: float | None
    trials_bytes: float
    checkpoints_bytes: float
    record_bytes: float
    mlflow_bytes: float
    results_bytes: float
    needed_bytes: float

    @property
    def lasting_bytes(self) -> float:
        """What stays."""
        return (self.tokens_bytes or 0.0) + self.trials_bytes + self.record_bytes + self.mlflow_bytes + self.results_bytes


@dataclass(frozen=True)
class Memory:
    """Memory at the worst moment: all slots hold their largest pack, beside the driver and Ray.

    Attributes:
        device_bytes: of a GPU, by its largest pack; 0 on CPUs.
    """

    pack_bytes: float
    driver_bytes: float
    total_bytes: float
    device_bytes: float = 0.0


@dataclass(frozen=True)
class NoiseOfTarget:
    """What is known of one metric of the objective, bits per byte. `screened`: why it is noise at this size; "" if it is not."""

    metric: str
    seed_std: float
    screened: str


@dataclass(frozen=True)
class NoiseKnown:
    """Which targets are noise at this size, as far as known.

    Attributes:
        origin: record: from trials of this source; notes: from an experiment of the same size on another corpus; none.
        sentence: where it comes from, with numbers.
    """

    origin: Literal["record", "notes", "none"]
    sentence: str
    targets: tuple[NoiseOfTarget, ...] = ()


@dataclass(frozen=True)
class Budget:
    """The search with the proxy that the evidence asks for, at one number of tokens.

    Attributes:
        rule: where the number of tokens comes from.
        seconds_here: on the slots of this machine, at the measured FLOPs per second.
        seconds_gpu: on one GPU; arithmetic, not measurement.
    """

    rule: str
    tokens: float
    flops: float
    seconds_here: float
    seconds_gpu: float


@dataclass(frozen=True)
class Advice:
    """Which proxy the field's evidence asks for, and what it would cost.

    Attributes:
        evidence: the finding, with its source.
        enough: the proxy of the search has that many active parameters.
        asked_active_parameters: by the evidence; `size`, `active_parameters`: the proxy the costs are for, the smallest that has them.
        counting: how its FLOPs were counted.
        gpu: what the GPU is assumed to do.
    """

    evidence: str
    enough: bool
    search_active_parameters: int
    asked_active_parameters: float
    size: str
    active_parameters: int
    flops_per_token: float
    counting: str
    gpu: str
    budgets: tuple[Budget, ...]


@dataclass(frozen=True)
class AveragesCost:
    """What proxies that average components cost.

    Attributes:
        evaluator: merged or ensemble.
        components: how many there are; `components_flops`: of training and scoring them, retrained ones included.
        mixture_flops: of scoring one average; `trained_flops`: of one trained trial, scored.
        gate_flops: of the trials that averages are judged by.
        break_even: mixtures from which on averages, with their components, cost no more than trained trials; None: they never do.
            `break_even_with_gate`: the same with the trials of the gate, which a search would train anyway, counted against them.
    """

    evaluator: str
    components: int
    components_flops: float
    mixture_flops: float
    trained_flops: float
    gate_flops: float
    break_even: int | None
    break_even_with_gate: int | None

    @property
    def sentence(self) -> str:
        """The same in words."""
        share, trials = self.mixture_flops / self.trained_flops, self.components_flops / self.trained_flops
        once = f"{self.components} components cost as much as {trials:.3g} trained trials"
        if self.break_even is None:
            return f"{self.evaluator}: {once}, and scoring a mixture costs {share:.2g} of training one, so that they are never cheaper"
        with_gate = (
            f", from {self.break_even_with_gate} with the gate's {self.gate_flops / self.trained_flops:.0f} trained trials counted, too"
        )
        return f"{self.evaluator}: {once}, each mixture then {share:.2g} of one: cheaper than training from {self.break_even} mixtures on{with_gate}"


@dataclass(frozen=True)
class Problem:
    """What would not fit or work, and the remedy."""

    message: str
    remedy: str


@dataclass(frozen=True)
class Plan:
    """The whole answer of `mixopt plan`.

    Attributes:
        search_id: None before `mixopt prepare`, because identity needs the documents' hashes.
        problems: what does not fit, worst first; `warnings`: what will make the answer weaker; `notes`: what the numbers rest on.
        averages: what merged and ensembled proxies cost, where the search asks for them.
        calibration: what one has found, or that there is none; empty before `mixopt prepare`.
    """

    name: str
    search_id: str | None
    strategy: str
    seeds: int
    budget_tokens: float
    machine: Machine
    preparation: Preparation
    stages: tuple[Stage, ...]
    memory: Memory
    disk: Disk
    domains: tuple[DomainEpochs, ...]
    noise: NoiseKnown
    advice: Advice
    problems: tuple[Problem, ...]
    warnings: tuple[str, ...]
    notes: tuple[str, ...]
    calibration: str = ""
    averages: tuple[AveragesCost, ...] = ()

    @property
    def search(self) -> Stage:
        """The stage of the search itself."""
        return next(stage for stage in self.stages if stage.name == "search")

    @property
    def trials(self) -> int:
        return sum(stage.trials for stage in self.stages)

    @property
    def tokens(self) -> int:
        return sum(stage.tokens for stage in self.stages)

    @property
    def flops(self) -> float:
        return sum(stage.flops for stage in self.stages)

    @property
    def seconds(self) -> float:
        """Of what is left: preparation where it is known, search and verification, and what their trials begin with."""
        return (self.preparation.seconds or 0.0) + sum(stage.seconds for stage in self.stages)

    def to_json(self) -> dict[str, Any]:
        """JSON values; totals are among them."""
        body = asdict(self)
        body["totals"] = {
            "trials": self.trials,
            "tokens": self.tokens,
            "flops": self.flops,
            "flops_left": sum(stage.flops_left for stage in self.stages),
            "seconds": self.seconds,
            "disk_bytes": self.disk.lasting_bytes,
            "disk_needed_bytes": self.disk.needed_bytes,
            "memory_bytes": self.memory.total_bytes,
        }
        plain: dict[str, Any] = _plain(body)
        return plain


def _plain(value: Any) -> Any:
    """Tuples as lists, as JSON reads them back."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value
