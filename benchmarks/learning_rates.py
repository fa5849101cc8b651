"""The best learning rate of a proxy by its size, in the standard parametrization and in muP: does nano's carry over to small?

    python benchmarks/learning_rates.py [--quick] [--sizes SIZE ...] [--rates RATE ...] [--seeds N] [--tokens N] [--json FILE]
    python benchmarks/learning_rates.py --show PATH [--json FILE]

Text is the shared corpus where MIXOPT_SHARED names it, else the demo corpus; `--prepared FOLDER` takes tokens that `mixopt prepare` has made.
A pack trains all rates of a size, parametrization and seed. All sizes train on equally many tokens, because the best rate moves with the
number of steps; proxies of one seed share initial draws and data order, so that rates are compared in pairs. The mixture is uniform over the
domains; the loss is the mean over domains of nats per token of held-out documents, at the end of training. Nano is the base of muP, where both
parametrizations are the same bit for bit (a test says so), and is trained once.

best: the least point of the parabola in log rate through the lowest mean loss and its two neighbours on the grid. low, high: the least and the
largest of the seeds' own, by the same three rates. Where the lowest loss is at an end of the grid there is no best rate: more `--rates` are
wanted.

Results are kept per proxy in --keep, training goes on from checkpoints, and the same command continues: nothing is trained twice.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rows_file import why_unwritable, write_rows

from proxy_models.config import PARAMETRIZATIONS, SIZES, proxy_config
from proxy_models.parametrization import BASE
from workers.ray_runner import WORKER_ENVIRONMENT

if TYPE_CHECKING:
    from proxy_models.train import MemberOutcome

ROOT = Path(__file__).resolve().parent.parent
WINDOW, TOKENS_PER_STEP = 512, 1024
EVALUATION_TOKENS, CURVE_TOKENS = 4096, 512
"""Of each domain at the end, and at the points before it, which nobody looks at here."""
FIRST_SEED = 100
GRID = tuple(3e-3 * 2.0**step for step in range(-3, 3))
FACTOR = 2.0
"""What is asked of a transfer: the best rates of all sizes are within it."""


@dataclass(frozen=True)
class Row:
    """One proxy. `loss_nats`: mean over domains; None: it diverged. `seconds`: of the pack, divided by its members."""

    corpus: str
    size: str
    parametrization: str
    tokens: int
    rate: float
    seed: int
    loss_nats: float | None
    seconds: float


@dataclass(frozen=True)
class Best:
    """Of a size and parametrization. `rate`, `low`, `high`: None where the lowest loss is at an end of the grid, or too few rates are done."""

    size: str
    parametrization: str
    lowest: float
    loss_nats: float
    seeds: int
    rate: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Job:
    """One pack, as a process gets it."""

    prepared: str
    corpus: str
    keep: str
    size: str
    parametrization: str
    tokens: int
    seed: int
    rates: tuple[float, ...]

    def path(self, rate: float) -> Path:
        """Where the row of a rate is kept."""
        folder = f"{self.corpus}-{self.size}-{self.parametrization}-{self.tokens}"
        return Path(self.keep) / folder / f"{rate:.6g}-{self.seed}.json"

    @property
    def whole_tokens(self) -> int:
        """Of whole steps."""
        return self.tokens // TOKENS_PER_STEP * TOKENS_PER_STEP

    def missing(self) -> list[float]:
        return [rate for rate in self.rates if not self.path(rate).exists()]


def train(job: Job) -> None:
    """Trains what is missing of a pack; what is done is kept at once."""
    import torch

    from mixopt.corpus.manifest import Manifest
    from proxy_models.train import DomainStream, EvaluationSpec, MemberSpec, TrainSettings, train_pack

    torch.set_num_threads(1)
    manifest = Manifest.load(Path(job.prepared))
    domains = sorted(manifest.domains.items())
    streams = tuple(DomainStream(one.train.content_hash, manifest.absolute(one.train), one.train.tokens) for _, one in domains)
    weights = ((1.0 / len(streams),) * len(streams),)
    held_out = [EvaluationSpec(name, manifest.absolute(one.valid), "text", EVALUATION_TOKENS, CURVE_TOKENS) for name, one in domains]
    rates = {f"{rate:.6g}": rate for rate in job.missing()}
    members = [MemberSpec(name, job.seed, rate, streams, weights) for name, rate in rates.items()]
    folders = {name: job.path(rate).with_suffix("") for name, rate in rates.items()}
    for folder in folders.values():
        folder.mkdir(parents=True, exist_ok=True)
    settings = TrainSettings(tokens=job.tokens, window=WINDOW, tokens_per_step=TOKENS_PER_STEP)
    config = proxy_config(job.size, manifest.vocab_size, job.parametrization)
    train_pack(
        config, settings, members, held_out, folders, on_outcome=lambda one: keep(job, rates[one.member_id], folders[one.member_id], one)
    )


def keep(job: Job, rate: float, folder: Path, outcome: MemberOutcome) -> None:
    """Writes the row of a member that ended, and removes its weights."""
    from proxy_models.checkpoint import WEIGHTS_NAME
    from proxy_models.train import MemberFailure, MemberResult, finish

    if isinstance(outcome, MemberResult):
        loss = statistics.fmean(nats for _, tokens, nats, _ in outcome.measurements if tokens == outcome.tokens)
        row = Row(job.corpus, job.size, job.parametrization, job.whole_tokens, rate, job.seed, loss, outcome.seconds)
    elif isinstance(outcome, MemberFailure) and outcome.kind == "diverged":
        row = Row(job.corpus, job.size, job.parametrization, job.whole_tokens, rate, job.seed, None, 0.0)
    else:
        print(outcome, file=sys.stderr)
        return
    path = job.path(rate)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(asdict(row)), encoding="utf-8")
    os.replace(temporary, path)
    finish(folder)
    (folder / WEIGHTS_NAME).unlink(missing_ok=True)
    folder.rmdir()


def bests(rows: Sequence[Row]) -> list[Best]:
    """The best rate of every size and parametrization that has rows; those of the base serve all parametrizations."""
    found = []
    for parametrization in PARAMETRIZATIONS:
        for size in SIZES:
            trained = "standard" if size == BASE else parametrization
            losses: dict[float, dict[int, float]] = {}
            for row in rows:
                if (row.size, row.parametrization) == (size, trained):
                    losses.setdefault(row.rate, {})[row.seed] = math.inf if row.loss_nats is None else row.loss_nats
            if losses:
                found.append(_best(size, parametrization, losses))
    return found


def _best(size: str, parametrization: str, losses: dict[float, dict[int, float]]) -> Best:
    """Args: losses: rate -> seed -> loss; infinite where it diverged. The curve is that of the seed with most rates; others count where they can."""
    seeds = sorted({seed for by_seed in losses.values() for seed in by_seed})
    first = max(seeds, key=lambda seed: (sum(seed in by_seed for by_seed in losses.values()), -seed))
    grid = sorted(rate for rate, by_seed in losses.items() if first in by_seed)
    place = min(range(len(grid)), key=lambda index: statistics.fmean(losses[grid[index]].values()))
    lowest = grid[place]
    three = grid[place - 1 : place + 2] if 0 < place < len(grid) - 1 else [lowest]
    whole = [seed for seed in seeds if all(seed in losses[rate] for rate in three)]
    mean = [statistics.fmean(losses[rate][seed] for seed in whole) for rate in three]
    if len(three) < 3:
        return Best(size, parametrization, lowest, mean[0], len(whole))
    own = [least_point(three, [losses[rate][seed] for rate in three]) for seed in whole]
    return Best(size, parametrization, lowest, mean[1], len(whole), least_point(three, mean), min(own), max(own))


def least_point(rates: Sequence[float], losses: Sequence[float]) -> float:
    """Of the parabola in log rate through three points, not beyond the outer two; the middle one where there is no parabola that opens upwards."""
    (a, b, c), (f, g, h) = [math.log(rate) for rate in rates], losses
    left, right = (b - a) * (g - h), (b - c) * (g - f)
    if not (math.isfinite(left) and math.isfinite(right)) or left - right >= 0:
        return rates[1]
    point = b - 0.5 * ((b - a) * left - (b - c) * right) / (left - right)
    return math.exp(min(max(point, a), c))


def print_results(rows: Sequence[Row]) -> None:
    """The tables of every text and number of tokens."""
    for text, tokens in sorted({(row.corpus, row.tokens) for row in rows}):
        print(f"{text}, {tokens:,} tokens:")
        _print_tables([row for row in rows if (row.corpus, row.tokens) == (text, tokens)])


def _print_tables(rows: Sequence[Row]) -> None:
    """Losses by rate, best rates, and the ratios that say whether a rate carries over."""
    print(f"{'size':13} {'parametrization':16} {'rate':>9}  loss in nats per token, by seed")
    for key in sorted({(PARAMETRIZATIONS.index(row.parametrization), SIZES.index(row.size), row.rate) for row in rows}):
        same = [row for row in rows if (PARAMETRIZATIONS.index(row.parametrization), SIZES.index(row.size), row.rate) == key]
        told = ["diverged" if row.loss_nats is None else f"{row.loss_nats:.3f}" for row in sorted(same, key=lambda row: row.seed)]
        print(f"{same[0].size:13} {same[0].parametrization:16} {key[2]:9.3g}  {'  '.join(told)}")
    print(f"\n{'size':13} {'parametrization':16} {'best rate':>9} {'low':>9} {'high':>9} {'of ' + BASE:>8} {'loss':>7} {'seeds':>5}")
    found = bests(rows)
    for parametrization in PARAMETRIZATIONS:
        mine = [best for best in found if best.parametrization == parametrization]
        base = next((best.rate for best in mine if best.size == BASE), None)
        for best in mine:
            if best.rate is None or best.low is None or best.high is None:
                print(f"{best.size:13} {parametrization:16} lowest at an end of its grid, {best.lowest:.3g}: more --rates are wanted")
                continue
            ratio = "-" if base is None else f"{best.rate / base:.2f}"
            print(
                f"{best.size:13} {parametrization:16} {best.rate:9.3g} {best.low:9.3g} {best.high:9.3g} {ratio:>8} {best.loss_nats:7.3f} {best.seeds:5}"
            )
        rates = [best.rate for best in mine if best.rate is not None]
        if len(rates) > 1:
            spread = max(rates) / min(rates)
            print(
                f"{parametrization}: the best rates of {len(rates)} sizes lie within a factor {spread:.2f}, {'' if spread <= FACTOR else 'not '}within {FACTOR:g}."
            )


def corpus(prepared: Path | None, folder: Path) -> tuple[str, Path]:
    """Name of the text and the folder of its prepared tokens, which are made where they are missing."""
    if prepared is not None:
        return prepared.resolve().parent.name, prepared
    from mixopt.corpus.demo import build_demo_corpus
    from mixopt.experiment_file import load_experiment
    from mixopt.progress import Silent
    from workers.tokens.prepare import prepare

    shared = "MIXOPT_SHARED" in os.environ
    if shared:
        file = ROOT / "examples" / "shared-corpus.yaml"
    else:
        file = folder / "demo" / "experiment.yaml"
        if not file.exists():
            build_demo_corpus(folder / "demo", Silent())
    print(f"Preparing {file}", flush=True)
    experiment = load_experiment(file).model_copy(update={"output": str(folder / ("shared-corpus" if shared else "demo"))})
    prepare(experiment)
    return "shared-corpus" if shared else "demo", experiment.output_dir / "tokens"


def run(jobs: Sequence[Job], at_once: int, done: Callable[[], None]) -> int:
    """Trains the packs in processes of their own, so many at once; returns how many failed. `done` is called after each."""
    waiting = [job for job in jobs if job.missing()]
    running: dict[subprocess.Popen[bytes], Job] = {}
    failures = 0
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                job = waiting.pop(0)
                command = [sys.executable, __file__, "--pack", json.dumps(asdict(job))]
                running[subprocess.Popen(command, env={**os.environ, **WORKER_ENVIRONMENT})] = job
                print(
                    f"Training {job.size} {job.parametrization}, seed {job.seed}, rates {', '.join(f'{r:.3g}' for r in job.missing())}",
                    flush=True,
                )
            time.sleep(0.2)
            for process in [one for one in running if one.poll() is not None]:
                job = running.pop(process)
                if process.returncode or job.missing():
                    print(f"{job.size} {job.parametrization} ended with {process.returncode}.", file=sys.stderr)
                    failures += 1
                done()
    finally:
        for process in running:
            process.terminate()
    return failures


def kept(folder: Path) -> list[Row]:
    """All rows that a folder keeps, by size, parametrization, seed and rate."""
    rows = [Row(**json.loads(path.read_text(encoding="utf-8"))) for path in folder.glob("*/*.json")]
    return sorted(
        rows, key=lambda row: (row.corpus, SIZES.index(row.size), PARAMETRIZATIONS.index(row.parametrization), row.seed, row.rate)
    )


def show(path: Path, json_file: Path | None) -> int:
    """Prints what is there, and writes it where a file is given."""
    wrong = f"There is no {path}." if not path.exists() else why_unwritable(json_file) if json_file is not None else None
    if wrong is not None:
        print(wrong, file=sys.stderr)
        return 2
    rows = kept(path) if path.is_dir() else [Row(**row) for row in json.loads(path.read_text(encoding="utf-8"))]
    print_results(rows)
    if json_file is not None:
        write_rows(json_file, rows)
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="Nano and micro, four rates, one seed, 50K tokens: two minutes.")
    parser.add_argument("--sizes", nargs="+", metavar="SIZE", help="nano micro small unless given.")
    parser.add_argument("--parametrizations", nargs="+", choices=PARAMETRIZATIONS, default=PARAMETRIZATIONS)
    parser.add_argument("--rates", nargs="+", type=float, help=f"{GRID[0]:g} to {GRID[-1]:g}, by factors of two, unless given.")
    parser.add_argument("--seeds", type=int, help="Seeds of every rate; 2 unless given.")
    parser.add_argument("--tokens", type=int, help="Training tokens of a proxy; 300,000 unless given.")
    parser.add_argument("--prepared", type=Path, metavar="FOLDER", help="Prepared tokens, as `RUN/tokens`.")
    parser.add_argument("--keep", type=Path, default=ROOT / "runs" / "learning-rates", metavar="FOLDER", help="Where results are kept.")
    parser.add_argument("--at-once", type=int, default=1, help="Processes at once, one core each.")
    parser.add_argument("--json", type=Path, metavar="FILE", help="Also write the rows to this file.")
    parser.add_argument("--show", type=Path, metavar="PATH", help="Only print the tables of a file of rows, or of a --keep folder.")
    parser.add_argument("--pack", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    if options.pack:
        job = json.loads(options.pack)
        train(Job(**{**job, "rates": tuple(job["rates"])}))
        return 0
    if options.show:
        return show(options.show, options.json)
    sizes = options.sizes or (["nano", "micro"] if options.quick else ["nano", "micro", "small"])
    rates = tuple(sorted(options.rates or (GRID[1:5] if options.quick else GRID)))
    seeds, tokens = options.seeds or (1 if options.quick else 2), options.tokens or (50_000 if options.quick else 300_000)
    wrong = _what_is_wrong(options, sizes, rates, seeds, tokens)
    if wrong is not None:
        print(wrong, file=sys.stderr)
        return 2
    name, prepared = corpus(options.prepared, options.keep)
    kinds = [(size, kind) for size in sizes for kind in options.parametrizations if size != BASE or kind == options.parametrizations[0]]
    jobs = [
        Job(str(prepared), name, str(options.keep), size, "standard" if size == BASE else kind, tokens, FIRST_SEED + seed, rates)
        for seed in range(seeds)
        for size, kind in kinds
    ]

    def rows() -> list[Row]:
        """Of earlier calls, too."""
        asked = {(job.corpus, job.size, job.parametrization, job.whole_tokens) for job in jobs}
        return [row for row in kept(options.keep) if (row.corpus, row.size, row.parametrization, row.tokens) in asked]

    failures = run(jobs, options.at_once, lambda: write_rows(options.json, rows()) if options.json else None)
    if options.json:
        write_rows(options.json, rows())
    print_results(rows())
    return 1 if failures else 0


def _what_is_wrong(options: argparse.Namespace, sizes: Sequence[str], rates: Sequence[float], seeds: int, tokens: int) -> str | None:
    """With options, in a sentence; None: nothing."""
    unknown = sorted(set(sizes) - set(SIZES))
    if unknown:
        return f"Unknown size {', '.join(unknown)}; known sizes: {', '.join(SIZES)}."
    if not all(0 < rate < math.inf for rate in rates) or min(seeds, options.at_once) < 1:
        return "Rates are above 0; seeds and processes at once are at least 1."
    if tokens < 8 * TOKENS_PER_STEP:
        return f"--tokens {tokens} are fewer than 8 steps of {TOKENS_PER_STEP}."
    return why_unwritable(options.json) if options.json is not None else None


if __name__ == "__main__":
    sys.exit(main())
