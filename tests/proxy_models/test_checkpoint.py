"""Checkpoints: exact, bound to their run, and never believed when damaged."""

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proxy_models.checkpoint import (
    CHECKPOINT_NAME,
    Checkpoint,
    DamagedCheckpoint,
    finish,
    load_checkpoint,
    load_matching,
    save_checkpoints,
    with_prefix,
)

TENSORS = {
    "model.weight": torch.tensor([[1.0, -2.5], [3e-40, float("inf")]]),
    "optimizer.step": torch.tensor(7.0),
    "history.losses": torch.zeros(0, dtype=torch.float64),
}


def save(path: Path, spec: str = "mine") -> Checkpoint:
    checkpoint = Checkpoint(TENSORS, {"spec": spec, "losses": [0.1, 1 / 3]})
    save_checkpoints({path: checkpoint})
    return checkpoint


def test_round_trip_is_exact(tmp_path: Path) -> None:
    saved = save(tmp_path / "deep" / "c")
    loaded = load_checkpoint(tmp_path / "deep" / "c")
    assert loaded.facts == saved.facts
    assert loaded.tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert loaded.tensors[name].dtype == tensor.dtype
        assert torch.equal(loaded.tensors[name], tensor)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["c"]


def test_parts_are_the_inverse_of_prefixes() -> None:
    checkpoint = Checkpoint(TENSORS, {})
    assert set(checkpoint.part("model")) == {"weight"}
    assert with_prefix("model", checkpoint.part("model")).keys() == {"model.weight"}


def test_strided_tensors_are_saved_as_their_values(tmp_path: Path) -> None:
    matrix = torch.arange(6.0).view(2, 3)
    save_checkpoints({tmp_path / "c": Checkpoint({"t": matrix.T}, {"spec": "x"})})
    assert torch.equal(load_checkpoint(tmp_path / "c").tensors["t"], matrix.T)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 5000), flip=st.integers(1, 255))
def test_any_changed_byte_is_found(tmp_path: Path, position: int, flip: int) -> None:
    path = tmp_path / "c"
    save(path)
    content = bytearray(path.read_bytes())
    content[position % len(content)] ^= flip
    path.write_bytes(content)
    try:
        loaded = load_checkpoint(path)
    except DamagedCheckpoint:
        return
    # JSON has bytes that carry nothing, such as padding; then nothing may have changed.
    assert loaded.facts == {"spec": "mine", "losses": [0.1, 1 / 3]}
    assert all(torch.equal(loaded.tensors[name], tensor) for name, tensor in TENSORS.items())


def test_truncated_and_foreign_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "c"
    save(path)
    content = path.read_bytes()
    for damaged in (b"", content[:4], content[:-1], content[: len(content) // 2], b"not a checkpoint" * 40):
        path.write_bytes(damaged)
        with pytest.raises(DamagedCheckpoint):
            load_checkpoint(path)
        assert load_matching(path, "mine") is None


def test_only_the_matching_specification_is_loaded(tmp_path: Path) -> None:
    save(tmp_path / "c")
    assert load_matching(tmp_path / "c", "mine") is not None
    assert load_matching(tmp_path / "c", "other") is None
    assert load_matching(tmp_path / "absent", "mine") is None


def test_a_checkpoint_without_finite_facts_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        save_checkpoints({tmp_path / "c": Checkpoint({}, {"loss": float("nan")})})
    assert list(tmp_path.iterdir()) == []


def test_finish_removes_the_checkpoint_alone_and_may_be_repeated(tmp_path: Path) -> None:
    save(tmp_path / CHECKPOINT_NAME)
    save(tmp_path / "weights.safetensors")
    (tmp_path / f".{CHECKPOINT_NAME}.123.tmp").write_bytes(b"half a file")
    finish(tmp_path)
    finish(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["weights.safetensors"]
