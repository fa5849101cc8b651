"""A trainer for tests: `python program.py MODE REQUEST RESULT`. What it does is its mode's name; see `main`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


def losses(request: dict[str, Any]) -> dict[str, float]:
    (weights,) = request["weights"]
    first = request["domains"][0]
    return {"loss": 1.5 + weights[first] ** 2 + 1e-3 * (request["seed"] % 7), "accuracy": 0.5 - 0.1 * weights[first]}


def main(mode: str, request_path: Path, result_path: Path) -> None:
    request = json.loads(request_path.read_text())
    folder = Path(request["output_folder"])
    with (folder / "begun").open("a") as file:
        file.write(f"{os.getpid()}\n")
    metrics: dict[str, Any] = losses(request)
    result: dict[str, Any] = {"metrics": metrics}
    print("hello from the program")
    if mode == "hangs":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        (folder / "child").write_text(str(child.pid))
        time.sleep(600)
    elif mode == "ignores":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(600)
    elif mode == "waits":
        while not (folder / "go").exists():
            time.sleep(0.02)
    elif mode == "fails":
        print("Traceback: no luck", file=sys.stderr)
        sys.exit(3)
    elif mode == "fails once" and len((folder / "begun").read_text().split()) == 1:
        sys.exit("not yet")
    elif mode == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    elif mode == "writes nothing":
        return
    elif mode == "writes garbage":
        result_path.write_bytes(b"\xff\xfe not json")
        return
    elif mode == "prints garbage":
        os.write(1, bytes(range(256)) * 1000)
        os.write(2, bytes(range(256)) * 1000)
    elif mode == "writes NaN":
        metrics["loss"] = float("nan")
    elif mode == "forgets a metric":
        del metrics["accuracy"]
    elif mode == "misspells a metric":
        metrics["acuracy"] = 1.0
    elif mode == "writes a text":
        metrics["loss"] = "1.5"
    elif mode == "another trial":
        result["trial_id"] = "0" * 20
    elif mode == "says all":
        half = {name: 2 * value for name, value in metrics.items()}
        (weights,) = request["weights"]
        counted = {name: round(share, 2) for name, share in weights.items()}
        result |= {"weights": counted, "flops": 5e9, "seconds": 7.5, "curve": [{"tokens": request["tokens"] // 2, "metrics": half}]}
    elif mode == "leaves a child":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        (folder / "child").write_text(str(child.pid))
    partial = result_path.with_suffix(".tmp")
    partial.write_text(json.dumps(result))
    partial.replace(result_path)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
