"""The best weight of a scarce domain, by proxies that repeat it as often as the target run, and by proxies that do not.

    python benchmarks/epoch_matching.py [--quick] [--work DIR] [--json FILE]

Reads ${MIXOPT_SHARED}/data/corpus. One domain is scarce: the target run has so many unique tokens of it and no more, and repeats them. The other
domains of `examples/shared-corpus.yaml` are plentiful and share what is left by its inventory. The objective is the mean of two losses in bits per byte of
held-out text: of the scarce domain, and of the others by their shares. (Published: without matching the best weight is wrong by .65 to .85, with it
by .05 to .15; repetition mismatch, arXiv 2606.07597.) Arms, each at the same weights of the scarce domain:

- target: the long run itself.
- matched: a short proxy whose unique tokens shrink with its length, so that epochs are those of the target run; what `mixopt search` does.
- whole: the same proxy, which may see all unique tokens of the target run, and so repeats them less.
- floored: the same proxy with the 64 windows of 512 tokens that are the least a search gives, whatever matching asks for. Here it has the window
  of the others, so that nothing but the unique tokens differs.

best_weight: least point of the curve that the Gaussian process of a search fits to an arm's runs, with a 90% interval. regret: loss of the target's curve there
minus its least, bits per byte. spearman: of the losses at the weights that were trained, means over seeds, to the target's. Rows of kind `optimum` have
other importances of the scarce domain in the objective, too.

Losses are kept as they come: the same command with the same --work trains nothing twice. Trade-off: one domain, one size and one ratio of lengths;
the curve is the evidence, not the number of corpora.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from repetition.optimum import Curve, fit_curve
from repetition.runs import Arm, Run, Setting, Sight, train_arm
from rows_file import why_unwritable, write_rows

from mixopt.config import Experiment
from mixopt.corpus.manifest import MANIFEST_NAME, Manifest
from mixopt.errors import MixoptError
from mixopt.experiment_file import load_experiment
from mixopt.surrogates.cross_validation import rank_correlation
from workers.ray_runner import WORKER_ENVIRONMENT
from workers.tokens.prepare import prepare

ROOT = Path(__file__).resolve().parent.parent
EXPERIMENT = ROOT / "examples" / "shared-corpus.yaml"
GRID = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8)
QUICK_GRID = (0.02, 0.1, 0.2, 0.4, 0.8)
SIGHTS: tuple[Sight, ...] = ("matched", "whole", "floored")
IMPORTANCES = (0.5, 0.3, 0.7)
"""Of the scarce domain in the objective; the first is the one that is printed."""


@dataclass(frozen=True)
class Optimum:
    """What an arm says the best weight is. Losses are in bits per byte; `_low` and `_high` bound 90% intervals.

    Attributes:
        importance: of the scarce domain in the objective.
        epochs: of the scarce domain in the target run at `best_weight`.
    """

    kind: str
    arm: str
    importance: float
    tokens: int
    unique_tokens: int
    runs: int
    best_weight: float
    best_weight_low: float
    best_weight_high: float
    epochs: float
    regret: float
    regret_low: float
    regret_high: float
    spearman: float


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    if "MIXOPT_SHARED" not in os.environ:
        print("Skipped: set MIXOPT_SHARED to the shared data folder (it holds data/corpus).", file=sys.stderr)
        return 2
    wrong = why_unwritable(options.json) if options.json is not None else None
    try:
        experiment = load_experiment(EXPERIMENT)
        setting, arms = plan(options, experiment)
        manifest = _tokens(options, experiment)
    except (ValueError, MixoptError) as error:
        wrong = wrong or str(error)
    if wrong is not None:
        print(wrong, file=sys.stderr)
        return 2
    runs: list[Run] = []
    try:
        for arm in arms:
            for run in train_arm(setting, arm, manifest, options.work, lambda line: print(line, flush=True)):
                runs.append(run)
                print_run(run)
            if options.json is not None:
                write_rows(options.json, runs)
    except KeyboardInterrupt:
        print("\nInterrupted; the same command goes on from here.", file=sys.stderr)
        return 130
    found = optima(setting, arms, runs)
    print_optima(found)
    if options.json is not None:
        write_rows(options.json, [*found, *runs])
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a target run of 1M tokens, one seed, five weights: under five minutes")
    parser.add_argument("--scarce", default="code_python", help="the scarce domain")
    parser.add_argument(
        "--grid", nargs="+", type=float, help="weights of the scarce domain, at least 4; .02 .05 .1 .2 .3 .5 .8 unless given"
    )
    parser.add_argument(
        "--arms", nargs="+", choices=SIGHTS, help="beside the target run; all, or matched and whole with --quick, unless given"
    )
    parser.add_argument("--size", default="nano", help="of all proxies")
    parser.add_argument("--target-tokens", type=int, help="of the target run; 4,194,304, or 1,048,576 with --quick, unless given")
    parser.add_argument(
        "--unique-tokens", type=int, help="of the scarce domain in the target run; 65,536, or 32,768 with --quick, unless given"
    )
    parser.add_argument("--ratio", type=int, help="tokens of the target run per token of a proxy; 8, or 4 with --quick, unless given")
    parser.add_argument("--seeds", type=int, help="of the proxies; 3, or 1 with --quick, unless given")
    parser.add_argument("--target-seeds", type=int, default=1, help="of the target run")
    parser.add_argument("--window", type=int, default=128, help="tokens per window")
    parser.add_argument(
        "--tokens", type=Path, help="folder of prepared tokens (`mixopt prepare examples/shared-corpus.yaml`); made in --work if not given"
    )
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "epoch-matching", help="folder of checkpoints and tokens")
    parser.add_argument("--json", type=Path, help="also write the rows there")
    return parser.parse_args(arguments)


def plan(options: argparse.Namespace, experiment: Experiment) -> tuple[Setting, list[Arm]]:
    """What is trained.

    Raises:
        ValueError: the scarce domain is unknown, or a number is out of range.
    """
    tokens = {domain.name: domain.tokens for domain in experiment.domains}
    if options.scarce not in tokens:
        raise ValueError(f"--scarce {options.scarce} is no domain of {EXPERIMENT.name}: {', '.join(tokens)}.")
    quick = options.quick
    target_tokens = _chosen(options.target_tokens, 1 << 20 if quick else 1 << 22)
    unique_tokens = _chosen(options.unique_tokens, 1 << 15 if quick else 1 << 16)
    ratio = _chosen(options.ratio, 4 if quick else 8)
    seeds = _chosen(options.seeds, 1 if quick else 3)
    if min(target_tokens, unique_tokens, ratio, seeds, options.target_seeds, options.window) < 1:
        raise ValueError("Tokens, ratio, seeds and window are at least 1.")
    rest = {name: float(count) for name, count in tokens.items() if name != options.scarce and isinstance(count, float)}
    grid = tuple(sorted(set(options.grid or (QUICK_GRID if quick else GRID))))
    if len(grid) < 4 or not (grid[0] > 0 and grid[-1] < 1):
        raise ValueError(f"--grid is {grid}; it needs at least 4 weights between 0 and 1, both excluded.")
    setting = Setting(options.scarce, unique_tokens, target_tokens, rest, grid, options.size, options.window)
    proxy_tokens = target_tokens // ratio
    sights = options.arms or (SIGHTS[:2] if quick else SIGHTS)
    arms = [Arm(sight, proxy_tokens, sight, _seeds(seeds)) for sight in SIGHTS if sight in sights]
    return setting, [*arms, Arm("target", target_tokens, "whole", _seeds(options.target_seeds))]


def _chosen(given: int | None, default: int) -> int:
    return default if given is None else given


def _seeds(count: int) -> tuple[int, ...]:
    return tuple(range(1, 1 + count))


def _tokens(options: argparse.Namespace, experiment: Experiment) -> Manifest:
    if options.tokens is not None:
        return Manifest.load(options.tokens)
    if not (options.work / "tokens" / MANIFEST_NAME).exists():
        print(f"Preparing tokens in {options.work / 'tokens'}; minutes, once.", flush=True)
    return prepare(experiment.model_copy(update={"output": str(options.work)}))


def optima(setting: Setting, arms: Sequence[Arm], runs: Sequence[Run]) -> list[Optimum]:
    """For every importance, one per arm."""
    found = []
    for importance in IMPORTANCES:
        curves = {arm.name: _curve([run for run in runs if run.arm == arm.name], importance) for arm in arms}
        target = curves["target"]
        truth = _means(setting, [run for run in runs if run.arm == "target"], importance)
        for arm in arms:
            mine = [run for run in runs if run.arm == arm.name]
            best = curves[arm.name].best
            epochs = best * setting.target_tokens / setting.unique_tokens
            spearman = rank_correlation(_means(setting, mine, importance), truth)
            interval, regret = curves[arm.name].best_interval, target.regret(best)
            unique = mine[0].unique_tokens
            found.append(
                Optimum("optimum", arm.name, importance, arm.tokens, unique, len(mine), best, *interval, epochs, *regret, spearman)
            )
    return found


def _curve(runs: Sequence[Run], importance: float) -> Curve:
    losses = np.array([[run.scarce_bits_per_byte, run.rest_bits_per_byte] for run in runs])
    return fit_curve([run.weight for run in runs], losses, (importance, 1 - importance))


def _means(setting: Setting, runs: Sequence[Run], importance: float) -> np.ndarray:
    """Objective at the weights that were trained, means over seeds, shape (weights,)."""
    return np.array([np.mean([run.objective(importance) for run in runs if run.weight == weight]) for weight in setting.grid])


def print_run(run: Run) -> None:
    print(
        f"  weight {run.weight:4.2f}  {run.epochs:5.1f} epochs  scarce {run.scarce_bits_per_byte:.4f}  rest {run.rest_bits_per_byte:.4f}  "
        f"objective {run.objective(IMPORTANCES[0]):.4f}",
        flush=True,
    )


def print_optima(found: Sequence[Optimum]) -> None:
    for importance in IMPORTANCES:
        print(f"\nObjective: {importance:g} scarce + {1 - importance:g} rest")
        print(
            f"{'arm':8} {'tokens':>9} {'unique':>7} {'best weight':>11} {'90% interval':>14} {'epochs there':>12} {'regret':>7} {'90% interval':>14} {'spearman':>8}"
        )
        for row in found:
            if row.importance == importance:
                print(
                    f"{row.arm:8} {row.tokens:9,} {row.unique_tokens:7,} {row.best_weight:11.3f} {row.best_weight_low:6.3f} to {row.best_weight_high:4.3f} "
                    f"{row.epochs:12.1f} {row.regret:7.4f} {row.regret_low:6.3f} to {row.regret_high:4.3f} {row.spearman:8.3f}"
                )


def _as_a_worker() -> None:
    """Starts anew with the environment of a search's workers: their allocator and number of threads are read when a process starts."""
    if any(os.environ.get(name) != value for name, value in WORKER_ENVIRONMENT.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **WORKER_ENVIRONMENT})


if __name__ == "__main__":
    _as_a_worker()
    sys.exit(main())
