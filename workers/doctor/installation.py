"""Python and packages: what is installed against what mixopt asks for and what it was tested with.

The pins are `constraints.txt` of the repository, which this package carries as a link, so there is one list and it cannot drift.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from importlib.resources import files

from workers.doctor.findings import Finding, ok, problem, warning

NAMED = 6
"""Differing packages named in one finding."""


def python() -> list[Finding]:
    return [ok("python", f"{platform.python_version()} at {sys.executable}")]


def packages() -> list[Finding]:
    """Requirements that are not met are problems, versions other than the tested ones a warning."""
    pins = tested_versions()
    try:
        asked = [line for line in metadata.requires("mixopt") or [] if "extra ==" not in line]
    except metadata.PackageNotFoundError:
        return [
            warning(
                "packages", "mixopt is not installed here; it runs from a folder.", "Run `make demo`, or `pip install .` in the folder."
            )
        ]
    return list(compare(pins, asked, installed_versions([*pins, *map(_name, asked)])))


def tested_versions() -> dict[str, str]:
    """Package -> version, as `constraints.txt` pins them."""
    text = files("workers.doctor").joinpath("constraints.txt").read_text(encoding="utf-8")
    lines = [line.split("#")[0].strip() for line in text.splitlines()]
    return {name.strip(): version.strip() for name, _, version in (line.partition("==") for line in lines if line)}


def installed_versions(names: Sequence[str]) -> dict[str, str]:
    """Package -> version, of those that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def compare(pins: Mapping[str, str], asked: Sequence[str], installed: Mapping[str, str]) -> Iterator[Finding]:
    """What differs.

    Args:
        pins: package -> version that mixopt was tested with.
        asked: what mixopt requires, as "torch==2.13.0".
    """
    from packaging.requirements import Requirement

    requirements = [Requirement(line) for line in asked]
    missing = [requirement.name for requirement in requirements if requirement.name not in installed]
    unmet = [
        f"{requirement.name} is {installed[requirement.name]}, not {requirement.specifier}"
        for requirement in requirements
        if requirement.name in installed and not requirement.specifier.contains(_public(installed[requirement.name]), prereleases=True)
    ]
    install = "Run `pip install -c constraints.txt .` in the folder of mixopt, or `make demo`."
    if missing:
        yield problem("packages", f"Not installed: {', '.join(missing)}.", install)
    if unmet:
        yield problem("packages", f"{'; '.join(unmet)}.", install)
    other = [
        f"{name} {installed[name]} (tested: {version})"
        for name, version in pins.items()
        if name in installed and _public(installed[name]) != version
    ]
    if other:
        more = f" and {len(other) - NAMED} more" if len(other) > NAMED else ""
        yield warning(
            "packages",
            f"{len(other)} of {sum(name in installed for name in pins)} packages are not the tested version: {', '.join(other[:NAMED])}{more}.",
            f"Only if something fails: {install[0].lower()}{install[1:]}",
        )
    if not (missing or unmet or other):
        yield ok("packages", f"All {sum(name in installed for name in pins)} pinned packages are the tested versions.")


def _name(requirement: str) -> str:
    from packaging.requirements import Requirement

    return Requirement(requirement).name


def _public(version: str) -> str:
    """A version without its local part: 2.13.0+cpu is a build of 2.13.0."""
    return version.partition("+")[0]
