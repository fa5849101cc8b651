"""Documents of token files, compared."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proxy_models.token_store import TokenWriter
from workers.tokens.documents import document_digests, prepared_file, shared_documents

Documents = Sequence[Sequence[int]]
lists = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=3), min_size=1, max_size=12)


def write(path: Path, documents: Documents, content: str = "content", tokenizer: str = "tok") -> Path:
    with TokenWriter(path, 64, tokenizer) as writer:
        for ids in documents:
            writer.add(ids, len(ids))
        writer.close(content)
    return path


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
@given(lists, lists)
def test_shares_are_those_of_distinct_documents(tmp_path: Path, new: Documents, old: Documents) -> None:
    files = write(tmp_path / "new", new), write(tmp_path / "old", old)
    ours, theirs = ({tuple(ids) for ids in documents} for documents in (new, old))
    assert len(document_digests(files[0])) == len(ours)
    found = shared_documents({"n": files[0]}, {"o": files[1]})
    expected = len(ours & theirs) / len(ours)
    assert found == {"n": {"o": pytest.approx(expected)} if expected else {}}


def test_a_prepared_file_is_found_by_content_and_tokenizer(tmp_path: Path) -> None:
    write(tmp_path / "web.train.0a.tokens", [[1]], "other")
    right = write(tmp_path / "web.train.0b.tokens", [[1]])
    write(tmp_path / "web.train.0c.tokens", [[1]], tokenizer="another")
    write(tmp_path / "web.valid.0d.tokens", [[1]])
    (tmp_path / "web.train.00.tokens").write_bytes(b"damaged")
    assert prepared_file(tmp_path, "web", "content", "tok") == right
    assert prepared_file(tmp_path, "code", "content", "tok") is None
    assert prepared_file(tmp_path / "nowhere", "web", "content", "tok") is None
