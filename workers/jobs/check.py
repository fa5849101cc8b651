"""`python -m workers.jobs.check FILE`: looks at an experiment from the cluster that shall run it; the first part of every submission.

Runs as a small job on the head, prints one line of JSON and changes nothing but the output folder, which it makes. It answers what the
machine that submits cannot know: which mixopt the cluster has, whether every input can be read there, whether the output can be written, and
whether all nodes see the same. The trade-off: some seconds before each submission, against a search that fails on one node after hours.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

from mixopt import __version__
from mixopt.config import Experiment
from mixopt.errors import DataError, MixoptError, RunError
from mixopt.experiment_file import load_experiment
from proxy_models import ENGINE_VERSION
from workers.checks import check_experiment
from workers.tokens.prepare import check_inputs

ANSWER = "mixopt-check:"
"""How the line with the answer begins."""
NODE_SECONDS = 90.0
"""How long the nodes of a cluster are given to answer; a first worker starts in seconds."""


def versions() -> dict[str, str]:
    """What must be the same on both sides of a submission, and on all nodes."""
    return {"mixopt": __version__, "engine": str(ENGINE_VERSION)}


def look(file: Path) -> dict[str, Any]:
    """The answer as JSON values: versions, python, number of nodes, and the first error with message, hint and exit code."""
    answer: dict[str, Any] = {"versions": versions(), "python": f"{sys.executable} ({platform.python_version()})"}
    try:
        experiment = load_experiment(file)
        check_experiment(experiment)
        check_inputs(experiment)
        answer["nodes"] = check_nodes(experiment)
    except MixoptError as error:
        answer["error"] = {"message": error.message, "hint": error.hint, "exit_code": error.exit_code}
    return answer


def check_nodes(experiment: Experiment) -> int:
    """Makes sure that every node of the cluster that this job runs in has this mixopt and sees inputs and output; returns how many there are.

    Raises:
        RunError: a node has another mixopt, or does not answer; no node has a core.
        DataError: a node does not see the output folder that this one sees.
        MixoptError: a node does not see an input.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    ray.init(address="auto", logging_level="ERROR", log_to_driver=False)
    if ray.cluster_resources().get("CPU", 0) < 1:
        raise RunError("The Ray cluster offers no core for a trial.", "Start a worker node, or the head with `--num-cpus` of 1 or more.")
    nodes = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    here = ray.get_runtime_context().get_node_id()
    # A file that only this process knows of: another node that sees it shares the folder.
    with tempfile.NamedTemporaryFile(dir=experiment.output_dir, prefix=".check-") as mark:
        looks = {
            ray.remote(num_cpus=0, max_retries=0)(look_from_node)
            .options(scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False))
            .remote(experiment, mark.name): address
            for node_id, address in nodes.items()
            if node_id != here
        }
        ready, waiting = ray.wait(list(looks), num_returns=len(looks), timeout=NODE_SECONDS) if looks else ([], [])
        for reference in ready:
            _judge(looks[reference], ray, reference)
    if waiting:
        raise RunError(f"Node {looks[waiting[0]]} did not answer within {NODE_SECONDS:.0f} seconds.", "Check it with `ray status`.")
    return len(nodes)


def _judge(address: str, ray: Any, reference: Any) -> None:
    remedy = "Install the same mixopt on every node."
    try:
        seen = ray.get(reference)
    except Exception as error:
        cause = getattr(error, "cause", error)  # Ray wraps what a task raises
        if isinstance(cause, MixoptError):
            raise type(cause)(f"On node {address}: {cause.message}", cause.hint) from error
        raise RunError(f"Node {address} cannot run mixopt ({str(error).strip().splitlines()[-1]}).", remedy) from error
    if seen != versions():
        raise RunError(f"Node {address} has mixopt {seen['mixopt']} (engine {seen['engine']}), the head {__version__}.", remedy)


def look_from_node(experiment: Experiment, mark: str) -> dict[str, str]:
    """Runs on a node; `mark` is a file that the head has just made in the output folder.

    Raises:
        MixoptError: an input or the output is not to be seen there.
    """
    if not os.path.exists(mark):
        raise DataError(
            f"The output folder {experiment.output} is not the one that the head sees.", "Put it on a file system that every node mounts."
        )
    check_inputs(experiment)
    return versions()


def main() -> None:
    print(ANSWER + json.dumps(look(Path(sys.argv[1]))), flush=True)


if __name__ == "__main__":
    # Imported under its own name, so that Ray sends functions to the nodes by name and a node without mixopt is told apart.
    from workers.jobs.check import main as check

    check()
