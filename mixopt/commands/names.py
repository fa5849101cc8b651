"""What an experiment file may say: `list`, `schema`."""

from __future__ import annotations

import json
from typing import Annotated

import typer


def list_names(
    options: Annotated[
        bool, typer.Option("--options", help="Also what `search.options` may hold for each strategy, and its default.")
    ] = False,
) -> None:
    """Names that an experiment file or an option may use: strategies, surrogates, formats."""
    from typing import get_args

    from mixopt.export import exporter_names
    from mixopt.proxy_config import BeginningConfig
    from mixopt.strategies import strategy_names
    from mixopt.surrogates import surrogate_names

    beginnings = list(get_args(BeginningConfig.model_fields["kind"].annotation))
    named = {"strategies": strategy_names(), "surrogates": surrogate_names(), "formats": exporter_names(), "beginnings": beginnings}
    for title, names in named.items():
        typer.echo(f"{title}: {', '.join(names)}")
    if options:
        for name in strategy_names():
            _echo_options(name)


def _echo_options(strategy: str) -> None:
    """`search.options` of a strategy, one a line."""
    from mixopt.strategies import options_type

    fields = options_type(strategy).model_fields
    typer.echo(f"\noptions of {strategy}:{'' if fields else ' none'}")
    for name, field in fields.items():
        default = "must be given" if field.is_required() else f"default {field.get_default(call_default_factory=True)!r}"
        typer.echo(f"  {name} ({default}): {field.description or ''}")


def schema() -> None:
    """Prints the JSON schema of the experiment file."""
    from mixopt.config import json_schema

    typer.echo(json.dumps(json_schema(), indent=2))
