"""Data sets and tokenizers of the Hugging Face hub.

A branch moves, so a name is resolved to a commit once, the commit is kept beside the token files, and from then on the same data are read,
also where the hub does not answer. To move on, name another `revision`. Data sets are streamed, and no code of theirs is run: the switch that
would allow it is never given. The trade-off: whoever wants the newest data has to say so.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mixopt.corpus.tokenizer import write_atomically
from mixopt.errors import ConfigError, DataError, MixoptError

COMMITS_NAME = "hub.json"
# How long to wait for the hub's answer about a name before saying that there is none.
ANSWER_SECONDS = 15.0
ACCESS = "If it is private or gated, ask for access and set HF_TOKEN."
OFFLINE = "Check the network (HF_ENDPOINT and proxies too), or download the files and name them under `path`."

Kind = Literal["dataset", "model"]


@dataclass(frozen=True)
class HubDataset:
    """One split of a data set at one commit."""

    dataset: str
    config: str | None
    split: str
    commit: str

    def identity(self) -> list[Any]:
        return [self.dataset, self.config, self.split, self.commit]

    def __str__(self) -> str:
        return f"{self.dataset}{f' ({self.config})' if self.config else ''}"


class Commits:
    """The commits that names stood for when they were first seen, in `hub.json` of a folder."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / COMMITS_NAME

    def resolve(self, kind: Kind, name: str, revision: str | None, owner: str) -> tuple[str, bool]:
        """The commit of a repository, and whether it was asked for just now; a full commit is taken as it is.

        Raises:
            ConfigError: the hub knows no such repository or revision, or does not show it.
            DataError: the hub does not answer.
        """
        if revision is not None and re.fullmatch(r"[0-9a-f]{40}", revision):
            return revision, False
        if kind == "dataset" and Path(name).is_absolute():
            return _folder_commit(Path(name), owner), False
        known = self._read()
        key = f"{kind}:{name}@{revision or ''}"
        if key in known:
            return known[key], False
        commit = _ask(kind, name, revision, owner)
        write_atomically(self._path, json.dumps({**known, key: commit}, indent=1, sort_keys=True).encode("utf-8"))
        return commit, True

    def _read(self) -> dict[str, str]:
        if not self._path.exists():
            return {}
        try:
            body = json.loads(self._path.read_text(encoding="utf-8"))
            if not isinstance(body, dict) or not all(isinstance(commit, str) for commit in body.values()):
                raise ValueError("it holds something else than names and commits")
        except ValueError as error:
            # Asking again could give other data under the same names, unnoticed.
            raise DataError(
                f"{self._path}, which keeps the commits of hub data sets, is damaged ({error}).",
                "Delete it to ask the hub again; data sets whose branch has moved are then prepared anew.",
            ) from error
        return body


def hub_rows(source: HubDataset, columns: Sequence[str], owner: str) -> Iterator[dict[str, Any]]:
    """Rows of a data set, streamed.

    Raises:
        ConfigError: no such configuration, split or column.
        DataError: the hub does not answer, or a file of the data set cannot be read.
    """
    import datasets

    name, local = source.dataset, Path(source.dataset).is_absolute()
    if not local and Path(name).exists():
        # `datasets` would take it for the data set.
        raise ConfigError(f"A folder {name} lies here and would be read instead of the hub's {name} ({owner}).", "Run mixopt elsewhere.")
    revision = {} if local else {"revision": source.commit}
    with quiet_datasets():
        try:
            rows = datasets.load_dataset(name, source.config, split=source.split, streaming=True, **revision)
            present = rows.column_names
        except StopIteration:
            return
        except Exception as error:  # the library raises many kinds; their words tell which it is
            raise _not_loaded(source, owner, error) from error
        if present is not None:
            missing = next((column for column in columns if column not in present), None)
            if missing is not None:
                raise ConfigError(f"Data set {source} of {owner} has no column '{missing}'.", f"Its columns are {', '.join(present)}.")
            rows = rows.select_columns(list(columns))
        try:
            yield from rows
        except Exception as error:
            raise DataError(f"Data set {source} of {owner} cannot be read on: {_words(error)}.", OFFLINE) from error


def download_tokenizer(name: str, commit: str) -> bytes:
    """The tokenizer.json of a repository at a commit.

    Raises:
        ConfigError: it has none, or does not show it.
        DataError: the hub does not answer.
    """
    import huggingface_hub
    from huggingface_hub import errors

    try:
        return Path(huggingface_hub.hf_hub_download(name, "tokenizer.json", revision=commit)).read_bytes()
    except errors.LocalEntryNotFoundError as error:
        raise _no_answer(name, "tokenizer", error) from error
    except errors.EntryNotFoundError as error:
        raise ConfigError(
            f"Repository {name} of the Hugging Face hub has no tokenizer.json.",
            "Name another under `tokenizer.hub`, or a file under `tokenizer.path`.",
        ) from error
    except Exception as error:
        raise _no_answer(name, "tokenizer", error) from error


@contextmanager
def quiet_datasets() -> Iterator[None]:
    """Keeps `datasets` from counting loads with requests, and from logging a broken file before it raises: the error says the same better."""
    import datasets

    # It counts loads, even of local files, with a request to its hub that takes seconds where there is no network.
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False
    verbosity = datasets.logging.get_verbosity()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        yield
    finally:
        datasets.logging.set_verbosity(verbosity)


def _ask(kind: Kind, name: str, revision: str | None, owner: str) -> str:
    import huggingface_hub
    from huggingface_hub import errors

    hub = huggingface_hub.HfApi()
    ask = hub.dataset_info if kind == "dataset" else hub.model_info
    what = "data set" if kind == "dataset" else "repository"
    try:
        commit = ask(name, revision=revision, timeout=ANSWER_SECONDS).sha
    except errors.GatedRepoError as error:
        raise ConfigError(f"The Hugging Face hub does not show {what} {name} ({owner}).", ACCESS) from error
    except errors.RevisionNotFoundError as error:
        raise ConfigError(f"The {what} {name} ({owner}) has no revision '{revision}'.", "Name a branch, tag or commit of it.") from error
    except errors.RepositoryNotFoundError as error:
        raise ConfigError(f"The Hugging Face hub knows no {what} {name} ({owner}).", f"Mend the name. {ACCESS}") from error
    except errors.HFValidationError as error:
        raise ConfigError(f"'{name}' ({owner}) is no name of a {what} on the hub.", "Write organization/name.") from error
    except Exception as error:
        raise _no_answer(name, owner, error) from error
    if not commit:
        raise DataError(f"The Hugging Face hub names no commit of {what} {name} ({owner}).", "Name a full commit under `revision`.")
    return str(commit)


def _folder_commit(folder: Path, owner: str) -> str:
    """Stands for the content of a local folder as size and time do for a file."""
    if not folder.is_dir():
        raise DataError(f"Folder {folder} of {owner} does not exist.", "Mend `hub.dataset`, or name a data set of the hub.")
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    stats = [[str(path.relative_to(folder)), path.stat().st_size, path.stat().st_mtime_ns] for path in files]
    return hashlib.sha256(json.dumps(stats).encode("utf-8")).hexdigest()[:40]


def _not_loaded(source: HubDataset, owner: str, error: Exception) -> MixoptError:
    words = _words(error)
    if "BuilderConfig" in words or "Config name is missing" in words:
        return ConfigError(f"Data set {source.dataset} of {owner} has no such configuration: {words}.", "Mend `hub.config`.")
    if "split" in words.lower() and isinstance(error, ValueError):
        return ConfigError(f"Data set {source} of {owner} has no split '{source.split}': {words}.", "Mend `hub.split`.")
    if isinstance(error, ValueError):
        return ConfigError(
            f"Data set {source} of {owner} cannot be read: {words}.", "Check `hub`, or download its files and name them under `path`."
        )
    return _no_answer(source.dataset, owner, error)


def _no_answer(name: str, owner: str, error: Exception) -> DataError:
    return DataError(f"The Hugging Face hub does not answer for {name} ({owner}): {_words(error)}.", OFFLINE)


def _words(error: Exception) -> str:
    return " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__
