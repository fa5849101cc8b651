"""Which trial a user means: by its id, the first digits of it, or the name of its mixture.

A mixture has several trials: seeds, and the larger size of the verification. A name means the largest proxy of it that is trained, then the one
of the smallest seed; an id means itself. The trade-off: a name may mean another trial once the search has gone on, so what is made from a
trial says its id.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from mixopt.errors import ConfigError, DataError
from mixopt.history import TrialRecord
from mixopt.trial import WEIGHT_DECIMALS
from mixopt.verification import BEST_MEASURED, LABEL_PREFIX

ALIASES = {"best": BEST_MEASURED, "best-measured": BEST_MEASURED}
"""How people write the name of an arm."""
FEWEST_DIGITS = 4
"""Of an id: fewer are a slip more often than an id."""
MOST_LISTED = 4


def arm_names(record: TrialRecord, best_measured: str | None = None) -> tuple[str, ...]:
    """The names of the mixture that a trial is a run of: its label, or the arms of a verification.

    Args:
        best_measured: id of the trial of the search that the proposal calls the best.
    """
    label = record.trial.label
    names = tuple(label.removeprefix(LABEL_PREFIX).split("+")) if record.stage == "verification" else (label,)
    return (*names, BEST_MEASURED) if record.stage == "search" and record.trial.trial_id == best_measured else names


def find_trial(
    text: str, records: Sequence[TrialRecord], best_measured: str | None = None, others: Sequence[TrialRecord] = ()
) -> TrialRecord:
    """The trial that `text` means.

    Args:
        records: of the search whose mixtures are named.
        best_measured: as for `arm_names`.
        others: of further searches, which can be named by id only.

    Raises:
        DataError: none is called so (the nearest is named), or none of those called so is trained.
        ConfigError: several ids begin so, or it is no name of one mixture, as "design".
    """
    by_id = {record.trial.trial_id: record for record in reversed([*records, *others]) if record.trial.trial_id.startswith(text)}
    if len(text) >= FEWEST_DIGITS and by_id:
        if len(by_id) > 1:
            raise ConfigError(f"{len(by_id)} trials begin with '{text}': {', '.join(sorted(by_id))}.", "Give more digits.")
        return _trained(text, list(by_id.values()))
    name = ALIASES.get(text, text)
    named = [record for record in records if name in arm_names(record, best_measured)]
    if not named:
        raise DataError(f"No trial is called '{text}'.", _nearest(text, records, best_measured, others))
    mixtures = {(record.stage, str(record.trial.schedule.array().round(WEIGHT_DECIMALS).tolist())) for record in named}
    if len(mixtures) > len({stage for stage, _ in mixtures}):
        ids = ", ".join(record.trial.trial_id[:8] for record in named[:MOST_LISTED])
        raise ConfigError(f"'{text}' is what {len(named)} trials of several mixtures are called.", f"Name one by its id, as {ids}.")
    return _trained(text, named)


def _trained(text: str, records: Sequence[TrialRecord]) -> TrialRecord:
    """The largest that is trained, by its training FLOPs; of equals the smallest seed.

    Raises:
        DataError: none is.
    """
    done = [record for record in records if record.outcome is not None]
    if not done:
        states = ", ".join(sorted({record.state.value for record in records}))
        raise DataError(f"Trial '{text}' is not trained ({states}).", "`mixopt search FILE` goes on where it stopped.")
    return min(done, key=lambda record: (-(record.outcome.flops if record.outcome else 0.0), record.trial.seed, record.trial.trial_id))


def _nearest(text: str, records: Sequence[TrialRecord], best_measured: str | None, others: Sequence[TrialRecord]) -> str:
    names = {name for record in records for name in arm_names(record, best_measured) if name}
    ids = {record.trial.trial_id for record in (*records, *others)}
    if any(key.startswith(text) for key in ids):
        return f"Give at least {FEWEST_DIGITS} digits of an id."
    near = difflib.get_close_matches(text, sorted(names | set(ALIASES)), n=1)
    near = near or [key for key in difflib.get_close_matches(text, sorted({key[: len(text)] for key in ids}), n=1) if key]
    if near:
        return f"Did you mean '{near[0]}'?"
    return f"Name one of {', '.join(sorted(names))}, or an id of `mixopt show DIR`." if names else "`mixopt show DIR` lists the trials."
