"""How well surrogates over sizes and token counts predict losses of a size that they have not seen, or hardly.

    python benchmarks/scaling.py [--quick] [--json FILE]

Three parts. `law`: made-up losses E + A N^-a + (w.p)^-g D^-b over 5 domains, three sizes, noise of 1% of the spread; asked at three times the largest size and tokens.
`regmix` (needs MIXOPT_SHARED): 128 runs at 1M and k anchors of the 60M table, asked about the other mixtures at 60M, mean of 13 validation domains' errors; beside the
1M runs alone and the anchors alone; three subsets. `mixinglaws` (needs MIXINGLAWS, a checkout of github yegcjs/mixinglaws, whose data has no licence and is not here): fits on
steps 6k to 30k of 70M and 160M, or of 305M too, asked about 410M at 30k steps and about 1B from 20k steps on; anchors are mixtures at 410M. Sizes count parameters
without the embedding.

error_percent: mean |predicted / measured - 1|. spearman: over mixtures, mean over metrics. coverage90: of 90% intervals of measurements.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from mixinglaws import PARAMETERS, read
from rows_file import why_unwritable, write_rows
from surrogates import load_regmix

from mixopt.mixture import FloatArray
from mixopt.surrogates import get_surrogate
from mixopt.surrogates.base import Fitted
from mixopt.surrogates.cross_validation import noise_at, rank_correlation
from mixopt.swarm import Points, Swarm
from mixopt.trial import Source

Z90 = 1.6449
LAWS = ("scaling_additive", "scaling_joint", "scaling_effective")
SEVERAL = ("multi_source_gp", "anchor_ratio", "auto")


@dataclass(frozen=True)
class Row:
    part: str
    setting: str
    surrogate: str
    anchors: int
    error_percent: float
    spearman: float
    coverage90: float
    cpu_seconds: float


def together(*parts: Swarm) -> Swarm:
    """Swarms over the same domains as one."""
    table = parts[0].table
    for one in parts[1:]:
        table = table.vstack(one.table)
    return Swarm(parts[0].domains, table)


def scored(fitted: Fitted, points: Points, measured: FloatArray) -> tuple[float, float, float]:
    """Error in percent, Spearman and coverage."""
    posterior = fitted.posterior(points)
    std = np.sqrt(posterior.std**2 + noise_at(fitted, points) ** 2)
    error = 100 * float(np.mean(np.abs(posterior.mean / measured - 1)))
    spearman = float(np.mean([rank_correlation(a, b) for a, b in zip(posterior.mean.T, measured.T, strict=True)]))
    return error, spearman, float(np.mean(np.abs(measured - posterior.mean) <= Z90 * std))


def fit_and_score(
    part: str,
    setting: str,
    name: str,
    runs: Sequence[Swarm],
    asked: Sequence[tuple[Points, FloatArray]],
    anchors: int,
    metrics: Sequence[str],
    **options: object,
) -> Row:
    """Mean over subsets: `runs` and what each is asked; options are the surrogate's."""
    found, begun = [], time.process_time()
    for one, (points, measured) in zip(runs, asked, strict=True):
        found.append(scored(get_surrogate(name, **options).fit(one, metrics), points, measured))
    seconds = (time.process_time() - begun) / len(runs)
    error, spearman, coverage = np.mean(found, axis=0).tolist()
    return Row(part, setting, name, anchors, error, spearman, coverage, seconds)


def law_rows(subsets: int) -> Iterator[Row]:
    sources = (Source("trained", "1M", 10**7), Source("trained", "4M", 2 * 10**7), Source("trained", "16M", 10**8))
    beyond, domains, metrics = Source("trained", "48M", 3 * 10**8), ("a", "b", "c", "d", "e"), ("one", "two", "three")
    runs, asked = [], []
    for seed in range(subsets):
        rng = np.random.default_rng(seed)
        worth, g = np.exp(rng.normal(0, 1, (3, 5))), rng.uniform(0.2, 0.5, 3)

        def truth(weights: FloatArray, source: Source, worth: FloatArray = worth, g: FloatArray = g) -> FloatArray:
            size, tokens = float(source.size.rstrip("M")), source.tokens / 10**7
            return np.asarray(1.5 + 0.8 * size**-0.35 + (0.1 + weights @ worth.T) ** -g * tokens**-0.25)

        parts = []
        for source, count in zip(sources, (64, 32, 16), strict=True):
            weights = rng.dirichlet(np.full(5, 0.7), count)
            losses = truth(weights, source)
            losses = losses + 0.01 * losses.std(axis=0) * rng.normal(size=losses.shape)
            names = [f"{source.size}-{row}" for row in range(count)]
            parts.append(Swarm.from_arrays(domains, weights[:, None], metrics, losses, source, trial_ids=names))
        unseen = rng.dirichlet(np.full(5, 0.7), 100)
        runs.append(together(*parts))
        asked.append((Points(domains, unseen[:, None], (beyond,) * 100), truth(unseen, beyond)))
    for name in (*LAWS, "auto"):
        yield fit_and_score("law", "1M 4M 16M to 48M, 3x tokens", name, runs, asked, 0, metrics)


def regmix_rows(folder: Path, cheap_runs: Sequence[int], anchor_counts: Sequence[int], subsets: int) -> Iterator[Row]:
    swarms = load_regmix(folder)
    cheap, target = swarms["train_1m"], swarms["test_60m"]
    metrics = cheap.metrics
    for count in cheap_runs:
        for anchors in anchor_counts:
            both, alone, proxies, asked, asked_cheap = [], [], [], [], []
            for seed in range(subsets):
                rng = np.random.default_rng(seed)
                some = cheap.select([cheap.trial_ids[row] for row in rng.permutation(len(cheap))[:count]])
                order = [target.trial_ids[row] for row in rng.permutation(len(target))]
                few, rest = target.select(order[:anchors]), target.select(order[anchors:])
                both.append(together(some, few))
                alone.append(few)
                proxies.append(some)
                asked.append((rest.points(), rest.values(metrics)))
                asked_cheap.append(
                    (Points(rest.domains, rest.points().schedules, some.points().sources[:1] * len(rest)), rest.values(metrics))
                )
            setting = f"{count} runs at 1M to 60M"
            for name in SEVERAL:
                yield fit_and_score("regmix", setting, name, both, asked, anchors, metrics)
            if anchors >= 4:
                yield fit_and_score("regmix", "anchors alone", "gaussian_process", alone, asked, anchors, metrics)
        yield fit_and_score("regmix", f"{count} runs at 1M alone", "gaussian_process", proxies, asked_cheap, 0, metrics)


def mixinglaws_rows(folder: Path, anchor_counts: Sequence[int]) -> Iterator[Row]:
    for table in ("5Mix", "RedPajama"):
        targets = {
            "410M": read(folder, table, ["410M"], lambda _size, step: step == 30_000),
            "1B": read(folder, table, ["1B"], lambda _size, step: step >= 20_000),
        }
        target = targets["410M"]
        metrics = target.metrics
        for sizes in (("70M", "160M"), ("70M", "160M", "305M")):
            small = read(folder, table, sizes, lambda _size, step: 6_000 <= step <= 30_000)
            for beyond, asked in targets.items():
                points = [(asked.points(), asked.values(metrics))]
                for name in LAWS:
                    setting = f"{table} {' '.join(sizes)} to {beyond}"
                    yield fit_and_score("mixinglaws", setting, name, [small], points, 0, metrics, sizes=PARAMETERS)
        for size in ("70M", "160M", "305M"):
            ends = read(folder, table, [size], lambda _size, step: step == 30_000)
            for anchors in anchor_counts:
                few = target.select(list(target.trial_ids[:: max(len(target) // anchors, 1)][:anchors]))
                rest = target.select([name for name in target.trial_ids if name not in few.trial_ids])
                points = [(rest.points(), rest.values(metrics))]
                for name in ("anchor_ratio", "multi_source_gp"):
                    yield fit_and_score("mixinglaws", f"{table} {size} to 410M", name, [together(ends, few)], points, anchors, metrics)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one subset, 128 runs at 1M, 8 anchors, without the tables of mixinglaws")
    parser.add_argument("--json", type=Path, help="also write the rows there")
    arguments = parser.parse_args()
    if arguments.json and (why := why_unwritable(arguments.json)):
        print(why, file=sys.stderr)
        return 2
    rows = []
    shared, laws = os.environ.get("MIXOPT_SHARED"), os.environ.get("MIXINGLAWS")
    parts = [law_rows(1 if arguments.quick else 5)]
    if shared:
        folder = Path(shared) / "data" / "swarms" / "regmix"
        parts.append(regmix_rows(folder, [128], [8], 1) if arguments.quick else regmix_rows(folder, [128], [1, 4, 8, 16, 32], 3))
    else:
        print("MIXOPT_SHARED is not set: without the RegMix tables.")
    if laws and not arguments.quick:
        parts.append(mixinglaws_rows(Path(laws), [1, 3]))
    print(f"{'part':10} {'setting':28} {'surrogate':18} {'anchors':>7} {'error %':>8} {'spearman':>8} {'coverage90':>10} {'CPU s':>8}")
    for part in parts:
        for row in part:
            rows.append(row)
            print(
                f"{row.part:10} {row.setting:28} {row.surrogate:18} {row.anchors:7} {row.error_percent:8.2f} {row.spearman:8.4f} "
                f"{row.coverage90:10.3f} {row.cpu_seconds:8.2f}",
                flush=True,
            )
    if arguments.json:
        write_rows(arguments.json, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
