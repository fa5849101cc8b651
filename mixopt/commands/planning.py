"""What a search will cost, before it is run: `plan`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mixopt.commands.arguments import ExperimentFile, check_json, write_json


def plan(
    file: ExperimentFile,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the plan as JSON too.")] = None,
    probe: Annotated[
        bool, typer.Option("--probe/--no-probe", help="Measure the speed by 20 seconds of training, if the record has none.")
    ] = True,
) -> None:
    """Says what a search will cost and what it can tell, before anything is spent."""
    from mixopt.experiment_file import load_experiment

    experiment = load_experiment(file)  # before anything heavy is loaded, so that a slip in the file is answered at once
    check_json(json_file)
    from mixopt.plan_page import show_plan
    from mixopt.terminal import RichReporter
    from workers.checks import check_experiment
    from workers.own_trainer.plan import own_plan
    from workers.planning.estimate import make_plan

    check_experiment(experiment)
    reporter = RichReporter()
    if experiment.trainer is not None:
        own = own_plan(experiment)
        if json_file is not None:
            write_json(json_file, own.to_json())
        own.show(reporter.output)
        return
    made = make_plan(experiment, reporter, may_probe=probe)
    if json_file is not None:
        write_json(json_file, made.to_json())
    show_plan(made, reporter.output)
