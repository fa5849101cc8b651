"""The image: its instructions are pinned and unprivileged, and its build steps work in a clean environment."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
IMAGE = ROOT / "infra" / "image"


def instructions() -> list[tuple[str, str]]:
    """Instructions of the container file with their arguments, in order; comments dropped, continued lines joined."""
    text = (IMAGE / "Containerfile").read_text(encoding="utf-8")
    lines = "\n".join(line for line in text.splitlines() if not line.startswith("#")).replace("\\\n", " ").splitlines()
    return [(name, arguments) for name, _, arguments in (line.strip().partition(" ") for line in lines if line.strip())]


def arguments(name: str) -> list[str]:
    return [value for instruction, value in instructions() if instruction == name]


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").split()
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in (line.split("==") for line in lines)}


def test_the_base_is_pinned_and_is_the_python_that_mixopt_is_built_for() -> None:
    (base,) = arguments("FROM")
    assert re.fullmatch(r"python:3\.11\.\d+-slim-\w+", base)
    assert f">={'.'.join(base.removeprefix('python:').split('.')[:2])}" in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_it_runs_without_root_and_in_exec_form() -> None:
    names = [name for name, _ in instructions()]
    (user,) = arguments("USER")
    assert user == "10001:10001"
    assert f"useradd --uid {user.split(':')[0]}" in " ".join(arguments("RUN"))
    assert not {"RUN", "COPY", "ADD"} & set(names[names.index("USER") :]), "something is done as the user who runs it"
    assert "ADD" not in names
    for name in ("ENTRYPOINT", "CMD"):
        assert isinstance(json.loads(arguments(name)[0]), list)


def test_pip_is_called_by_the_script_alone_and_always_constrained() -> None:
    assert not any("pip install" in run for run in arguments("RUN"))
    calls = re.findall(r"pip install .*", (IMAGE / "install.sh").read_text(encoding="utf-8"))
    assert len(calls) == 3
    assert all("--constraint constraints.txt" in call for call in calls)


@pytest.mark.parametrize(("variant", "wanted"), [("cpu", "torch=={}+cpu"), ("gpu", "torch=={}")])
def test_the_variant_decides_which_build_of_torch_is_asked_for(variant: str, wanted: str, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$@"\n')
    python.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    said = subprocess.run(["sh", str(IMAGE / "install.sh"), "torch", variant], env=environment, capture_output=True, text=True, check=True)
    assert said.stdout.splitlines()[0] == f"-m pip install --constraint constraints.txt {wanted.format(pins()['torch'])}"


def test_an_unknown_step_is_refused() -> None:
    refused = subprocess.run(["sh", str(IMAGE / "install.sh"), "torch", "tpu"], capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "usage" in refused.stderr


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Folder of commands of a clean environment in which the image's build steps ran on what the image copies, and on nothing else."""
    import torch

    if not torch.version.cuda and not torch.__version__.endswith("+cpu"):
        pytest.skip("this platform has no build of torch that the image could hold")
    folder = tmp_path_factory.mktemp("image")
    try:
        for copied in arguments("COPY"):
            *sources, target = copied.split()
            for source in sources:
                destination = folder / "build" / target
                if (ROOT / source).is_dir():
                    shutil.copytree(ROOT / source, destination, ignore=shutil.ignore_patterns("__pycache__"))
                else:
                    destination.mkdir(parents=True, exist_ok=True)
                    shutil.copy(ROOT / source, destination)
        subprocess.run([sys.executable, "-m", "venv", str(folder / "venv")], check=True)
        binaries = folder / "venv" / "bin"
        # What this test run put into its environment must not be found there.
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
        environment["PATH"] = f"{binaries}:{os.environ['PATH']}"
        environment["PIP_NO_COMPILE"] = "1"  # quicker here; the image compiles once for all its starts
        steps = [run.partition("sh infra/image/install.sh ")[2] for run in arguments("RUN") if "install.sh" in run]
        for step in steps:
            words = step.replace('"$VARIANT"', "gpu" if torch.version.cuda else "cpu").split()
            ran = subprocess.run(
                ["sh", "infra/image/install.sh", *words], cwd=folder / "build", env=environment, capture_output=True, text=True, check=False
            )
            assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-2000:]
        assert len(steps) == 2
        yield binaries
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def run(*command: str | Path) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    ran = subprocess.run([str(word) for word in command], env=environment, cwd="/", capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_build_steps_work_in_a_clean_environment(installed: Path) -> None:
    assert "gaussian_process" in run(installed / "mixopt", "list")
    assert pins()["ray"] in run(installed / "ray", "--version")
    assert pins()["mlflow"] in run(installed / "mlflow", "--version")
    code = "import flask_wtf, lightgbm, psycopg, ray.dashboard.optional_deps, torch, workers.compose, mixopt; print(mixopt.__file__)"
    assert str(installed.parent) in run(installed / "python", "-c", code)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_package_of_the_image_has_its_pinned_version(installed: Path) -> None:
    packages = {
        re.sub(r"[-_.]+", "-", package["name"]).lower(): package["version"].partition("+")[0]
        for package in json.loads(run(installed / "python", "-m", "pip", "list", "--format=json"))
    }
    # torch itself pins the packages of CUDA, each to one version.
    free = {name for name in packages if name in ("pip", "mixopt", "triton") or name.startswith(("nvidia-", "cuda-"))}
    assert {name: version for name, version in packages.items() if name not in free and pins().get(name) != version} == {}
