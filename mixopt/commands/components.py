"""What is made of components, and what they tell: `components`, `ablate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from mixopt.commands.arguments import ExperimentFile, check_json, write_json
from mixopt.errors import ConfigError

if TYPE_CHECKING:
    from mixopt.components.config import Evaluator


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


def ablate(
    file: ExperimentFile,
    evaluator: Annotated[str, typer.Option("--evaluator", help="How components are averaged: merged or ensemble.")] = "merged",
    circles: Annotated[
        int,
        typer.Option(
            "--circles", min=0, help="Sampled orders of more than 8 domains, by the circle; 0: no Shapley values, and few subsets."
        ),
    ] = 3,
    tokens: Annotated[
        int | None, typer.Option("--tokens", min=1, help="Scored per held-out set of the objective; default: 8 windows.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Also write what was found to this file.")] = None,
) -> None:
    """Says what each domain adds to or costs each target: leave one out, add one in, Shapley, with intervals; trains components once."""
    from mixopt.experiment_file import load_experiment

    experiment = load_experiment(file)
    check_json(json_file)
    known = checked_evaluator(evaluator)
    from mixopt.ablation.page import show_ablation
    from mixopt.terminal import RichReporter, SearchProgress, print_line
    from workers.ablate import ablate as run_ablation
    from workers.output_folder import named_in_errors
    from workers.own_trainer.pieces import refuse_trainer

    refuse_trainer(experiment, "ablate")
    reporter = RichReporter()
    with named_in_errors(experiment.output_dir), SearchProgress(reporter.console) as progress:
        done = run_ablation(experiment, reporter, observers=(progress,), evaluator=known, circles=circles, tokens=tokens)
    if json_file is not None:
        write_json(json_file, done.to_json())
    show_ablation(done.ablation, reporter.output)
    print_line(reporter.output, done.trust)
    print_line(reporter.output, f"Averages: {done.scored} scored now, {done.ablation.subsets - done.scored} already there.")


def checked_evaluator(text: str) -> Evaluator:
    """Raises ConfigError unless it is one that averages components."""
    from mixopt.components.config import EVALUATORS

    if text not in EVALUATORS:
        raise ConfigError(f"--evaluator is '{text}'.", f"It is {' or '.join(EVALUATORS)}.")
    return cast("Evaluator", text)
