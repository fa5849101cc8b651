"""Merges of files: what is read and written, how much memory it takes, and what is refused."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from proxy_models.checkpoint import Checkpoint, DamagedCheckpoint, load_checkpoint, save_checkpoints, with_prefix
from proxy_models.config import ProxyConfig, proxy_config
from proxy_models.merging.components import HeldComponent, StoredComponent, members_of
from proxy_models.merging.merge import merge, merged_tensors, save_merge, simplex_weights
from proxy_models.merging.operators import FisherWeighted, Linear, MergeOperator, RoutingWeighted, Spherical, TaskArithmetic
from proxy_models.merging.sparse_operators import Breadcrumbs, Dare, Ties
from proxy_models.model import PackedProxy

Branch = Callable[..., HeldComponent]
State = dict[str, Tensor]


def write(path: Path, state: Mapping[str, Tensor]) -> Path:
    save_checkpoints({path: Checkpoint(with_prefix("model", state), {"spec": "x"})})
    return path


def held(component: HeldComponent) -> State:
    return {name: component.rows(name, 0, shape[0]) for name, shape in component.shapes.items()}


def test_files_merge_as_what_is_held(tmp_path: Path, branch: Branch, base_state: State) -> None:
    parts = [branch(name, seed) for seed, name in enumerate("abc")]
    stored = [StoredComponent(part.name, write(tmp_path / f"{part.name}.safetensors", held(part))) for part in parts]
    base = StoredComponent("base", write(tmp_path / "base.safetensors", base_state))
    weights = {"a": 0.2, "b": 0.3, "c": 0.5}
    for operator in (Linear(), Ties(), Spherical()):
        expected = merge(parts, weights, operator, HeldComponent("base", base_state))
        found = merge(stored, weights, operator, base)
        assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_a_merge_is_written_as_weights_that_the_engine_loads(tmp_path: Path, tiny: ProxyConfig, branch: Branch) -> None:
    parts = [branch(name, seed) for seed, name in enumerate("ab")]
    path = tmp_path / "merged" / "weights.safetensors"
    save_merge(path, parts, {"a": 0.25, "b": 0.75}, TaskArithmetic(scale=1.0), branch("base", 9), {"spec": "merged"})
    file = load_checkpoint(path)
    assert file.facts["spec"] == "merged"
    assert file.facts["merge"] == {"operator": {"kind": "TaskArithmetic", "scale": 1.0}, "weights": {"a": 0.25, "b": 0.75}, "base": "base"}
    PackedProxy(tiny, [0]).load_member_state(0, file.part("model"))


def test_damaged_files_are_refused_before_they_are_merged(tmp_path: Path, base_state: State) -> None:
    path = write(tmp_path / "a.safetensors", base_state)
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedCheckpoint, match="does not match its digest"):
        StoredComponent("a", path)
    path.write_bytes(content[:200])
    with pytest.raises(DamagedCheckpoint, match="cannot be read"):
        StoredComponent("a", path)
    with pytest.raises(FileNotFoundError):
        StoredComponent("a", tmp_path / "none")
    save_checkpoints({path: Checkpoint({}, {"spec": "x"})})
    with pytest.raises(DamagedCheckpoint, match="holds no weights"):
        StoredComponent("a", path)


# Memory


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that operations make while it is active, and how many were alive at most.

    What is mapped from a file is not counted: its pages belong to the file, and slices of it say the size of the whole.
    """

    def __init__(self) -> None:
        super().__init__()
        lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(".safetensors")]
        self._mapped = [tuple(int(edge, 16) for edge in line[0].split("-")) for line in lines]
        self.alive = self.peak = 0
        self._seen: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        own = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._add(tensor, own)
        return result

    def _add(self, tensor: Tensor, own: set[int]) -> None:
        storage = tensor.untyped_storage()
        pointer, size = storage.data_ptr(), storage.nbytes()
        if not size or pointer in own or pointer in self._seen or any(first <= pointer < last for first, last in self._mapped):
            return  # a view of what there was, or written in place, or a file

        def freed(_: Any) -> None:
            self.alive -= size
            del self._seen[pointer]

        self._seen[pointer] = weakref.ref(storage, freed)
        self.alive += size
        self.peak = max(self.peak, self.alive)


def stored(folder: Path, config: ProxyConfig, count: int) -> tuple[list[StoredComponent], StoredComponent, int]:
    """Components, base, and bytes of one of them."""
    pack = PackedProxy(config, range(count + 1))
    members = members_of(pack, [*(f"part{k}" for k in range(count)), "base"])
    parts = [StoredComponent(part.name, write(folder / f"{part.name}.safetensors", held(part))) for part in members]
    return parts[:-1], parts[-1], 4 * sum(math.prod(shape) for shape in parts[0].shapes.values())


OPERATORS: list[Callable[[Sequence[StoredComponent], ProxyConfig], MergeOperator]] = [
    lambda parts, config: Linear(),
    lambda parts, config: TaskArithmetic(),
    lambda parts, config: Spherical(),
    lambda parts, config: FisherWeighted({p.name: p for p in parts}, {p.name: 1.0 for p in parts}),
    lambda parts, config: RoutingWeighted({p.name: torch.rand(config.n_layers, config.n_experts) for p in parts}),
    lambda parts, config: Ties(density=0.5),
    lambda parts, config: Dare(density=0.5),
    lambda parts, config: Breadcrumbs(density=0.5),
]


@pytest.mark.parametrize("make", OPERATORS, ids=["linear", "task", "spherical", "fisher", "routing", "ties", "dare", "breadcrumbs"])
def test_two_models_in_memory_at_most(tmp_path: Path, make: Callable[..., MergeOperator]) -> None:
    """Of 5 components of a proxy, most of which is one tensor, as in a nano one."""
    config = ProxyConfig("test", 1024, 32, 1, 2, n_experts=4, top_k=2, n_shared_experts=1, d_expert=16)
    parts, base, size = stored(tmp_path, config, 5)
    with LiveBytes() as live:
        merge(parts, {part.name: 1 / 5 for part in parts}, make(parts, config), base)
    assert size < live.peak < 2 * size


def test_streamed_tensors_may_be_let_go_of(tmp_path: Path) -> None:
    """A caller that keeps no tensor holds less than one model and the largest tensor."""
    parts, _, size = stored(tmp_path, proxy_config("nano", 64), 5)
    with LiveBytes() as live:
        for _name, _tensor in merged_tensors(parts, {part.name: 1 / 5 for part in parts}):
            del _tensor
    assert live.peak < 0.8 * size


def test_the_count_of_bytes_sees_a_merge_that_holds_everything(tmp_path: Path) -> None:
    parts, _, size = stored(tmp_path, proxy_config("nano", 64), 4)
    with LiveBytes() as live:
        states = [{name: part.rows(name, 0, shape[0]).clone() for name, shape in part.shapes.items()} for part in parts]
        _merged = {name: torch.stack([one[name] for one in states]).mean(0) for name in states[0]}
    assert live.peak > 5 * size
    del states, _merged
    assert live.alive == 0


# What is refused


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ({"a": 0.5, "b": 0.6}, r"weights of a, b sum to 1\.1; they must sum to 1"),
        ({"a": math.nan, "b": 0.5}, "weight of component 'a' is nan"),
        ({"a": math.inf, "b": -math.inf}, "weight of component 'a' is inf"),
        ({"a": 1.0}, "only one of the two has b"),
        ({"a": 0.5, "b": 0.25, "c": 0.25}, "only one of the two has c"),
    ],
)
def test_weights_that_do_not_sum_to_one(branch: Branch, weights: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        merge([branch("a", 1), branch("b", 2)], weights)


@pytest.mark.parametrize("make", OPERATORS[1:], ids=["task", "spherical", "fisher", "routing", "ties", "dare", "breadcrumbs"])
def test_only_linear_merges_extrapolate(make: Callable[..., MergeOperator], tmp_path: Path, tiny: ProxyConfig) -> None:
    parts, base, _ = stored(tmp_path, tiny, 2)
    weights = {"part0": 1.5, "part1": -0.5}
    assert merge(parts, weights, Linear(), base)
    with pytest.raises(ValueError, match=r"weight of component 'part1' is -0\.5"):
        merge(parts, weights, make(parts, tiny), base)


def test_weights_that_were_rounded_are_taken() -> None:
    weights = simplex_weights([0.3333333, 0.3333333, 0.3333333], ["a", "b", "c"])
    assert weights == pytest.approx([1 / 3] * 3, rel=1e-15)
    with pytest.raises(ValueError, match="2 weights for 1 components"):
        simplex_weights([0.5, 0.5], ["a"])


def test_shapes_that_differ_name_the_tensor(branch: Branch, base_state: State) -> None:
    other = dict(base_state)
    other["layers.1.moe.router"] = torch.zeros(32, 5)
    half = {"a": 0.5, "b": 0.5}
    words = r"'layers.1.moe.router' has shape \(32, 4\) in 'a' and \(32, 5\) in 'b'"
    with pytest.raises(ValueError, match=words):
        merge([branch("a", 1), HeldComponent("b", other)], half)
    with pytest.raises(ValueError, match=words):
        merge([branch("a", 1)], {"a": 1.0}, Linear(), HeldComponent("b", other))
    del other["layers.1.moe.router"]
    with pytest.raises(ValueError, match=r"'layers.1.moe.router' is in 'a' but not in 'b'"):
        merge([branch("a", 1), HeldComponent("b", other)], half)


@pytest.mark.parametrize("operator", [TaskArithmetic(), Ties(), Dare(), Breadcrumbs()])
def test_a_missing_base(branch: Branch, operator: MergeOperator) -> None:
    with pytest.raises(ValueError, match=f"{type(operator).__name__} merges what .* there is no base"):
        merged_tensors([branch("a", 1)], {"a": 1.0}, operator)


def test_other_things_that_cannot_be_merged(branch: Branch, base_state: State) -> None:
    with pytest.raises(ValueError, match="at least one component"):
        merge([], {})
    with pytest.raises(ValueError, match="'a' is there more than once"):
        merge([branch("a", 1), branch("a", 2)], {"a": 1.0})
    broken = {**base_state, "norm": torch.full((32,), math.inf)}
    with pytest.raises(ValueError, match="'norm' of component 'b' holds numbers that are not finite"):
        merge([branch("a", 1), HeldComponent("b", broken)], {"a": 0.5, "b": 0.5})
    merge([branch("a", 1), HeldComponent("b", broken)], {"a": 1.0, "b": 0.0})
    counts = {**base_state, "norm": torch.ones(32, dtype=torch.int64)}
    with pytest.raises(ValueError, match=r"'norm' of component 'b' holds torch\.int64"):
        merge([HeldComponent("b", counts)], {"b": 1.0})
