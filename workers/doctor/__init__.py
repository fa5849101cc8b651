"""`mixopt doctor`: looks at the machine, the installation, the services and an experiment, and says what to mend.

Everything is looked at and nothing is changed: no folder, no experiment in MLflow; a Ray cluster is started for a moment and ended. All checks
run at once, each within its own limit.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from mixopt.config import Experiment
from mixopt.progress import Reporter, Silent
from workers.doctor import accelerators, installation, machine, services
from workers.doctor import experiment as experiments
from workers.doctor.findings import Check, Finding, run_checks


def examine(experiment: Experiment | None = None, start_ray: bool = True, reporter: Reporter | None = None) -> list[Finding]:
    """What was found, in the order of `checks`."""
    planned = checks(experiment, start_ray)
    with (reporter or Silent()).stage("Looking around", len(planned), "checks") as stage:
        return run_checks(planned, lambda: stage.advance(1))


def checks(experiment: Experiment | None, start_ray: bool) -> Sequence[Check]:
    """Installation, machine, services, experiment."""
    planned = [
        Check("python", installation.python),
        Check("packages", installation.packages),
        Check("cores", partial(machine.cores, experiment)),
        Check("memory", partial(machine.memory, experiment)),
        Check("threads", machine.threads),
        Check("accelerators", accelerators.torch_here, accelerators.PROBE_SECONDS + 30),
        Check("temporary files", machine.temporary_disk),
        Check("shared memory", machine.shared_memory),
        Check("open files", machine.open_files),
        Check("ray", partial(services.ray_here, experiment, start_ray), services.RAY_SECONDS + 30),
        Check("mlflow", partial(services.mlflow, experiment), 120.0),
    ]
    if experiment is not None:
        planned += [
            Check("output", partial(machine.output_disk, experiment.output_dir)),
            Check("inputs", partial(experiments.inputs, experiment), 120.0),
            Check("experiment", partial(experiments.settings, experiment)),
        ]
    return planned
