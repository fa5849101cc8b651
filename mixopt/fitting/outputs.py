"""What a fit leaves behind: proposal.yaml, diagnostics.json, report.html and, where mixtures were asked about, predictions.csv.

All of them are made before any is written, and each is put in its place by renaming, so that a folder holds the files of one fit. Nothing in them
depends on the order of rows or columns, the names of files, or the time: the same runs give the same bytes. The main trade-off: numbers in
proposal.yaml are rounded to what a reader can use; weights still sum to exactly 1.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import yaml

from mixopt import __version__
from mixopt.errors import ConfigError
from mixopt.export.base import decimal_weights
from mixopt.proposal import Effect, Proposal

if TYPE_CHECKING:
    from mixopt.fitting.fit import FitResult

PREDICTIONS, PROPOSAL, DIAGNOSTICS, REPORT = "predictions.csv", "proposal.yaml", "diagnostics.json", "report.html"
FILES = (PREDICTIONS, PROPOSAL, DIAGNOSTICS, REPORT)
WEIGHT_DIGITS, DIGITS = 6, 5
HEADER = """\
# Proposed by mixopt {version} from {runs} measured runs. Weights are shares of tokens; negative differences are better{but}.
# Differences are to the {natural} mixture{unknown}, with 90% intervals; predictions are of runs like those that were measured.
"""


class _Flow(list[Any]):
    """A list written on one line."""


class _Dumper(yaml.SafeDumper):
    """Block style, with `_Flow` on one line."""


_Dumper.add_representer(_Flow, lambda dumper, value: dumper.represent_sequence("tag:yaml.org,2002:seq", value, flow_style=True))


def check_folder(folder: Path) -> None:
    """That `write_outputs` will be able to write; makes the folder.

    Raises:
        ConfigError: it will not.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(f"--out {folder} cannot be written ({error.strerror}).", "Name another folder.") from error


def write_outputs(result: FitResult, folder: Path, predicted: pl.DataFrame | None = None) -> list[Path]:
    """Writes the files into `folder`, in place of those of an earlier fit; returns their paths.

    Raises:
        ConfigError: the folder cannot be written.
    """
    from mixopt.fitting.page import fit_report

    texts = {
        PREDICTIONS: None if predicted is None else predicted.write_csv(),
        PROPOSAL: proposal_yaml(result),
        DIAGNOSTICS: json.dumps(plain(result.diagnostics), indent=1, ensure_ascii=False, allow_nan=False) + "\n",
        REPORT: fit_report(result),
    }
    check_folder(folder)
    written = [name for name in FILES if texts[name] is not None]
    temporary = {name: folder / f".{name}.{os.getpid()}" for name in written}
    try:
        for name, path in temporary.items():
            path.write_text(str(texts[name]), encoding="utf-8", newline="\n")
        for name, path in temporary.items():
            os.replace(path, folder / name)
    finally:
        for path in temporary.values():
            path.unlink(missing_ok=True)
    for name in set(FILES) - set(written):
        (folder / name).unlink(missing_ok=True)  # of an earlier fit: it would be taken for this one's
    return [folder / name for name in written]


def proposal_yaml(result: FitResult) -> str:
    """The text of proposal.yaml."""
    header = HEADER.format(
        version=__version__,
        runs=len(result.fitted_on),
        natural=result.natural_name,
        unknown="" if result.natural_known else " (no token counts were given)",
        but=", but not of metrics to maximize" if result.runs.maximized else "",
    )
    return header + yaml.dump(plain(proposal_body(result)), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=4096)


def proposal_body(result: FitResult) -> dict[str, Any]:
    """The content of proposal.yaml, numbers rounded."""
    proposal, runs = result.proposal, result.runs
    evidence = proposal.evidence
    weights = proposal.mixture.as_dict()
    order = sorted(weights, key=lambda name: (-weights[name], name))
    best = proposal.best_measured
    source = result.prediction.source
    epochs = {"epochs": {name: _round(proposal.epochs[name]) for name in order}} if result.config.budget_tokens is not None else {}
    where = {} if len(set(runs.swarm.points().sources)) == 1 else {"at": {"size": source.size, "tokens": source.tokens}}
    body: dict[str, Any] = {
        "mixture": _weights(weights, [*order, *runs.left_out_domains]),
        "predicted": {
            **where,
            "objective": {**_effect(proposal.objective), "unit": evidence["objective_unit"]},
            "metrics": {metric: _effect(signed_effect(effect, runs.sign(metric))) for metric, effect in sorted(proposal.effects.items())},
        },
        "near_optimal": {name: _Flow(round(end, 4) for end in proposal.near_optimal[name]) for name in order},
        **epochs,
        result.natural_name: _weights(result.domains.natural().as_dict(), order),
        "best_measured": {
            "run": runs.ids[best["trial_id"]],
            "objective": _round(best["objective"]),
            "runs": best["runs"],
            "feasible": best["feasible"],
            "mixture": _weights(best["weights"], order),
        },
        "compared_with_best_measured": against_best(proposal),
        "binding": list(proposal.binding),
        "relaxations": [
            {"constraint": relaxation.constraint, "change": relaxation.change, "objective": _effect(relaxation.gain)}
            for relaxation in proposal.relaxations
        ],
        "sensitivities": {name: _effect(effect) for name, effect in sorted(proposal.sensitivities.items())},
        "alternatives": [
            {
                "mixture": _weights(other.weights, order),
                "objective": _effect(other.objective),
                "distance": _round(other.distance),
            }
            for other in proposal.alternatives
        ],
        "objective": _objective(result),
        "trust": _trust(result),
        "surrogate": result.surrogate,
        "notes": list(result.notes),
    }
    return {key: value for key, value in body.items() if value not in ([], {})}


def against_best(proposal: Proposal) -> str:
    """The predicted gain over the best measured mixture, and whether it is more than noise, as a sentence."""
    best, guard = proposal.best_measured, proposal.evidence["guard"]
    gain = guard["difference"]
    kind = "best measured mixture" if best["feasible"] else "best measured mixture, which does not keep the caps"
    told = "inside the noise: only training both would tell which is better" if guard["inside_noise"] else "beyond the noise"
    if guard["worse"]:
        why = "a floor or the pull" if best["feasible"] else "the caps"
        told = f"so that mixture is predicted to be better; it is not proposed because of {why}"
    return (
        f"Against the {kind} ({best['label'] or best['trial_id']}) the predicted difference is {gain['mean']:.3g} {proposal.evidence['objective_unit']} "
        f"(90% interval {gain['low']:.3g} to {gain['high']:.3g}), {told}."
    )


def signed_effect(effect: Effect, sign: float) -> Effect:
    """The effect on a metric in the metric's own sign."""
    return effect if sign > 0 else Effect(-effect.mean, -effect.high, -effect.low)


def plain(value: Any) -> Any:
    """The same as JSON values; a number that is not finite is none."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, _Flow):
        return _Flow(plain(item) for item in value)
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _objective(result: FitResult) -> dict[str, Any]:
    objective, evidence = result.prediction.objective, result.proposal.evidence
    return {
        "kind": objective.kind,
        "metrics": dict(zip(objective.metrics, (_round(weight) for weight in objective.weights), strict=True)),
        **({"maximized": sorted(result.runs.maximized)} if result.runs.maximized else {}),
        **({"left_out": dict(result.proposal.screened)} if result.proposal.screened else {}),
        "noise_of_a_run": _round(float(evidence["objective_noise_std"])),
        "noise_from": objective.noise_from,
        "pull": evidence["pull"],
    }


def _trust(result: FitResult) -> dict[str, Any]:
    """Out of fold, of the objective."""
    from mixopt.fitting.diagnostics import MEANINGS, best_baseline

    entry = result.diagnostics["objective"]
    if entry is None:
        return {"not_judged": result.diagnostics["not_judged"]}
    name, rank = best_baseline(entry)
    found = {key: _round(entry[key]) for key in MEANINGS if entry[key] is not None}
    return {"folds": result.diagnostics["folds"], **found, "best_trivial_rule": {"name": name, "spearman": _round(rank)}}


def _effect(effect: Effect) -> dict[str, Any]:
    return {"mean": _round(effect.mean), "interval90": _Flow([_round(effect.low), _round(effect.high)])}


def _weights(weights: Mapping[str, float], order: Sequence[str]) -> dict[str, float]:
    """Weights whose printed digits sum to exactly 1."""
    decimals = decimal_weights(weights, WEIGHT_DIGITS)
    return {name: float(decimals.get(name, "0")) for name in order}


def _round(value: float, digits: int = DIGITS) -> float:
    """So many significant digits."""
    return float(f"{value:.{digits}g}")
