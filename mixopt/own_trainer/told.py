"""Outcomes that somebody tells: a table by trial id, compared with the record before anything is written.

What is no mistake but the way of experiments is taken in: tables of some trials or some metrics, the same rows again, a run that failed, a run without
a number yet. What would make the record another one than the user thinks is an error that names the trial and both values: another value than before,
an id or a metric that nobody knows. Main trade-off: all rows of a table count or none, so one slip keeps the others waiting; in return a table can be
mended and told again as it is.
"""

from __future__ import annotations

import csv
import difflib
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from mixopt.errors import DataError
from mixopt.history import TrialRecord
from mixopt.own_trainer.config import ASKED_COLUMNS, ID_COLUMN, TOLD_COLUMNS
from mixopt.own_trainer.outcome import MAXIMIZED, Measured, outcome_of
from mixopt.runner import Evaluation
from mixopt.trial import Failure, FailureKind, Outcome, TrialState

DONE_WORDS, FAILED_WORDS = ("ok", "done", "completed", "finished"), ("failed", "crashed", "error")
EMPTY = ("", "none", "null", "na", "n/a", "-")
SAME_WITHIN = 1e-9
"""Relative: values that agree so well are one value, printed twice."""
WEIGHTS_WITHIN = 1e-3
"""Weights that a table repeats may have been rounded by as much."""
REQUEST_KEYS = ("version", "size", "domains", "fractions", "output_folder")
"""Of a request (`outcome.request_of`) beside columns that a table has, too."""


@dataclass(frozen=True)
class ToldRow:
    """One row of a table.

    Attributes:
        place: where it stands, for messages, as "line 3".
        values: metric -> number, of the metrics that the row has; not finite where a run diverged.
        failed: the row says so.
        weights: domain -> weight, of the domains that the row has.
    """

    place: str
    trial_id: str
    values: Mapping[str, float]
    failed: bool = False
    reason: str = ""
    flops: float | None = None
    seconds: float | None = None
    weights: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Told:
    """What a table changes in the record.

    Attributes:
        outcomes: of trials with values that are new, or replace others.
        failures: trial id -> why, of trials that failed.
        known: trials of which the table says what the record says already.
        empty: trials whose rows say nothing yet.
    """

    outcomes: tuple[Outcome, ...] = ()
    failures: Mapping[str, Failure] = field(default_factory=dict)
    known: tuple[str, ...] = ()
    empty: tuple[str, ...] = ()


def read_rows(text: str, name: str, metrics: Sequence[str], domains: Sequence[str]) -> list[ToldRow]:
    """The rows of a table, CSV with a header or JSON lines; which of them shows its first character.

    Args:
        name: of the file, for messages.
        domains: whose columns may be there, so that a table from `mixopt ask` can be filled in.

    Raises:
        DataError: it is neither, has no ids, no metric, a column that nobody knows, or a cell that is no number.
    """
    plain = text.removeprefix("\N{ZERO WIDTH NO-BREAK SPACE}")
    if plain.lstrip().startswith("["):
        raise DataError(f"{name} is one JSON array.", "Write one object per line.")
    cells = _json_rows(plain, name) if plain.lstrip().startswith("{") else _csv_rows(plain, name)
    if not cells:
        raise DataError(f"{name} holds no row.", f"It should have one row per trial, with {ID_COLUMN} and a column per metric.")
    ignored = {*ASKED_COLUMNS, *domains}
    for place, row in cells:
        for column in row:
            if column not in ignored and column not in metrics and column not in TOLD_COLUMNS:
                known = [ID_COLUMN, *metrics, *TOLD_COLUMNS]
                raise DataError(f"{name}, {place}: column '{column}' is no metric of this experiment.", _nearest(column, known))
    if not any(column in row for _, row in cells for column in (*metrics, "status")):
        raise DataError(f"{name} has no column of a metric.", f"The metrics are {', '.join(metrics)}.")
    return [_row(place, row, name, metrics, domains) for place, row in cells]


def settle(
    rows: Sequence[ToldRow],
    records: Sequence[TrialRecord],
    evaluations: Sequence[Evaluation],
    replace: bool = False,
    give_up: bool = False,
    flops: float | None = None,
) -> Told:
    """Compares what is told with the record.

    A failure counts once for every time that a trial was handed out, so that the same table can be told twice.

    Args:
        records: the trials of the search.
        replace: other values than the recorded ones take their place.
        give_up: trials that failed are never tried again.
        flops: of a trial, where its row does not say.

    Raises:
        DataError: an id is unknown, a trial has two values, failed and has values, or was asked for with other weights than its row has.
    """
    known = {record.trial.trial_id: record for record in records}
    outcomes, failures, same, empty = [], {}, [], []
    for trial_id, told in _by_trial(rows).items():
        if trial_id not in known:
            raise DataError(f"{told[0].place}: there is no trial '{trial_id}' in this search.", _nearest_id(trial_id, list(known)))
        record, values = known[trial_id], _values(trial_id, told)
        _refuse_other_weights(record, told)
        diverged = [name for name, value in values.items() if not math.isfinite(value)]
        failed = next((row for row in told if row.failed), None)
        if (failed or diverged) and (record.outcome is not None or (failed and values)):
            _refuse_both(trial_id, failed or told[0], record)
        if failed or diverged:
            failure = _failure(failed, values, diverged, give_up)
            if record.state is TrialState.ABANDONED or (record.state is TrialState.FAILED and failure.kind.retryable):
                same.append(trial_id)
            else:
                failures[trial_id] = failure
        elif not values:
            empty.append(trial_id)
        elif changed := _changed(record, values, evaluations, replace):
            first = {key: next((v for row in told if (v := getattr(row, key)) is not None), None) for key in ("flops", "seconds")}
            measured = Measured(changed, flops=first["flops"], seconds=first["seconds"])
            outcomes.append(outcome_of(record.trial, measured, evaluations, flops, 0.0))
        else:
            same.append(trial_id)
    return Told(tuple(outcomes), failures, tuple(same), tuple(empty))


def _by_trial(rows: Sequence[ToldRow]) -> dict[str, list[ToldRow]]:
    found: dict[str, list[ToldRow]] = {}
    for row in rows:
        found.setdefault(row.trial_id, []).append(row)
    return found


def _values(trial_id: str, rows: Sequence[ToldRow]) -> dict[str, float]:
    """The values of all rows of a trial."""
    found: dict[str, tuple[float, str]] = {}
    for row in rows:
        for name, value in row.values.items():
            before = found.setdefault(name, (value, row.place))
            if not _same(before[0], value):
                raise DataError(
                    f"Trial {trial_id} has '{name}' {before[0]:.9g} in {before[1]} and {value:.9g} in {row.place}.",
                    "Keep the one that is right.",
                )
    return {name: value for name, (value, _) in found.items()}


def _changed(record: TrialRecord, values: Mapping[str, float], evaluations: Sequence[Evaluation], replace: bool) -> dict[str, float]:
    """The values that the record lacks, or has otherwise."""
    end = record.trial.source.tokens
    measured = {} if record.outcome is None else {m.evaluation_key: m.bits_per_byte for m in record.outcome.measurements if m.tokens == end}
    changed = {}
    for evaluation in evaluations:
        if evaluation.metric not in values:
            continue
        value, stored = values[evaluation.metric], measured.get(evaluation.key)
        before = None if stored is None else -stored if evaluation.kind == MAXIMIZED else stored
        if before is not None and not _same(before, value) and not replace:
            raise DataError(
                f"Trial {record.trial.trial_id} was told with '{evaluation.metric}' {before:.9g} before, and with {value:.9g} now.",
                "Mend the table, or add --replace if the new value is the right one.",
            )
        if before is None or not _same(before, value):
            changed[evaluation.metric] = value
    return changed


def _same(one: float, other: float) -> bool:
    return (math.isnan(one) and math.isnan(other)) or math.isclose(one, other, rel_tol=SAME_WITHIN)


def _refuse_other_weights(record: TrialRecord, rows: Sequence[ToldRow]) -> None:
    """Of trials of one phase: such a row is another trial's, or of a mixture that nobody asked for."""
    trial = record.trial
    if len(trial.schedule.mixtures) > 1:
        return
    asked = trial.schedule.mixtures[0].as_dict()
    for row in rows:
        for domain, weight in row.weights.items():
            if not abs(weight - asked.get(domain, 0.0)) <= WEIGHTS_WITHIN:
                raise DataError(
                    f"{row.place}: trial {trial.trial_id} was handed out with '{domain}' {asked.get(domain, 0.0):.6g}, and the row has {weight:.6g}.",
                    "Outcomes are of the mixtures that were handed out; mend the table, or leave the columns of domains out.",
                )


def _refuse_both(trial_id: str, row: ToldRow, record: TrialRecord) -> None:
    before = "has values in the record" if record.outcome is not None else "has values in the table"
    raise DataError(f"{row.place}: trial {trial_id} is said to have failed, and {before}.", "Take out the one that is wrong.")


def _failure(failed: ToldRow | None, values: Mapping[str, float], diverged: Sequence[str], give_up: bool) -> Failure:
    if failed is None:
        return Failure(FailureKind.DIVERGED, f"Metric '{diverged[0]}' is {values[diverged[0]]}, which is not finite.")
    said = failed.reason or "no reason given"
    return Failure(FailureKind.ERROR if give_up else FailureKind.PROGRAM, f"Told to have failed: {said}"[:500])


def _row(place: str, row: Mapping[str, Any], name: str, metrics: Sequence[str], domains: Sequence[str]) -> ToldRow:
    trial_id = str(row.get(ID_COLUMN) or "").strip()
    if not trial_id:
        raise DataError(f"{name}, {place} has no {ID_COLUMN}.", "Rows are joined by id, never by position; `mixopt ask` wrote the ids.")
    status = str(row.get("status") or "").strip().lower()
    if status and status not in (*DONE_WORDS, *FAILED_WORDS):
        raise DataError(
            f"{name}, {place}: status is '{status}'.", f"Write {DONE_WORDS[0]} or {FAILED_WORDS[0]}, or leave it empty while a run goes on."
        )
    where = f"{name}, {place}"
    values = {metric: value for metric in metrics if (value := _number(row.get(metric), metric, where)) is not None}
    if status in DONE_WORDS and not values:
        raise DataError(f"{where}: trial {trial_id} is {status} and has no metric.", "Give its metrics, or leave its status empty.")
    amounts: dict[str, float | None] = {}
    for key in ("flops", "seconds"):
        value = _number(row.get(key), key, where)
        if value is not None and not 0 <= value < math.inf:
            raise DataError(f"{where}: {key} is {value:g}.", "Write a number of at least 0, or leave it empty.")
        amounts[key] = value
    reason = " ".join(str(row.get("reason") or "").split())
    weights = {domain: value for domain in domains if (value := _number(row.get(domain), domain, where)) is not None}
    return ToldRow(where, trial_id, values, status in FAILED_WORDS, reason, amounts["flops"], amounts["seconds"], weights)


def _number(cell: Any, column: str, where: str) -> float | None:
    """A number, NaN and infinity among them; None where there is none."""
    if cell is None or (isinstance(cell, str) and cell.strip().lower() in EMPTY):
        return None
    try:
        if isinstance(cell, bool) or not isinstance(cell, int | float | str):
            raise ValueError
        return float(cell)
    except (ValueError, OverflowError):
        raise DataError(f"{where}: '{column}' is {str(cell)[:50]!r}, which is no number.", "Mend the cell, or leave it empty.") from None


def _csv_rows(text: str, name: str) -> list[tuple[str, dict[str, Any]]]:
    if "\0" in text:
        raise DataError(f"{name} is no table: it holds bytes that are no text.", "Save it as CSV or as JSON lines.")
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        lines = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise DataError(f"{name} is not valid CSV: {error}.", "Mend the quotes.") from error
    if not lines:
        return []
    header = [column.strip() for column in lines[0][1]]
    if ID_COLUMN not in header:
        marks = {";": "semicolons", "\t": "tabs"}
        mark = next((said for sign, said in marks.items() if len(header) == 1 and sign in header[0]), None)
        hint = f"It separates columns by {mark}; save it with commas." if mark else f"Its columns are {', '.join(header[:6])}."
        raise DataError(f"{name} has no column {ID_COLUMN}.", hint)
    repeated = sorted({column for column in header if header.count(column) > 1})
    if repeated:
        raise DataError(f"{name}: column '{repeated[0]}' occurs twice.", "Give every column a name of its own.")
    rows = []
    for line, row in lines[1:]:
        if len(row) != len(header):
            raise DataError(f"{name}: line {line} has {len(row)} cells, the header has {len(header)}.", "Mend the line.")
        rows.append((f"line {line}", dict(zip(header, row, strict=True))))
    return rows


def _json_rows(text: str, name: str) -> list[tuple[str, dict[str, Any]]]:
    """Lines of objects; metrics may lie in an object of their own, as in `result.json`, and weights in a list of one per phase, as in a request."""
    rows = []
    for line, content in enumerate(text.splitlines(), start=1):
        if not content.strip():
            continue
        try:
            body = json.loads(content, object_pairs_hook=partial(_once, where=f"{name}: line {line}"))
        except (ValueError, RecursionError) as error:
            raise DataError(f"{name}: line {line} is not JSON ({error}).", "Write one object per line.") from error
        if not isinstance(body, dict):
            raise DataError(f"{name}: line {line} is no object.", 'Write {"trial_id": ..., "metrics": {...}}.')
        inner, phases = body.pop("metrics", {}), body.pop("weights", [])
        if not isinstance(inner, dict):
            raise DataError(f"{name}: `metrics` of line {line} is no object.", 'Write {"trial_id": ..., "metrics": {"loss": 3.1}}.')
        phases = phases if isinstance(phases, list) else [phases]
        if not all(isinstance(weights, dict) for weights in phases):
            raise DataError(f"{name}: `weights` of line {line} are no objects.", "Leave them out; `mixopt ask` has written what they are.")
        plain = [(key, value) for key, value in body.items() if key not in REQUEST_KEYS]
        of_one = list(phases[0].items()) if len(phases) == 1 else []
        rows.append((f"line {line}", _once([*plain, *of_one, *inner.items()], f"{name}: line {line}")))
    return rows


def _once(pairs: Sequence[tuple[str, Any]], where: str) -> dict[str, Any]:
    """Raises DataError where a key is there twice: nobody knows which is meant."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for key in keys if keys.count(key) > 1)
        raise DataError(f"{where} has '{repeated}' twice.", "Keep the one that is right.")
    return found


def _nearest(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"Did you mean '{close[0]}'?" if close else f"There are {', '.join(known)}."


def _nearest_id(trial_id: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(trial_id, known, n=1, cutoff=0.3)
    if not close:
        return "None was handed out yet; `mixopt ask FILE` does." if not known else "`mixopt ask FILE --again` lists those that are out."
    return f"Did you mean '{close[0]}'?"
