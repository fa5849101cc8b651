"""What is made of components: `components`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mixopt.commands.arguments import ExperimentFile, check_json, write_json


def components(
    file: ExperimentFile,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Also write what came of them to this file.")] = None,
) -> None:
    """Trains a base and one component per domain from it, of which merged and ensembled proxies are made; nothing is trained twice."""
    from mixopt.experiment_file import load_experiment

    experiment = load_experiment(file)
    check_json(json_file)
    from mixopt.components.page import show_components
    from mixopt.terminal import RichReporter, SearchProgress
    from workers.make_components import make_components
    from workers.output_folder import named_in_errors
    from workers.own_trainer.pieces import refuse_trainer

    refuse_trainer(experiment, "components")
    reporter = RichReporter()
    with named_in_errors(experiment.output_dir), SearchProgress(reporter.console) as progress:
        made = make_components(experiment, reporter, observers=(progress,))
    if json_file is not None:
        write_json(json_file, made.result.to_json())
    show_components(made.result, reporter.output)
