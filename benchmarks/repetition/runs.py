"""What `epoch_matching.py` trains: one scarce domain beside plentiful ones, at several weights, in arms that differ in what of it they may see.

Every arm is a list of packs of the engine itself; which tokens of a domain an arm may see comes from `DomainSet.unique_tokens`, the rule that a search
uses. Trade-off: the trials are not in a record, only in a folder of checkpoints, from which a second call takes what is done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mixopt.corpus.manifest import Manifest
from mixopt.domains import Domain, DomainSet
from proxy_models.config import default_learning_rate, proxy_config
from proxy_models.train import DomainStream, EvaluationSpec, MemberResult, MemberSpec, TrainSettings, train_pack

Sight = Literal["matched", "whole", "floored"]
"""What a proxy may see of the scarce domain: a share of it that makes epochs those of the target run; all of it, as the target run; or what the
floor of 64 windows leaves at `FLOOR_WINDOW`."""

FLOOR_WINDOW = 512
"""The window of `examples/shared-corpus.yaml`: 64 of them are 32,768 tokens."""


@dataclass(frozen=True)
class Setting:
    """One experiment.

    Attributes:
        scarce: name of the scarce domain.
        unique_tokens: of it, in the target run.
        target_tokens: length of the target run.
        rest: natural weights of all other domains, any scale.
        grid: weights of the scarce domain.
    """

    scarce: str
    unique_tokens: int
    target_tokens: int
    rest: Mapping[str, float]
    grid: tuple[float, ...]
    size: str = "nano"
    window: int = 128
    tokens_per_step: int = 1024
    scarce_evaluation_tokens: int = 24_576
    rest_evaluation_tokens: int = 4096

    @property
    def name(self) -> str:
        """Of the folder of its checkpoints; what differs in anything else is told apart by the checkpoints themselves."""
        return f"{self.scarce}-{self.unique_tokens}-of-{self.target_tokens}-{self.size}-{self.window}"

    def domain_set(self, manifest: Manifest) -> DomainSet:
        """The target run's inventory: of the scarce domain `unique_tokens`, of the others all that was prepared."""
        domains = []
        for name in (self.scarce, *self.rest):
            train = manifest.domains[name].train
            there = self.unique_tokens if name == self.scarce else train.tokens
            domains.append(Domain(name, train.content_hash, train.tokens, there))
        return DomainSet(tuple(domains), self.target_tokens)


@dataclass(frozen=True)
class Arm:
    """Runs of one length; `seeds` of every weight."""

    name: str
    tokens: int
    sight: Sight
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Run:
    """One trained proxy. Losses are in bits per byte of held-out text; `epochs` are those of the scarce domain."""

    kind: str
    arm: str
    seed: int
    weight: float
    tokens: int
    unique_tokens: int
    epochs: float
    scarce_bits_per_byte: float
    rest_bits_per_byte: float
    seconds: float

    def objective(self, importance: float) -> float:
        """What is minimized, where the scarce domain counts `importance` and the rest what is left."""
        return importance * self.scarce_bits_per_byte + (1 - importance) * self.rest_bits_per_byte


def unique_tokens(setting: Setting, arm: Arm, manifest: Manifest) -> dict[str, int]:
    """Tokens that the proxies of an arm may see, per domain."""
    domains = setting.domain_set(manifest)
    tokens = setting.target_tokens if arm.sight == "whole" else arm.tokens
    window = FLOOR_WINDOW if arm.sight == "floored" else setting.window
    return {name: unique.tokens for name, unique in domains.unique_tokens(tokens, window).items()}


def train_arm(setting: Setting, arm: Arm, manifest: Manifest, work: Path, tell: Callable[[str], None]) -> Iterator[Run]:
    """Trains what is missing of an arm, a pack per seed.

    Raises:
        RuntimeError: a proxy failed.
    """
    config = proxy_config(setting.size, manifest.vocab_size)
    settings = TrainSettings(arm.tokens, setting.window, setting.tokens_per_step)
    unique = unique_tokens(setting, arm, manifest)
    total = sum(setting.rest.values())
    streams = tuple(
        DomainStream(manifest.domains[name].train.content_hash, manifest.absolute(manifest.domains[name].train), unique[name])
        for name in (setting.scarce, *setting.rest)
    )
    evaluations = _evaluations(setting, manifest)
    for seed in arm.seeds:
        members, folders, weights = [], {}, {}
        for weight in setting.grid:
            name = f"{arm.name}-{seed}-{weight:g}"
            row = (weight, *((1 - weight) * there / total for there in setting.rest.values()))
            members.append(MemberSpec(name, seed, default_learning_rate(setting.size), streams, (row,)))
            folders[name] = work / setting.name / name
            folders[name].mkdir(parents=True, exist_ok=True)
            weights[name] = weight
        tell(
            f"{arm.name}, seed {seed}: {len(members)} proxies of {arm.tokens:,} tokens, {unique[setting.scarce]:,} unique ones of {setting.scarce}"
        )
        for outcome in train_pack(config, settings, members, evaluations, folders):
            if not isinstance(outcome, MemberResult):
                raise RuntimeError(f"{outcome.member_id} failed: {outcome}")
            yield _run(setting, arm, seed, weights[outcome.member_id], unique[setting.scarce], outcome, streams[0].key)


def _evaluations(setting: Setting, manifest: Manifest) -> list[EvaluationSpec]:
    """Held-out text of every domain; points of the curve are not used, and cost next to nothing."""
    return [
        EvaluationSpec(
            name,
            manifest.absolute(manifest.domains[name].valid),
            "text",
            setting.scarce_evaluation_tokens if name == setting.scarce else setting.rest_evaluation_tokens,
            curve_tokens=setting.window,
        )
        for name in (setting.scarce, *setting.rest)
    ]


def _run(setting: Setting, arm: Arm, seed: int, weight: float, unique: int, result: MemberResult, key: str) -> Run:
    ends = {name: bits for name, tokens, _, bits in result.measurements if tokens == result.tokens}
    total = sum(setting.rest.values())
    rest = sum(there / total * ends[name] for name, there in setting.rest.items())
    epochs = float(result.diagnostics["epochs"][key])
    return Run("run", arm.name, seed, weight, result.tokens, unique, epochs, ends[setting.scarce], rest, result.seconds)
