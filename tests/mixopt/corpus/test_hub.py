"""The Hugging Face hub: what is asked of it, that names stay pinned to commits, and every way it can fail; no network is needed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import huggingface_hub
import pytest
from huggingface_hub import errors

from mixopt.corpus.documents import Limits, read_documents, read_pairs
from mixopt.corpus.hub import Commits, HubDataset, download_tokenizer
from mixopt.errors import ConfigError, DataError, MixoptError

OWNER = "domain 'web'"
COMMIT = "c" * 40
WEB = HubDataset("org/web", "sample", "train", COMMIT)


class Rows(list[dict[str, Any]]):
    """A streamed data set, as far as it is used."""

    column_names: Any = None

    def select_columns(self, columns: list[str]) -> Rows:
        chosen = Rows({column: row[column] for column in columns} for row in self)
        chosen.column_names = columns
        return chosen


def rows(count: int = 5) -> Rows:
    made = Rows({"text": f"text {n}", "url": "x"} for n in range(count))
    made.column_names = ["text", "url"]
    return made


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    seen: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def load(*arguments: Any, **options: Any) -> Rows:
        seen.append((arguments, options))
        return rows()

    monkeypatch.setattr(datasets, "load_dataset", load)
    return seen


def test_a_data_set_is_streamed_at_its_commit_and_runs_no_code(calls: list[tuple[tuple[Any, ...], dict[str, Any]]]) -> None:
    assert [document.text for document in read_documents(WEB, "text", OWNER)] == [f"text {n}" for n in range(5)]
    ((arguments, options),) = calls
    assert arguments == ("org/web", "sample")
    assert options == {"split": "train", "streaming": True, "revision": COMMIT}
    assert "trust_remote_code" not in options


def test_no_source_of_ours_hands_on_the_switch_for_remote_code() -> None:
    root = Path(__file__).resolve().parents[3]
    sources = [path for package in ("mixopt", "workers", "proxy_models") for path in (root / package).rglob("*.py")]
    assert len(sources) > 50
    assert [path for path in sources if "trust_remote_code=" in path.read_text() or '"trust_remote_code"' in path.read_text()] == []


@pytest.mark.usefixtures("calls")
def test_limits_and_places() -> None:
    documents = list(read_documents(WEB, "text", OWNER, Limits(documents=2)))
    assert [(document.text, document.source) for document in documents] == [("text 0", "org/web:1"), ("text 1", "org/web:2")]
    assert [pair.completion for pair in read_pairs(WEB, "text", "url", OWNER, Limits(documents=1))] == ["x"]


@pytest.mark.usefixtures("calls")
def test_a_missing_column_names_those_that_are_there() -> None:
    with pytest.raises(ConfigError, match=r"org/web \(sample\) of domain 'web' has no column 'body'.*text, url"):
        list(read_documents(WEB, "body", OWNER))


def test_what_is_no_text_is_told_with_its_row(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = rows(2)
    broken[1]["text"] = 3
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: broken)
    with pytest.raises(DataError, match=r"Row 2 of org/web \(sample\) .* the int 3"):
        list(read_documents(WEB, "text", OWNER))


@pytest.mark.parametrize(
    ("error", "kind", "message", "hint"),
    [
        (ValueError("BuilderConfig 'sample' not found. Available: ['full']"), ConfigError, "no such configuration: .*'full'", "hub.config"),
        (ValueError("Config name is missing."), ConfigError, "no such configuration", "hub.config"),
        (ValueError("Bad split: train. Available splits: ['test']"), ConfigError, "no split 'train': .*'test'", "hub.split"),
        (ConnectionError("Couldn't reach the Hub"), DataError, "hub does not answer for org/web", "Check the network"),
        (RuntimeError("Dataset scripts are no longer supported"), DataError, "scripts are no longer", "download the files"),
    ],
)
def test_what_the_library_raises_becomes_one_sentence(
    monkeypatch: pytest.MonkeyPatch, error: Exception, kind: type[MixoptError], message: str, hint: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(kind, match=message) as caught:
        list(read_documents(WEB, "text", OWNER))
    assert hint in caught.value.hint


def test_a_stream_that_breaks_off_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class Breaking(Rows):
        def __iter__(self) -> Any:
            yield {"text": "one"}
            raise TimeoutError("read timed out")

        def select_columns(self, columns: list[str]) -> Rows:
            return self

    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: Breaking())
    with pytest.raises(DataError, match="cannot be read on: read timed out"):
        list(read_documents(WEB, "text", OWNER))


def test_a_folder_that_looks_like_the_name_is_not_read_instead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org" / "web").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="A folder org/web lies here"):
        list(read_documents(WEB, "text", OWNER))


def local_dataset(folder: Path, texts: list[str]) -> HubDataset:
    """A data set of two splits as the hub lays one out, read through the same code."""
    folder.mkdir(exist_ok=True)
    for split in ("train", "test"):
        content = "".join(json.dumps({"text": f"{split} {text}"}) + "\n" for text in texts)
        (folder / f"{split}.jsonl").write_text(content)
    commit, _ = Commits(folder.parent).resolve("dataset", str(folder), None, OWNER)
    return HubDataset(str(folder), None, "test", commit)


def test_a_local_data_set_is_read_by_the_real_library(tmp_path: Path) -> None:
    source = local_dataset(tmp_path / "data", ["a", "b"])
    assert [document.text for document in read_documents(source, "text", OWNER)] == ["test a", "test b"]
    with pytest.raises(ConfigError, match="has no split 'dev'"):
        list(read_documents(HubDataset(source.dataset, None, "dev", source.commit), "text", OWNER))
    with pytest.raises(ConfigError, match="no such configuration"):
        list(read_documents(HubDataset(source.dataset, "sample", "test", source.commit), "text", OWNER))
    with pytest.raises(ConfigError, match=r"has no column 'txt'.*text"):
        list(read_documents(source, "txt", OWNER))
    (tmp_path / "data" / "test.jsonl").write_text("changed")
    assert Commits(tmp_path).resolve("dataset", str(tmp_path / "data"), None, OWNER)[0] != source.commit
    with pytest.raises(DataError, match="does not exist"):
        Commits(tmp_path).resolve("dataset", str(tmp_path / "none"), None, OWNER)


def answering(monkeypatch: pytest.MonkeyPatch, answer: Callable[[str, str | None], Any]) -> list[tuple[str, str | None]]:
    """Makes the hub answer so; returns what it was asked."""
    asked: list[tuple[str, str | None]] = []

    def ask(_: Any, name: str, revision: str | None = None, timeout: float | None = None) -> Any:
        assert timeout, "without a limit a dead network would hold the command up"
        asked.append((name, revision))
        return answer(name, revision)

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", ask)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", ask)
    return asked


def test_a_branch_is_asked_for_once_and_its_commit_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A branch that moves, or a hub that is away, changes nothing for this output."""
    asked = answering(monkeypatch, lambda *_: SimpleNamespace(sha=COMMIT))
    assert Commits(tmp_path).resolve("dataset", "org/web", None, OWNER) == (COMMIT, True)
    answering(monkeypatch, lambda *_: SimpleNamespace(sha="d" * 40))
    assert Commits(tmp_path).resolve("dataset", "org/web", None, OWNER) == (COMMIT, False)
    assert Commits(tmp_path).resolve("dataset", "org/web", "v2", OWNER) == ("d" * 40, True)
    assert Commits(tmp_path).resolve("model", "org/web", None, OWNER) == ("d" * 40, True)
    assert Commits(tmp_path).resolve("dataset", "org/web", "e" * 40, OWNER) == ("e" * 40, False)
    assert asked == [("org/web", None)]


def response(status: int) -> Any:
    """What the library's errors want to hold."""
    from huggingface_hub.utils import _http

    httpx = next(getattr(_http, name) for name in ("httpx", "httpx2") if hasattr(_http, name))
    return httpx.Response(status, request=httpx.Request("GET", "http://127.0.0.1"))


@pytest.mark.parametrize(
    ("error", "kind", "message", "hint"),
    [
        (lambda: errors.RepositoryNotFoundError("404", response=response(404)), ConfigError, "knows no data set org/web", "HF_TOKEN"),
        (lambda: errors.GatedRepoError("403", response=response(403)), ConfigError, "does not show data set org/web", "HF_TOKEN"),
        (lambda: errors.RevisionNotFoundError("404", response=response(404)), ConfigError, "has no revision 'v9'", "branch, tag or commit"),
        (lambda: errors.HFValidationError("bad"), ConfigError, "'org/web' .* is no name of a data set", "organization/name"),
        (lambda: ConnectionError("Name or service not known"), DataError, "does not answer for org/web", "Check the network"),
    ],
)
def test_a_name_that_cannot_be_resolved_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Callable[[], Exception], kind: type[MixoptError], message: str, hint: str
) -> None:
    def fail(*_: object) -> None:
        raise error()

    answering(monkeypatch, fail)
    with pytest.raises(kind, match=message) as caught:
        Commits(tmp_path).resolve("dataset", "org/web", "v9", OWNER)
    assert hint in caught.value.hint
    assert not (tmp_path / "hub.json").exists()


@pytest.mark.parametrize("content", ["{", "[]", '{"a": 1}'])
def test_lost_commits_are_not_asked_for_again_in_silence(tmp_path: Path, content: str) -> None:
    (tmp_path / "hub.json").write_text(content)
    with pytest.raises(DataError, match="keeps the commits of hub data sets, is damaged"):
        Commits(tmp_path).resolve("dataset", "org/web", None, OWNER)


def test_a_tokenizer_is_one_file_at_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tokenizer.json").write_bytes(b"{}")
    asked: list[Any] = []

    def download(*arguments: Any, **options: Any) -> str:
        asked.append((arguments, options))
        return str(tmp_path / "tokenizer.json")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert download_tokenizer("org/model", COMMIT) == b"{}"
    assert asked == [(("org/model", "tokenizer.json"), {"revision": COMMIT})]


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (lambda: errors.EntryNotFoundError("404"), ConfigError, "has no tokenizer.json"),
        (lambda: errors.LocalEntryNotFoundError("offline"), DataError, "does not answer for org/model"),
        (lambda: OSError("timed out"), DataError, "does not answer for org/model"),
    ],
)
def test_a_tokenizer_that_cannot_be_had_is_told(
    monkeypatch: pytest.MonkeyPatch, error: Callable[[], Exception], kind: type[MixoptError], message: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error()

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    with pytest.raises(kind, match=message):
        download_tokenizer("org/model", COMMIT)
