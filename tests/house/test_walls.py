"""The walls of the house: which package may import which, and what `mixopt --help` may load."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {"mixopt", "proxy_models", "workers"}
ALLOWED = {"mixopt": {"mixopt"}, "proxy_models": {"proxy_models"}, "workers": {"mixopt", "proxy_models", "workers"}}
HEAVY = {"torch", "botorch", "gpytorch", "lightgbm", "mlflow", "ray", "matplotlib", "datasets", "polars", "sqlalchemy", "scipy"}


def imported_packages(path: Path) -> set[str]:
    """Top-level names imported anywhere in a file, inside functions too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.split(".")[0])
    return names


def sources() -> list[Path]:
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def is_command(path: Path) -> bool:
    """The commands alone start the walk, inside functions."""
    return path.is_relative_to(ROOT / "mixopt" / "commands")


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_packages_import_one_way_only(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    allowed = ALLOWED[package] | ({"workers"} if is_command(path) else set())
    forbidden = (imported_packages(path) & (PACKAGES | {"tests", "benchmarks", "infra", "examples"})) - allowed
    assert not forbidden, f"{path.relative_to(ROOT)} imports {sorted(forbidden)}"


def test_the_proxy_engine_knows_nothing_of_the_service() -> None:
    for path in (ROOT / "proxy_models").rglob("*.py"):
        assert not imported_packages(path) & {"ray", "mlflow", "sqlalchemy", "pydantic", "typer", "rich", "datasets"}, path


def test_the_wall_test_sees_an_import_inside_a_function(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text("def f():\n    from workers.compose import run\n    return run\n")
    assert imported_packages(path) == {"workers"}


def loaded_by(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint(' '.join(sorted({{name.split('.')[0] for name in sys.modules}})))"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    return set(output.split())


def test_help_stays_free_of_heavy_libraries() -> None:
    assert not loaded_by("import mixopt.cli") & HEAVY


def test_the_words_of_mixopt_load_without_torch_and_ray() -> None:
    loaded = loaded_by("import mixopt.config, mixopt.domains, mixopt.trial, mixopt.swarm, mixopt.history, mixopt.search, mixopt.strategies")
    assert not loaded & {"torch", "ray", "mlflow", "lightgbm", "matplotlib", "datasets"}
