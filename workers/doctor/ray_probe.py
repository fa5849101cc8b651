"""Run as a process by `doctor`: joins or starts Ray as a search does, runs one task as a pack is run, prints what it saw as JSON.

Arguments: the address, or "local"; then paths that have to be there for a worker too.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def look(names: Sequence[str], paths: Sequence[str]) -> dict[str, Any]:
    """What a worker sees: environment, versions, and which of `paths` are missing."""
    import os
    import platform
    from pathlib import Path

    try:
        from mixopt import __version__ as mixopt
    except Exception as error:  # noqa: BLE001 - whatever keeps it from loading is the answer
        mixopt = f"cannot be loaded: {error}"
    return {
        "environment": {name: os.environ.get(name) for name in names},
        "python": platform.python_version(),
        "mixopt": mixopt,
        "missing": [path for path in paths if not Path(path).exists()],
    }


def main() -> None:
    from mixopt.errors import MixoptError

    address, paths = sys.argv[1], sys.argv[2:]
    try:
        with tempfile.TemporaryDirectory(prefix="mixopt-doctor-") as store:
            said = _ask(None if address == "local" else address, paths, Path(store))
    except MixoptError as error:
        said = {"error": error.message, "hint": error.hint}
    print(json.dumps(said), flush=True)


def _ask(address: str | None, paths: Sequence[str], store: Path) -> dict[str, Any]:
    from workers.ray_runner import WORKER_ENVIRONMENT, RayRunner

    runner = RayRunner(store, {}, {}, address=address, cpus=1 if address is None else None)
    try:
        import ray

        task = ray.remote(num_cpus=1, runtime_env={"env_vars": WORKER_ENVIRONMENT})(look)
        seen = ray.get(task.remote(list(WORKER_ENVIRONMENT), list(paths)))
        resources = ray.cluster_resources()
        return {"seen": seen, "cores": resources.get("CPU", 0), "gpus": resources.get("GPU", 0), "ray": ray.__version__, "pid": os.getpid()}
    finally:
        runner.close()


if __name__ == "__main__":
    main()
