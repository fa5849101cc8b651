"""Checkpoints and weights of one member: safetensors with facts as JSON in the header, written atomically, checked when read.

One file per member, so that a member can go on alone, in another pack or in another process. The header carries a SHA-256 of tensors and facts because
safetensors itself notices truncation but not changed bytes. Trade-off: a checkpoint is read whole before it is believed; proxies are small.

What is damaged, or belongs to another run, is treated as absent: the member starts anew, which costs time and never correctness.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

CHECKPOINT_NAME = "checkpoint.safetensors"
WEIGHTS_NAME = "weights.safetensors"


class DamagedCheckpoint(ValueError):
    """The file is truncated, is not ours, or its content does not match its digest."""


@dataclass(frozen=True)
class Checkpoint:
    """Tensors by name, on the CPU, and facts as JSON values."""

    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any]

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names start with `prefix` and a dot, without it."""
        return {name.removeprefix(f"{prefix}."): tensor for name, tensor in self.tensors.items() if name.startswith(f"{prefix}.")}


def with_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `Checkpoint.part`."""
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def save_checkpoints(checkpoints: Mapping[Path, Checkpoint]) -> None:
    """Writes several files, then renames all of them.

    Renames follow each other within microseconds, so members whose process is killed here nearly always go on from steps of one time.
    """
    temporaries = {path: path.with_name(f".{path.name}.{os.getpid()}.tmp") for path in checkpoints}
    for path, checkpoint in checkpoints.items():
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.tensors.items()}
        facts = json.dumps(checkpoint.facts, sort_keys=True, allow_nan=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, temporaries[path], metadata={"facts": facts, "digest": content_digest(tensors, facts)})
    for path, temporary in temporaries.items():
        os.replace(temporary, path)


def load_checkpoint(path: Path) -> Checkpoint:
    """Reads and checks one file.

    Raises:
        FileNotFoundError: there is none.
        DamagedCheckpoint: it cannot be read, or its content does not match its digest.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise DamagedCheckpoint(f"{path} cannot be read: {error}") from error
    if "facts" not in metadata or metadata.get("digest") != content_digest(tensors, metadata["facts"]):
        raise DamagedCheckpoint(f"{path} does not match its digest.")
    return Checkpoint(tensors, json.loads(metadata["facts"]))


def load_matching(path: Path, spec_hash: str) -> Checkpoint | None:
    """The checkpoint at `path`, or None if there is none, it is damaged, or its fact `spec` is not `spec_hash`."""
    try:
        checkpoint = load_checkpoint(path)
    except (FileNotFoundError, DamagedCheckpoint):
        return None
    return checkpoint if checkpoint.facts.get("spec") == spec_hash else None


def finish(folder: Path) -> None:
    """Removes the checkpoint of a member whose result the caller has stored, and what killed writers left; its weights stay."""
    (folder / CHECKPOINT_NAME).unlink(missing_ok=True)
    for name in (CHECKPOINT_NAME, WEIGHTS_NAME):
        for leftover in folder.glob(f".{name}.*.tmp"):
            leftover.unlink(missing_ok=True)


def content_digest(tensors: Mapping[str, Tensor], facts: str) -> str:
    """What a header says of its file's content. Tensors are looked up one after the other, so that a lazy mapping never holds two."""
    digest = hashlib.sha256(facts.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
