"""Recorded traces: what a run's controller was told, as JSON lines, and the replay of any controller on them.

The first line holds the setting and the controller, every other one call's signals. A controller that is replayed on its own trace
decides what it decided; another one says what it would have decided had it been told the same, which is a check of its code and not of
its worth: the run did not follow it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixopt.controllers import get_controller
from mixopt.controllers.base import Adaptive, Decision, Setup
from mixopt.controllers.signals import Signals
from mixopt.errors import ConfigError, DataError
from mixopt.mixture import Mixture
from mixopt.space import MixtureSpace

TRACE_VERSION = 1


def setup_json(setup: Setup) -> dict[str, Any]:
    """A setup but for its space, whose mixtures no file holds; whether it has one is told."""

    def plain(value: float | Mapping[str, float] | None) -> Any:
        return dict(sorted(value.items())) if isinstance(value, Mapping) else value

    return {
        "domains": list(setup.domains),
        "targets": list(setup.targets),
        "tokens": setup.tokens,
        "step_tokens": setup.step_tokens,
        "prior": None if setup.prior is None else plain(setup.prior.as_dict()),
        "target_weights": plain(setup.target_weights),
        "floor": plain(setup.floor),
        "cap": plain(setup.cap),
        "available": plain(setup.available),
        "largest_step": setup.largest_step,
        "space": setup.space is not None,
        "seed": setup.seed,
    }


def setup_from_json(stored: Mapping[str, Any], space: MixtureSpace | None = None) -> Setup:
    """The setup that `setup_json` wrote.

    Raises:
        ConfigError: it had a space and none is given, or the other way round.
    """
    if stored["space"] != (space is not None):
        raise ConfigError(
            f"The trace was recorded {'with' if stored['space'] else 'without'} a space.", "Replay it in the same setting: `space=`."
        )
    prior = None if stored["prior"] is None else Mixture.of(stored["prior"])
    names = {"domains": tuple(stored["domains"]), "targets": tuple(stored["targets"])}
    return Setup(**{**stored, **names, "prior": prior, "space": space})


@dataclass(frozen=True, eq=False)
class Trace:
    """A recorded run: setup and controller as they were written, and the signals of every call."""

    setup: Mapping[str, Any]
    controller: str
    options: Mapping[str, Any]
    calls: tuple[Signals, ...]

    @classmethod
    def read(cls, path: Path) -> Trace:
        """Reads a trace; half a line at its end, as a killed run leaves it, is left out.

        Raises:
            DataError: there is none, or it is damaged.
        """
        lines = whole_lines(path)
        if not lines:
            raise DataError(f"{path} holds no trace.", "Record one with `Session(..., trace=PATH)`.")
        try:
            head, *calls = (json.loads(line) for line in lines)
            if head.get("trace") != TRACE_VERSION:
                raise DataError(f"{path} is a trace of version {head.get('trace')!r}, not {TRACE_VERSION}.", "Record it again.")
            return cls(head["setup"], head["controller"], head["options"], tuple(Signals.from_json(stored) for stored in calls))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"Trace {path} is damaged: {error}.", "Record it again.") from error


def head_line(setup: Setup, controller: Adaptive) -> str:
    """The first line of a trace."""
    head = {
        "trace": TRACE_VERSION,
        "controller": controller.name,
        "options": controller.given.model_dump(mode="json"),
        "setup": setup_json(setup),
    }
    return json.dumps(head, allow_nan=False)


def whole_lines(path: Path) -> list[str]:
    """Lines of a file that end as lines do; none where there is no file."""
    if not path.is_file():
        return []
    return [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]


def write_atomically(path: Path, text: str) -> None:
    """Writes a file so that it is there whole or as it was before, whatever happens."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def replay(
    trace: Trace | Path | str,
    controller: str | None = None,
    options: Mapping[str, Any] | None = None,
    space: MixtureSpace | None = None,
) -> list[Decision]:
    """What a controller decides when it is told a recorded run: before the first call, and after each.

    Args:
        controller: its name; None: the one that was recorded, with its options.

    Raises:
        ConfigError: no such controller or option.
        DataError: the trace is damaged, or holds no signal that the controller needs.
    """
    read = trace if isinstance(trace, Trace) else Trace.read(Path(trace))
    name, chosen = (read.controller, read.options if options is None else options) if controller is None else (controller, options)
    made = get_controller(name, setup_from_json(read.setup, space), chosen)
    return [made.decision, *(made.observe(signals) for signals in read.calls)]
