"""The files that an installation of mixopt is sure to have: the standard library, and its own dependencies.

Only mixopt's declared dependencies and theirs count, whatever else the environment holds, so that the embedded corpus does not change when a
user installs one more package. Files come in the order of the hash of their name: an even sample of all packages wherever one stops.
"""

from __future__ import annotations

import csv
import hashlib
import importlib.metadata
import platform
import re
import site
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from mixopt.errors import DataError

ROOT_DISTRIBUTION = "mixopt"
# Not written for this interpreter's users (tests, vendored copies) or not written by hand (tables of encodings, help topics).
# Scripts outside site-packages, and a build folder that some wheel carries by mistake: copies of its package.
NOT_PACKAGES = ("..", "/", "build/")
_INTERPRETER_FOLDERS = ("test", "tests", "idle_test", "testing", "site-packages", "dist-packages", "__pycache__", "pydoc_data", "encodings")
_VENDOR_FOLDERS = ("_vendor", "vendor", "vendored", "third_party", "thirdparty_files")
SKIPPED_FOLDERS = frozenset((*_INTERPRETER_FOLDERS, *_VENDOR_FOLDERS))


@dataclass(frozen=True)
class InstalledFile:
    """A file; `name` is relative and the same on every machine, `origin` is what it came with, as `torch 2.13.0`."""

    name: str
    path: Path
    origin: str

    def read_text(self) -> str | None:
        """Its text with "\\n" line ends; None if it is gone or not UTF-8 text."""
        try:
            text = self.path.read_bytes().decode("utf-8-sig")
        except (OSError, UnicodeDecodeError):
            return None
        return None if "\0" in text else text.replace("\r\n", "\n").replace("\r", "\n")


def name_hash(name: str) -> int:
    """A fixed number per name, uniform below 2^64."""
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8"), digest_size=8, person=b"mixopt/demo").digest(), "big")


class Installation:
    """The files of the running interpreter's standard library and of mixopt's dependencies.

    Raises:
        DataError: (on use) mixopt is not installed, so that its dependencies are not known.
    """

    @cached_property
    def standard_library(self) -> list[InstalledFile]:
        """Python sources, in hash order."""
        root = Path(sysconfig.get_path("stdlib"))
        origin = f"Python {platform.python_version()}"
        names = (path.relative_to(root) for path in root.rglob("*.py"))
        kept = (name for name in names if SKIPPED_FOLDERS.isdisjoint(name.parts))
        return _in_hash_order(InstalledFile(f"stdlib/{name.as_posix()}", root / name, origin) for name in kept)

    @cached_property
    def dependencies(self) -> list[InstalledFile]:
        """Files of all dependencies, in hash order; each name once, though several distributions may ship it."""
        files: dict[str, InstalledFile] = {}
        for distribution in _dependency_closure():
            origin = f"{distribution.metadata['Name']} {distribution.version}"
            for row in csv.reader((distribution.read_text("RECORD") or "").splitlines()):
                name = row[0] if row else ""
                if name and not name.startswith(NOT_PACKAGES) and SKIPPED_FOLDERS.isdisjoint(name.split("/")):
                    files.setdefault(name, InstalledFile(name, Path(str(distribution.locate_file(name))), origin))
        return _in_hash_order(files.values())

    def with_suffix(self, *suffixes: str) -> list[InstalledFile]:
        """Files of the dependencies whose names end so, in hash order."""
        return [file for file in self.dependencies if file.name.endswith(suffixes)]


def _in_hash_order(files: Iterable[InstalledFile]) -> list[InstalledFile]:
    return sorted(files, key=lambda file: (name_hash(file.name), file.name))


def _dependency_closure() -> list[importlib.metadata.Distribution]:
    """Installed dependencies of mixopt, direct and indirect, extras left out, by name."""
    try:
        importlib.metadata.distribution(ROOT_DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError as error:
        raise DataError("mixopt is not installed here, only on the path.", "Install it with `pip install -e .`.") from error
    found: dict[str, importlib.metadata.Distribution] = {}
    todo = [ROOT_DISTRIBUTION]
    while todo:
        name = _normalized(todo.pop())
        if name in found:
            continue
        installed = next(iter(importlib.metadata.distributions(name=name, path=_site_folders())), None)
        if installed is None:
            continue  # a dependency of another platform or Python version
        found[name] = installed
        # Every requirement starts with a name; those of extras say so in their marker.
        todo.extend(
            re.split(r"[^\w.-]", text, maxsplit=1)[0] for text in found[name].requires or [] if not re.search(r"\bextra\s*==", text)
        )
    del found[ROOT_DISTRIBUTION]
    return [found[name] for name in sorted(found)]


def _site_folders() -> list[str]:
    """Where pip installs; not all of `sys.path`, to which Ray adds its vendored packages once it is imported."""
    return [*dict.fromkeys((sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), site.getusersitepackages()))]


def _normalized(name: str) -> str:
    """PEP 503."""
    return re.sub(r"[-_.]+", "-", name).lower()
