"""What an experiment file may say: `list`, `schema`."""

from __future__ import annotations

import json

import typer


def list_names() -> None:
    """Names that an experiment file or an option may use: strategies, surrogates, formats."""
    from typing import get_args

    from mixopt.config import BeginningConfig
    from mixopt.export import exporter_names
    from mixopt.strategies import strategy_names
    from mixopt.surrogates import surrogate_names

    beginnings = list(get_args(BeginningConfig.model_fields["kind"].annotation))
    named = {"strategies": strategy_names(), "surrogates": surrogate_names(), "formats": exporter_names(), "beginnings": beginnings}
    for title, names in named.items():
        typer.echo(f"{title}: {', '.join(names)}")


def schema() -> None:
    """Prints the JSON schema of the experiment file."""
    from mixopt.config import json_schema

    typer.echo(json.dumps(json_schema(), indent=2))
