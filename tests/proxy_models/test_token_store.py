"""The token file: what is written is read back, and damage is always found."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proxy_models.token_store import DamagedTokenFile, TokenFileInfo, TokenStore, TokenWriter

reuse_tmp_path = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)


def write(path: Path, documents: list[list[int]], vocab_size: int = 100) -> TokenFileInfo:
    with TokenWriter(path, vocab_size, "tok") as writer:
        for index, ids in enumerate(documents):
            writer.add(ids, text_bytes=3 * len(ids), scored_from=index % len(ids))
        return writer.close("content")


@reuse_tmp_path
@given(
    documents=st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=9), max_size=6),
    vocab_size=st.sampled_from([100, 1 << 16, (1 << 16) + 1]),
)
def test_round_trip(tmp_path: Path, documents: list[list[int]], vocab_size: int) -> None:
    path = tmp_path / "domain.tokens"
    written = write(path, documents, vocab_size)
    store = TokenStore.open(path)
    store.verify()
    assert store.info == written
    assert store.tokens.dtype == (np.uint16 if vocab_size <= 1 << 16 else np.uint32)
    starts = [0, *store.document_ends.tolist()]
    assert [store.tokens[a:b].tolist() for a, b in itertools.pairwise(starts)] == documents
    assert store.document_bytes.tolist() == [3 * len(ids) for ids in documents]
    assert store.scored_from.tolist() == [i % len(ids) for i, ids in enumerate(documents)]
    assert (written.tokens, written.documents, written.bytes) == (
        sum(map(len, documents)),
        len(documents),
        3 * sum(map(len, documents)),
    )


def test_ids_at_the_edge_of_uint16_survive(tmp_path: Path) -> None:
    write(tmp_path / "t", [[0, 65535]], 1 << 16)
    assert TokenStore.open(tmp_path / "t").tokens.tolist() == [0, 65535]


def test_same_documents_give_the_same_bytes(tmp_path: Path) -> None:
    write(tmp_path / "a", [[1, 2, 3], [4]])
    write(tmp_path / "b", [[1, 2, 3], [4]])
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@reuse_tmp_path
@given(position=st.integers(0, 10_000), flip=st.integers(1, 255))
def test_any_changed_byte_is_found(tmp_path: Path, position: int, flip: int) -> None:
    path = tmp_path / "domain.tokens"
    write(path, [[1, 2, 3, 4, 5], [6, 7]])
    content = bytearray(path.read_bytes())
    content[position % len(content)] ^= flip
    path.write_bytes(content)
    with pytest.raises(DamagedTokenFile):
        TokenStore.open(path).verify()


def test_every_truncation_is_found_at_open(tmp_path: Path) -> None:
    path = tmp_path / "domain.tokens"
    write(path, [[1, 2, 3, 4, 5], [6, 7]])
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(DamagedTokenFile):
            TokenStore.open(path)


def test_foreign_file_is_named_as_such(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(b"x" * 500)
    with pytest.raises(DamagedTokenFile, match="does not begin as a token file"):
        TokenStore.open(path)


def write_and_fail(path: Path) -> None:
    with TokenWriter(path, 10, "tok") as writer:
        writer.add([2], 1)
        raise RuntimeError


def test_an_exception_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        write_and_fail(tmp_path / "t")
    assert list(tmp_path.iterdir()) == []


def test_an_exception_keeps_the_earlier_file(tmp_path: Path) -> None:
    write(tmp_path / "t", [[1]])
    before = (tmp_path / "t").read_bytes()
    with pytest.raises(RuntimeError):
        write_and_fail(tmp_path / "t")
    assert (tmp_path / "t").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_leaving_without_close_leaves_nothing(tmp_path: Path) -> None:
    with TokenWriter(tmp_path / "t", 10, "tok") as writer:
        writer.add([1], 1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("ids", "text_bytes", "scored_from"),
    [([], 0, 0), ([10], 1, 0), ([-1], 1, 0), ([1], -1, 0), ([1, 2], 1, 2), ([1, 2], 1, -1)],
)
def test_wrong_documents_are_refused(tmp_path: Path, ids: list[int], text_bytes: int, scored_from: int) -> None:
    with TokenWriter(tmp_path / "t", 10, "tok") as writer, pytest.raises(ValueError):
        writer.add(ids, text_bytes, scored_from)
