"""Kills its own process, as kill -9 does, at a named point of mixopt; loaded by Python itself in every process of test_killed_at.py.

The folder of this file stands on PYTHONPATH there, and nowhere else, so drivers and Ray's workers alike carry the points, while the product knows
nothing of them. MIXOPT_TEST_KILL_MARK arms this file; MIXOPT_TEST_KILL_AT names the point and the how-manieth time a process passes it ("driver-after-ask:2"). The first
process to get there writes what it was about into the file MIXOPT_TEST_KILL_MARK, once, and dies; whoever comes later goes on.

Run as a program it is a nursery: it loads what `mixopt search` loads, which takes some seconds, and then forks a process for each command that
it reads, so that a dozen searches that die and go on cost what they compute.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

Replace = Callable[[Callable[..., Any], Callable[[Any], None]], Callable[..., Any]]


def before(original: Callable[..., Any], die: Callable[[Any], None]) -> Callable[..., Any]:
    def replaced(*args: Any, **kwargs: Any) -> Any:
        die(args)
        return original(*args, **kwargs)

    return replaced


def after(original: Callable[..., Any], die: Callable[[Any], None]) -> Callable[..., Any]:
    def replaced(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        die(args)
        return result

    return replaced


def halfway(original: Callable[..., Any], die: Callable[[Any], None]) -> Callable[..., Any]:
    """For a function that writes a file (tensors, path, ...): half of it is there."""

    def replaced(tensors: Any, path: Path, *args: Any, **kwargs: Any) -> Any:
        original(tensors, path, *args, **kwargs)
        whole = Path(path).read_bytes()
        Path(path).write_bytes(whole[: len(whole) // 2])
        die((path,))
        Path(path).write_bytes(whole)

    return replaced


# Point -> module, attribute of the module or of a class in it, and where to die: before it, after it, or with half of its file written.
POINTS: dict[str, tuple[str, str, Replace]] = {
    "worker-before-checkpoint": ("proxy_models.pack", "Pack.save", before),
    "worker-during-checkpoint": ("proxy_models.checkpoint", "save_file", halfway),
    "worker-after-checkpoint": ("proxy_models.pack", "Pack.save", after),
    "worker-before-result": ("workers.trial_folder", "TrialFolder.write_outcome", before),
    "worker-after-result": ("workers.trial_folder", "TrialFolder.write_outcome", after),
    "driver-after-ask": ("mixopt.history", "History.add_trials", before),
    "driver-after-record": ("mixopt.history", "History.add_trials", after),
    "driver-before-outcome": ("mixopt.history", "History.complete", before),
    "driver-after-outcome": ("mixopt.history", "History.complete", after),
    "driver-before-proposal": ("mixopt.history", "History.save_document", before),
    "mirror-after-run": ("mixopt.tracking.mlflow_server", "MlflowServer.create", after),
    "mirror-before-note": ("mixopt.tracking.mlflow_server", "MlflowServer.write", after),
    "mirror-in-artifacts": ("mixopt.tracking.mlflow_server", "MlflowServer.upload", after),
}


class Point:
    """A point that is armed."""

    def __init__(self, point: str, times: int, mark: Path) -> None:
        self.point, self.times, self.mark = point, times, mark
        self.module, self.attribute, self.replace = POINTS[point]

    def put(self, module: ModuleType) -> None:
        owner: Any = module
        *outer, last = self.attribute.split(".")
        for part in outer:
            owner = getattr(owner, part)
        setattr(owner, last, self.replace(getattr(owner, last), self.pass_by))

    def pass_by(self, args: Any) -> None:
        self.times -= 1
        if self.times != 0:
            return
        about = {"point": self.point, "pid": os.getpid(), "files": _files_of(args)}
        try:
            with self.mark.open("x") as file:
                file.write(json.dumps(about))
                file.flush()
                os.fsync(file.fileno())
        except FileExistsError:
            return
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)


def _files_of(args: Any) -> dict[str, list[str]]:
    """Trial -> files in its folder, where the point is about trials' folders."""
    runs = getattr(args[0], "runs", None) if args else None
    folders = {run.folder for run in runs} if isinstance(runs, list) else set()
    if args and isinstance(args[0], Path):
        folders.add(args[0].parent)
    return {folder.name: sorted(entry.name for entry in folder.iterdir()) for folder in folders}


class _AfterImport(MetaPathFinder):
    """Changes a module as soon as it has been imported."""

    def __init__(self, module: str, change: Callable[[ModuleType], None]) -> None:
        self.module, self.change = module, change

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != self.module:
            return None
        spec = PathFinder.find_spec(name, path, target)
        assert spec is not None
        assert spec.loader is not None
        load = spec.loader.exec_module

        def load_and_change(module: ModuleType) -> None:
            load(module)
            self.change(module)

        spec.loader.exec_module = load_and_change  # type: ignore[method-assign]
        return spec


def _change(module: str, change: Callable[[ModuleType], None]) -> None:
    if module in sys.modules:
        change(sys.modules[module])
    else:
        sys.meta_path.insert(0, _AfterImport(module, change))


def _checkpoint_often(module: ModuleType) -> None:
    # Tests of checkpoints cannot wait for twenty seconds of training; 0 writes one after every step.
    module.CHECKPOINT_SECONDS = 0.0  # type: ignore[attr-defined]


def arm(environment: Mapping[str, str]) -> None:
    """Puts the point that the environment names into place."""
    if "MIXOPT_TEST_KILL_AT" in environment:
        name, _, times = environment["MIXOPT_TEST_KILL_AT"].partition(":")
        point = Point(name, int(times or 1), Path(environment["MIXOPT_TEST_KILL_MARK"]))
        _change(point.module, point.put)


if "MIXOPT_TEST_KILL_MARK" in os.environ:
    _change("workers.convert", _checkpoint_often)
    arm(os.environ)


def nursery() -> None:
    """Reads {arguments, environment, output, errors} a line, runs `mixopt` with them in a process of its own, answers its return code."""
    import mlflow  # noqa: F401
    import sklearn.model_selection  # noqa: F401

    import mixopt.cli
    import mixopt.terminal
    import mixopt.tracking.figures
    import workers.local
    import workers.run  # noqa: F401

    print("ready", flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        child = os.fork()
        if child == 0:
            for number, name in ((1, "output"), (2, "errors")):
                os.dup2(os.open(command[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
            os.environ.update(command["environment"])
            arm(command["environment"])
            sys.argv = ["mixopt", *command["arguments"]]
            try:
                mixopt.cli.main()
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else int(end.code is not None)
            except BaseException:  # noqa: BLE001 - a forked process must not go on as its parent
                traceback.print_exc()
                code = 1
            else:
                code = 0
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    nursery()
