"""The same mixtures measured twice: by proxies that were really trained, and by the evaluator that is to stand in for them.

Repeats of a mixture are averaged, so that every mixture counts once. The main trade-off: seeds reach the trained losses only. An evaluator's
own error, the same for all mixtures made from the same components, belongs to what is judged and not to noise.

Legend: G distinct mixtures, M metrics of the objective.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mixopt.errors import DataError
from mixopt.mixture import FloatArray
from mixopt.objective import Objective

FEWEST_MIXTURES = 6
"""Of fewer, a gate would reject good evaluators and accept bad ones alike (odds in `docs/log.md`)."""


@dataclass(frozen=True)
class Paired:
    """Losses of G mixtures from both sides. Build it with `pair`.

    Attributes:
        objective: of which `objective.metrics` are the columns.
        mixtures: names of the rows.
        trained_GM: means over seeds, in the unit of losses; `proxy_GM`: of the evaluator.
        noise_M: standard deviation that seeds leave in a row of `trained_GM`, root mean square over rows.
        objective_noise: the same in the objective's value, in its unit.
    """

    objective: Objective
    mixtures: tuple[str, ...]
    trained_GM: FloatArray
    proxy_GM: FloatArray
    noise_M: FloatArray
    objective_noise: float


def pair(
    objective: Objective,
    trained: Sequence[tuple[str, FloatArray]],
    proxies: Mapping[str, FloatArray],
    objective_noise: float | None = None,
) -> Paired:
    """Brings the two sides together by the names of mixtures.

    Args:
        trained: name of the mixture and losses (M,) of every trained run; runs of one name are seeds of one mixture.
        proxies: name of a mixture -> losses (M,) by the evaluator.
        objective_noise: of one run, in the objective's unit, where it is known from elsewhere, as from a calibration. None: from the runs' own repeats,
            and without these as if the seeds' errors of all metrics were one.

    Raises:
        DataError: the sides share fewer than 6 mixtures, a loss is not finite, or a row has another number of losses than the objective metrics.
    """
    metrics = len(objective.metrics)
    for name, losses in [*trained, *proxies.items()]:
        if np.shape(losses) != (metrics,) or not np.isfinite(losses).all():
            raise DataError(
                f"Losses of mixture '{name}' have shape {np.shape(losses)} or are not finite; the objective has {metrics} metrics.",
                "Leave the mixture out on both sides.",
            )
    names = [name for name in dict.fromkeys(name for name, _ in trained) if name in proxies]
    if len(names) < FEWEST_MIXTURES:
        raise DataError(
            f"Only {len(names)} distinct mixtures were both trained and evaluated; a gate needs {FEWEST_MIXTURES}.",
            "Evaluate the mixtures of all trained runs, or train more mixtures; repeats of one mixture count once.",
        )
    runs = {name: np.array([losses for other, losses in trained if other == name], dtype=np.float64) for name in names}
    # Of the noise of a mean over n seeds, the mean square over mixtures.
    share = math.sqrt(float(np.mean([1 / len(rows) for rows in runs.values()])))
    one = _noise_of_a_run(objective, list(runs.values())) if objective_noise is None else objective_noise
    return Paired(
        objective=objective,
        mixtures=tuple(names),
        trained_GM=np.stack([rows.mean(axis=0) for rows in runs.values()]),
        proxy_GM=np.stack([np.asarray(proxies[name], dtype=np.float64) for name in names]),
        noise_M=share * np.array(objective.noise_std),
        objective_noise=share * one,
    )


def _noise_of_a_run(objective: Objective, runs: Sequence[FloatArray]) -> float:
    """What a seed does to the objective: from repeats, else the most that the metrics' noises allow."""
    values = [objective.value(rows) for rows in runs if len(rows) > 1]
    degrees = sum(len(rows) - 1 for rows in values)
    if degrees:
        return math.sqrt(sum(float(((rows - rows.mean()) ** 2).sum()) for rows in values) / degrees)
    centre = np.concatenate(runs).mean(axis=0)
    return float(np.abs(objective.sensitivities(centre)) @ np.array(objective.noise_std))
