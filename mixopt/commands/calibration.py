"""What a search must know before it is believed: `calibrate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mixopt.commands.arguments import ExperimentFile, check_json, write_json

if TYPE_CHECKING:
    from mixopt.calibration.result import Calibration
    from mixopt.config import Experiment
    from workers.calibrate import Calibrated


def calibrate(
    file: ExperimentFile,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick",
            help="Fewer rates and mixtures, at the size of the search only: half of what that costs, and a twelfth of all in a file of defaults.",
        ),
    ] = False,
    seeds: Annotated[
        int | None, typer.Option("--seeds", min=2, help="Seeds at natural, uniform and two corners; default: as the search, at least 3.")
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option("--minutes", min=0, help="Leave out what would take longer: first the verification's size, last the sweep of rates."),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Only say what it would train and how long that would take; prepares the corpus where it has to."),
    ] = False,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Also write what was found to this file.")] = None,
) -> None:
    """Measures which learning rate ranks mixtures, seed noise, what tokens bring, speed and memory; the search uses it and trains none of it again."""
    from mixopt.experiment_file import load_experiment

    experiment = load_experiment(file)  # before anything heavy is loaded, so that a slip in the file is answered at once
    check_json(json_file)
    from mixopt.calibration.page import show_calibration
    from mixopt.terminal import RichReporter, SearchProgress, print_line
    from workers.calibrate import calibrate as run_calibration
    from workers.output_folder import named_in_errors
    from workers.own_trainer.pieces import refuse_trainer

    refuse_trainer(experiment, "calibrate")
    reporter = RichReporter()
    with named_in_errors(experiment.output_dir), SearchProgress(reporter.console) as progress:
        done = run_calibration(experiment, reporter, observers=(progress,), quick=quick, seeds=seeds, minutes=minutes, dry_run=dry_run)
    if json_file is not None:
        write_json(json_file, _json(done))
    if dry_run:
        print_line(reporter.output, done.cost.sentence)
        return
    for calibration in done.calibrations:
        show_calibration(calibration, reporter.output)
    print_line(reporter.output, f"Trials: {done.trained} trained now, {done.reused} already in the record.")
    for line in _advice(experiment, done.calibrations):
        print_line(reporter.output, line)


def _advice(experiment: Experiment, calibrations: tuple[Calibration, ...]) -> list[str]:
    """What to write into the file, if anything."""
    if not any(calibration.swept for calibration in calibrations):
        return ["No learning rate is recommended: rates were not compared."]
    moved = [calibration for calibration in calibrations if calibration.rate != calibration.own_rate]
    rates = ", ".join(f"{calibration.rate:g} for {calibration.source.size}" for calibration in calibrations if calibration.swept)
    if experiment.proxy.learning_rate == "calibrated":
        return [f"The file asks for the calibrated rates: {rates}."]
    if not moved:
        return ["The rates stay as they are; nothing has to be written."]
    return [f"To search at the recommended rates ({rates}), write in the section `proxy` of the file:  learning_rate: calibrated"]


def _json(done: Calibrated) -> dict[str, Any]:
    return {
        "cost": {"trials": done.cost.trials, "reused": done.cost.reused, "seconds": done.cost.seconds, "sentence": done.cost.sentence},
        "trained": done.trained,
        "calibrations": [calibration.to_json() for calibration in done.calibrations],
    }
