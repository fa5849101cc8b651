"""Is everything there that a search needs: `doctor`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mixopt.commands.arguments import write_json

if TYPE_CHECKING:
    from rich.console import Console

    from workers.doctor.findings import Finding

COLORS = {"ok": "green", "warning": "yellow", "problem": "red"}


def doctor(
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="Experiment file (YAML): looks at what it names, too.", show_default=False)
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Also write the findings to this file.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Do not start a local Ray cluster, which takes some 15 seconds.")] = False,
) -> None:
    """Looks at the installation, the machine, Ray, MLflow and an experiment; names a remedy for what it finds wrong."""
    from mixopt.experiment_file import load_experiment

    experiment = load_experiment(file) if file is not None else None
    from mixopt.terminal import RichReporter, print_line
    from workers.doctor import examine
    from workers.doctor.findings import counted

    reporter = RichReporter()
    findings = examine(experiment, start_ray=not quick, reporter=reporter)
    for finding in findings:
        _print(reporter.output, finding)
    counts = {status: sum(finding.status == status for finding in findings) for status in COLORS}
    print_line(
        reporter.output,
        f"{counted(counts['problem'], 'problem')}, {counted(counts['warning'], 'warning')}, {counts['ok']} findings in order.",
    )
    if json_file is not None:
        write_json(json_file, {"counts": counts, "findings": [finding.to_json() for finding in findings]})
        print_line(reporter.output, f"Written: {json_file}")
    if counts["problem"]:
        raise typer.Exit(1)


def _print(console: Console, finding: Finding) -> None:
    from rich.text import Text

    status = Text(f"{finding.status:<8}", style=COLORS[finding.status])
    console.print(status, Text(f"{finding.topic:<19}"), Text(finding.found), soft_wrap=True)
    if finding.remedy:
        console.print(Text(f"{'':<29}{finding.remedy}"), soft_wrap=True)
