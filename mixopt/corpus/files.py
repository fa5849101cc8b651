"""Where documents lie: files of this machine, and addresses that fsspec knows, such as s3://, gs://, hf:// and https://.

Patterns are resolved here and not by the libraries that read, whose answer to a pattern without a match says nothing to a user. A file is
told from what it was before by size and time; an address by size and what its server gives (entity tag, version or time). Credentials are
never ours: drivers find them in the environment, and no option of theirs is kept. The trade-off: where a server gives nothing but a size,
a change that keeps the size is not seen, and the user is told so.
"""

from __future__ import annotations

import difflib
import glob
import gzip
import io
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote, urlsplit

from mixopt.addresses import is_url
from mixopt.errors import ConfigError, DataError, MixoptError

FILE_SCHEME = "file://"
# Drivers that fsspec does not bring, and the package that does.
DRIVERS = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs", "abfss": "adlfs", "az": "adlfs", "adl": "adlfs"}
# What file systems call the thing that changes with the content, best first.
VERSION_KEYS = (
    "ETag",
    "etag",
    "version_id",
    "md5Hash",
    "Content-MD5",
    "Digest",
    "LastModified",
    "Last-Modified",
    "last_modified",
    "mtime",
    "created",
)
ABSENT = (404, 410)
"""HTTP states of what is not there."""
SUFFIXES = {
    ".jsonl": "json",
    ".json": "json",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".txt": "text",
    ".md": "text",
    ".rst": "text",
}
"""Suffix -> format."""
COMPRESSED = {".gz": "gzip", ".zst": "zstd"}
"""Suffix after that of json and text -> compression."""
SUPPORTED = "json, jsonl, parquet, arrow, txt, md or rst; json and text also with .gz or .zst"


@dataclass(frozen=True)
class Url:
    """A file at an address, as it was found.

    Attributes:
        size: bytes; None if its server does not say.
        version: entity tag, version or time of change; empty if its server gives none.
    """

    address: str
    size: int | None = None
    version: str = ""

    @property
    def name(self) -> str:
        return unquote(urlsplit(self.address).path.rstrip("/").rpartition("/")[2])

    def __str__(self) -> str:
        return self.address.partition("?")[0]  # what follows may be a signature


InputFile = Path | Url


def resolve_files(patterns: Sequence[str], owner: str) -> tuple[InputFile, ...]:
    """The files that paths, globs and addresses name: in the order given, sorted within a glob, each once.

    Args:
        owner: who reads them, for messages: "domain 'code'".

    Raises:
        DataError: a path does not exist, a pattern matches nothing, or an address does not answer.
        ConfigError: a path is a folder, a file has a suffix that no reader knows, or the driver of an address is not installed.
    """
    files: dict[InputFile, None] = {}
    for pattern in patterns:
        if pattern.startswith(FILE_SCHEME):
            pattern = unquote(urlsplit(pattern).path)
        found: Sequence[InputFile] = _resolve_url(pattern, owner) if is_url(pattern) else _resolve_path(pattern, owner)
        for file in found:
            format_of(file, owner)
        files.update(dict.fromkeys(found))
    return tuple(files)


def is_elsewhere(location: str) -> bool:
    """Whether a location is an address that is not of a file of this machine."""
    return is_url(location) and not location.startswith(FILE_SCHEME)


def format_of(file: InputFile, owner: str) -> str:
    """The format by suffix: "json", "parquet", "arrow" or "text".

    Raises:
        ConfigError: no reader knows it.
    """
    suffixes = [suffix.lower() for suffix in Path(file.name).suffixes]
    if suffixes and suffixes[-1] in COMPRESSED:
        known = SUFFIXES.get(suffixes[-2]) if len(suffixes) > 1 else None
        known = known if known in ("json", "text") else None
    else:
        known = SUFFIXES.get(suffixes[-1]) if suffixes else None
    if known is None:
        raise ConfigError(f"File {file} of {owner} has the unsupported suffix '{''.join(suffixes[-2:])}'.", f"Use {SUPPORTED}.")
    return known


def identity(file: InputFile) -> list[Any]:
    """What tells a file from what it was before, as JSON values."""
    if isinstance(file, Url):
        return [file.address, file.size, file.version]
    stat = file.stat()
    return [str(file), stat.st_size, stat.st_mtime_ns]


def size_of(file: InputFile) -> int | None:
    return file.size if isinstance(file, Url) else file.stat().st_size


def compression_of(file: InputFile) -> str | None:
    return COMPRESSED.get(Path(file.name).suffix.lower())


def open_file(file: InputFile) -> IO[bytes]:
    """The bytes of a file as they are stored."""
    if isinstance(file, Path):
        return file.open("rb")
    system, path = _file_system(file.address, str(file))
    stream: IO[bytes] = system.open(path, "rb")
    return stream


def open_content(file: InputFile) -> IO[bytes]:
    """The bytes of a file, decompressed; a compressed file that ends early raises at its end."""
    return decompressed(open_file(file), compression_of(file))


def decompressed(raw: IO[bytes], compression: str | None) -> IO[bytes]:
    """What a stream of compressed bytes stands for; closing it closes the stream."""
    if compression == "gzip":
        return _ClosesBoth(gzip.GzipFile(fileobj=raw, mode="rb"), raw)
    if compression == "zstd":
        import pyarrow as pa

        # Not the `zstandard` package: it reads the first frame only, and takes the end of a truncated file for the end of the text.
        return io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), "zstd"))
    return raw


class _ClosesBoth(io.BufferedReader):
    """A reader of a gzip file, which does not close the file below it by itself."""

    def __init__(self, content: gzip.GzipFile, below: IO[bytes]) -> None:
        super().__init__(content)
        self._below = below

    def close(self) -> None:
        super().close()
        self._below.close()


def _resolve_path(pattern: str, owner: str) -> list[Path]:
    matches = [pattern] if Path(pattern).exists() else sorted(glob.glob(pattern, recursive=True))
    found = [Path(match) for match in matches if Path(match).is_file()]
    if not found:
        raise _nothing_found(pattern, owner)
    return found


def _resolve_url(pattern: str, owner: str) -> list[Url]:
    shown = pattern.partition("?")[0] if pattern.startswith("http") else pattern
    system, path = _file_system(pattern, f"{shown} of {owner}")
    # A question mark begins the query of a web address.
    is_glob = any(sign in path for sign in ("*[" if pattern.startswith("http") else "*?["))
    try:
        infos = system.glob(path, detail=True) if is_glob else {path: system.info(path)}
    except Exception as error:  # every driver has errors of its own
        # Of a web address fsspec says "not found" whatever went wrong; what did is behind it.
        cause = (error.__cause__ if pattern.startswith("http") else None) or error
        status = getattr(cause, "status", None)
        if isinstance(cause, FileNotFoundError) or status in ABSENT:
            raise DataError(f"File {shown} of {owner} does not exist.", "Mend the address.") from error
        reason = f"HTTP {status}" if status else " ".join(str(cause).replace(pattern, shown).split())[:200] or type(cause).__name__
        raise DataError(
            f"{shown} of {owner} cannot be reached: {reason}.", "Check the address, the network, and the credentials in the environment."
        ) from error
    found = [_found(system, pattern, name, info) for name, info in sorted(infos.items()) if info.get("type") != "directory"]
    if not found:
        if is_glob:
            raise DataError(f"Pattern {shown} of {owner} matches no file.", "Mend the pattern.")
        raise ConfigError(f"Address {shown} of {owner} is a folder.", f"Name its files, as {shown.rstrip('/')}/*.jsonl.")
    return found


def _found(system: Any, pattern: str, name: str, info: dict[str, Any]) -> Url:
    version = next((info[key] for key in VERSION_KEYS if info.get(key)), "")
    if isinstance(version, datetime):  # as some give it for a file, and seconds in listings
        version = version.timestamp()
    size = info.get("size")
    address = name if is_url(name) else f"{urlsplit(pattern).scheme}://{str(system.unstrip_protocol(name)).partition('://')[2]}"
    return Url(address, None if size is None else int(size), str(version))


def _file_system(address: str, shown: str) -> tuple[Any, str]:
    """The file system of an address, and its path there."""
    import fsspec

    protocol = urlsplit(address).scheme
    try:
        system, path = fsspec.core.url_to_fs(address)
    except ImportError as error:
        package = DRIVERS.get(protocol)
        remedy = f"Run `pip install {package}`." if package else f"{str(error).rstrip('.')}."
        raise ConfigError(f"Nothing here reads {protocol}:// ({shown}): its driver is not installed.", remedy) from error
    except ValueError as error:
        raise ConfigError(
            f"Nothing reads {protocol}:// ({shown}).", "Use s3://, gs://, abfs://, hf://, https:// or another file system of fsspec."
        ) from error
    return system, str(path)


def _nothing_found(pattern: str, owner: str) -> MixoptError:
    path = Path(pattern)
    if path.is_dir():
        return ConfigError(f"Path {pattern} of {owner} is a folder.", f"Name its files, as {pattern.rstrip('/')}/*.jsonl.")
    if glob.has_magic(pattern):
        return DataError(
            f"Pattern {pattern} of {owner} matches no file.", "Mend the pattern; relative ones are relative to the experiment file."
        )
    siblings = [item.name for item in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, siblings, n=1)
    remedy = f"Did you mean {near[0]}?" if near else "Mend the path; relative ones are relative to the experiment file."
    return DataError(f"File {pattern} of {owner} does not exist.", remedy)
