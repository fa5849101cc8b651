"""Weights of a table's rows, checked and renormalized: the same for measured runs and for mixtures to predict."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mixopt.errors import DataError
from mixopt.fitting.tables import NAME_COLUMN, SOURCE_COLUMNS, Table, listed, named
from mixopt.mixture import FloatArray

SUM_WITHIN = 0.02
"""Weights may miss a sum of 1 by so much: what rounding to two or three digits does to a dozen of them. They are then renormalized."""
SAID_WITHIN = 1e-6
"""Sums nearer to 1 than this are float error and not worth a note."""


def checked_weights(table: Table, domains: Sequence[str]) -> tuple[FloatArray, list[str]]:
    """Weights of a table's rows, shape (rows, domains), summing to 1, and what was changed.

    Raises:
        DataError: a weight is missing, negative or not finite, or a row does not sum to 1 within 2%; rows are named by id.
    """
    weights, ids = table.matrix(domains), table.ids
    for wrong, what, hint in (
        (np.isnan(weights), "no weight", "Write 0 where a run has none of a domain."),
        (np.isinf(weights), "an infinite weight", "Weights are shares of tokens."),
        (weights < 0, "a negative weight", "Weights are shares of tokens: at least 0, and 1 together."),
    ):
        if wrong.any():
            column = int(np.argmax(wrong.any(axis=0)))
            rows = [ids[row] for row in np.flatnonzero(wrong[:, column]).tolist()]
            raise DataError(f"{table.name}: domain '{domains[column]}' has {what} in {listed('run', rows)}.", hint)
    sums = weights.sum(axis=1)
    off = np.abs(sums - 1) > SUM_WITHIN
    if off.any():
        rows = [f"{ids[row]} ({sums[row]:.4g})" for row in np.flatnonzero(off).tolist()]
        apart = [column for column in (*SOURCE_COLUMNS, NAME_COLUMN) if column in table.columns]
        hint = "Weights are shares of tokens and sum to 1 within 2%; every column that is no id or one of size, tokens, seed, cost, name is a domain."
        if apart:
            hint += f" If {named(apart)} is a domain here, give it another name."
        if (np.abs(sums / 100 - 1) <= SUM_WITHIN).all():
            hint = "They look like percent: divide them by 100."
        raise DataError(f"{table.name}: the weights do not sum to 1 in {listed('run', rows)}.", hint)
    uneven = np.abs(sums - 1) > SAID_WITHIN
    notes = []
    if uneven.any():
        notes.append(
            f"{int(uneven.sum())} of {len(sums)} mixtures did not sum to 1 ({sums.min():.4g} to {sums.max():.4g}); they were renormalized."
        )
    return weights / sums[:, None], notes
