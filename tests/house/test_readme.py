"""README is held true: its file tree is the real one, its commands exist, its example is a valid experiment file."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import typer.main
import yaml

from mixopt.cli import app
from mixopt.experiment_file import parse_experiment

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
# Files that say nothing to a reader of the tree.
UNLISTED = {"__init__.py", "py.typed", ".gitignore"}


def blocks(language: str) -> list[str]:
    """Contents of the fenced blocks of one language, in order."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)
    return [text for name, text in fenced if name == language]


def listed_paths(tree: str) -> set[str]:
    """Paths of an annotated tree: two spaces of indentation belong to the folder above; names end at two or more spaces."""
    paths: set[str] = set()
    folder = ""
    for line in tree.splitlines():
        indent = len(line) - len(line.lstrip())
        names = [word for word in line.split("  ") if word.strip()]
        # The description is what follows the first name, unless it looks like a name itself.
        names = [name.strip() for i, name in enumerate(names) if i == 0 or re.fullmatch(r"\s*[\w.]+(/|\.\w+|LICENSE)?\s*", name)]
        if indent == 0:
            folder = names[0] if names[0].endswith("/") else ""
            paths.update(names)
        else:
            paths.update(folder + name for name in names)
    return {path.rstrip("/") for path in paths}


def tracked() -> set[str]:
    result = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if result.returncode:
        pytest.skip("not a git checkout: the tree cannot be compared")
    return set(result.stdout.split())


def worth_listing(files: set[str]) -> set[str]:
    """Top level, and what lies directly in a package or in tests: files and folders."""
    wanted = set()
    for file in files:
        parts = Path(file).parts
        if parts[-1] in UNLISTED:
            continue
        wanted.add(parts[0] if parts[0] != ".ci" else ".ci/run")
        if parts[0] in {"mixopt", "proxy_models", "workers", "tests"}:
            wanted.add("/".join(parts[:2]))
    return wanted


def test_the_file_tree_is_the_real_one() -> None:
    tree = next(block for block in blocks("") if block.startswith("mixopt/"))
    files = worth_listing(tracked())
    listed = listed_paths(tree)
    assert files - listed == set(), "not in the tree of README"
    assert {path for path in listed if not (ROOT / path).exists()} == set(), "in the tree of README, not in the repository"


def test_the_example_is_a_valid_experiment_file() -> None:
    """The first block is a whole one; each of the others holds sections that may be added to it."""
    whole, *sections = (yaml.safe_load(block) for block in blocks("yaml"))
    assert len(parse_experiment(whole, Path("/")).domains) == 4
    assert sections
    for more in sections:
        assert parse_experiment({**whole, **more, "search": {**whole.get("search", {}), **more.get("search", {})}}, Path("/"))


def test_every_command_it_names_exists() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    named = {match for block in blocks("sh") for match in re.findall(r"bin/mixopt (\w+)", block)}
    assert named
    assert named <= set(commands)


def test_its_two_commands_are_targets_of_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^make (\w+)", blocks("sh")[0], flags=re.MULTILINE)
    assert targets == ["demo", "test"]
    assert all(re.search(rf"^{target}:", makefile, flags=re.MULTILINE) for target in targets)
    assert "make test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_its_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_cluster_is_started_as_the_end_to_end_test_starts_it() -> None:
    """tests/e2e/test_jobs.py runs the blocks of docs/jobs.md; README must not say anything else."""
    jobs = re.findall(r"^```sh\n(.*?)^```$", (ROOT / "docs" / "jobs.md").read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    start, use, end = jobs
    assert start in blocks("sh")
    assert use + end in blocks("sh")
