"""Components of a merge: models of one shape, read a few rows of one tensor at a time.

A component knows its tensors' shapes and gives rows of them in float32. It may lie in a file (the usual case: mapped into memory, checked
against its digest once, tensor by tensor), be a state that is held, or a member of a pack. The trade-off: rows are read once per pass of an
operator, of which some need two; disks and page caches are faster than what holding K models would cost.

Legend: E experts, R rows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from safetensors import SafetensorError, safe_open
from torch import Tensor

from proxy_models.checkpoint import DamagedCheckpoint, content_digest
from proxy_models.model import PackedProxy

MODEL_PREFIX = "model."
"""What the names of weights begin with in a file."""

_MOE_TENSOR = re.compile(r"layers\.(\d+)\.moe\.(router|router_bias|expert_in|expert_out)")

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class MoeTensor:
    """A tensor that has to do with routed experts.

    Attributes:
        kind: "router" (D, E), "router_bias" (E,), "expert_in" or "expert_out" (E, ...).
    """

    layer: int
    kind: str

    @property
    def by_expert(self) -> bool:
        """Whether its first axis is that of the experts, each with a matrix."""
        return self.kind in ("expert_in", "expert_out")


def moe_tensor(tensor: str) -> MoeTensor | None:
    """What a tensor is to the routed experts; None: nothing."""
    match = _MOE_TENSOR.fullmatch(tensor)
    return None if match is None else MoeTensor(int(match[1]), match[2])


class Component(Protocol):
    """One model of a merge.

    Attributes:
        name: by which weights are given, usually its domain.
        base_id: identity of the run whose weights it began with; None: unknown, or its own.
        shapes: of its tensors, named as in `PackedProxy.member_state`.
    """

    @property
    def name(self) -> str: ...

    @property
    def base_id(self) -> str | None: ...

    @property
    def shapes(self) -> Shapes: ...

    def rows(self, tensor: str, first: int, last: int, expert: int | None = None) -> Tensor:
        """Rows first to last - 1 of a tensor, or of one expert's matrix in it; float32 on the CPU, not to be changed."""
        ...


class StoredComponent:
    """A component in a `weights.safetensors`, of which only what is asked for is read.

    Raises:
        FileNotFoundError: there is no file.
        DamagedCheckpoint: it cannot be read, holds no weights, or its content does not match its digest.
    """

    def __init__(self, name: str, path: Path, base_id: str | None = None) -> None:
        self.name, self.path, self.base_id = name, path, base_id
        try:
            self._file: Any = safe_open(path, framework="pt")
            metadata = self._file.metadata() or {}
            stored = _Stored(self._file)
            self.shapes: Shapes = {
                key.removeprefix(MODEL_PREFIX): tuple(self._file.get_slice(key).get_shape())
                for key in stored
                if key.startswith(MODEL_PREFIX)
            }
            self.digest = metadata.get("digest", "")
            matches = "facts" in metadata and content_digest(stored, metadata["facts"]) == self.digest
        except (SafetensorError, OSError) as error:
            if isinstance(error, FileNotFoundError):
                raise
            raise DamagedCheckpoint(f"{path} cannot be read: {error}") from error
        if not matches:
            raise DamagedCheckpoint(f"{path} does not match its digest.")
        if not self.shapes:
            raise DamagedCheckpoint(f"{path} holds no weights of a model.")

    def rows(self, tensor: str, first: int, last: int, expert: int | None = None) -> Tensor:
        part = self._file.get_slice(MODEL_PREFIX + tensor)
        rows = part[first:last] if expert is None else part[expert : expert + 1, first:last][0]
        return _as_float(rows, self.name, tensor)


class _Stored(Mapping[str, Tensor]):
    """The tensors of an open file, each read when it is looked up."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def __getitem__(self, key: str) -> Tensor:
        tensor: Tensor = self._file.get_tensor(key)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._file.keys())

    def __len__(self) -> int:
        return len(self._file.keys())


class HeldComponent:
    """A component whose state is in memory already."""

    def __init__(self, name: str, state: Mapping[str, Tensor], base_id: str | None = None) -> None:
        self.name, self.base_id, self._state = name, base_id, state
        self.shapes: Shapes = {tensor: tuple(value.shape) for tensor, value in state.items()}

    def rows(self, tensor: str, first: int, last: int, expert: int | None = None) -> Tensor:
        value = self._state[tensor] if expert is None else self._state[tensor][expert]
        return _as_float(value[first:last], self.name, tensor).detach().cpu()


def members_of(pack: PackedProxy, names: Sequence[str], base_id: str | None = None) -> list[HeldComponent]:
    """The members of a pack as components, without copies."""
    state = pack.state_dict()
    return [HeldComponent(name, {key: value[k] for key, value in state.items()}, base_id) for k, name in enumerate(names)]


def _as_float(rows: Tensor, component: str, tensor: str) -> Tensor:
    if not rows.is_floating_point():
        raise ValueError(f"'{tensor}' of component '{component}' holds {rows.dtype}; only floating-point tensors can be merged.")
    return rows.float()


def check_alike(components: Sequence[Component]) -> None:
    """Raises ValueError unless there are components, with names of their own and the same tensors in the same shapes."""
    if not components:
        raise ValueError("A merge needs at least one component; components is empty.")
    names = [component.name for component in components]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"Component '{repeated[0]}' is there more than once; weights are given by name, so that names must differ.")
    for component in components[1:]:
        check_shapes(components[0], component)


def check_shapes(first: Component, other: Component) -> None:
    """Raises ValueError, naming the tensor, unless both have the same tensors in the same shapes."""
    for tensor in sorted(first.shapes.keys() | other.shapes.keys()):
        for one, two in ((first, other), (other, first)):
            if tensor not in one.shapes:
                raise ValueError(f"'{tensor}' is in '{two.name}' but not in '{one.name}'; only models of one shape can be merged.")
        if first.shapes[tensor] != other.shapes[tensor]:
            raise ValueError(
                f"'{tensor}' has shape {first.shapes[tensor]} in '{first.name}' and {other.shapes[tensor]} in '{other.name}'; only models "
                "of one shape can be merged."
            )
