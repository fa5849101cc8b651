"""The command line is an interface: its commands, options and help are a golden file.

To accept a change, delete tests/golden/cli.txt, run this test once (it writes the file and fails), and review the difference.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import typer.main
from typer.testing import CliRunner

from mixopt.cli import app

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "cli.txt"


def surface(command: Any, path: str) -> list[str]:
    """One line per command and one per parameter."""
    lines = [f"{path}: {' '.join((command.help or '').split())}"]
    for parameter in command.params:
        names = " ".join([*parameter.opts, *parameter.secondary_opts])
        required = " required" if parameter.required else ""
        lines.append(f"  {names}{required}: {' '.join((getattr(parameter, 'help', None) or '').split())}")
    for name, inner in sorted(getattr(command, "commands", {}).items()):
        lines += surface(inner, f"{path} {name}")
    return lines


def test_the_surface_is_the_golden_one() -> None:
    text = "\n".join(surface(typer.main.get_command(app), "mixopt")) + "\n"
    if not GOLDEN.exists():
        GOLDEN.write_text(text, encoding="utf-8")
        pytest.fail(f"wrote {GOLDEN.name}; review it and run again")
    assert text == GOLDEN.read_text(encoding="utf-8")


def test_only_commands_that_exist_are_named_in_messages() -> None:
    """A remedy that names a command is worth nothing if the command is not there."""
    commands = getattr(typer.main.get_command(app), "commands", {})
    root = GOLDEN.parents[2]
    named = {
        (path.name, word)
        for package in ("mixopt", "workers", "proxy_models")
        for path in (root / package).rglob("*.py")
        for word in re.findall(r"`mixopt ([a-z]+)", path.read_text(encoding="utf-8"))
    }
    assert len(named) > 5
    assert {(file, word) for file, word in named if word not in commands} == set()


def test_help_and_schema_answer() -> None:
    runner = CliRunner()
    assert runner.invoke(app, ["--help"]).exit_code == 0
    result = runner.invoke(app, ["schema"])
    assert result.exit_code == 0
    assert '"budget_tokens"' in result.stdout


def test_an_unknown_option_is_a_usage_error() -> None:
    assert CliRunner().invoke(app, ["search", "x.yaml", "--nonsense"]).exit_code == 2
