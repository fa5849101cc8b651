"""How many trials each strategy needs for how good a mixture: on synthetic laws whose optimum is known, and on the tables of real runs.

    python benchmarks/search.py [--quick] [--json FILE] [--output DIR] [--strategies NAME ...] [--problems NAME ...] [--seeds N] [--jobs N]

Problems: `law 5`, `law 17`, `law 50` (three targets, interactions, epoch caps, noise, and a cheaper source that ranks a little differently), `regmix` and
`regmix 60m` (real runs, see benchmarks/searching/problems.py). Each strategy is asked for four trials at a time (those that plan beforehand, for all), and
judged at several costs by the mixture that it would propose there (`pareto` by the one for equal weights). Everything random follows from the seed, which draws the law, too.

cost: in trials of the source where the answer is wanted. regret: how much worse the proposed mixture is than the best feasible one, in standard deviations of
the seed noise of one trial (laws), or of the objective over the table (RegMix); inf: it could not propose yet. ask_seconds: median per trial asked for, of one
thread. `regression, random`: the regression over mixtures drawn at random; `random`: the best of such mixtures by its own run.

The second table says which share of the cost of `regression`, of the latter two and of `bayes` a strategy needs for the least median regret that they have, over the
same seeds.

Resumable: what was played lies in --output. --quick: the smaller laws, two seeds, few trials; it shows that everything works, and its numbers mean little.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from rows_file import why_unwritable, write_rows
from searching.play import Entrant, Score, play, problem_of

from mixopt.strategies import strategy_names

COSTS = {
    "law 5": (8, 12, 16, 24, 32),
    "law 17": (8, 12, 16, 24, 32, 48, 64),
    "law 50": (24, 48, 96),
    "regmix": (24, 48, 96),
    "regmix 60m": (8, 16, 32),
}
CONTROL_COSTS = {"law 17": (8, 12, 16, 24, 32, 48, 64, 96, 160, 320, 640)}
"""Of what asks nothing of a surrogate, so that a tenth of it can be seen."""
QUICK_COSTS = {"law 5": (8, 12), "law 17": (12, 20)}
SEEDS, DEAR_SEEDS, QUICK_SEEDS = 20, 3, 2
LARGE = ("law 50", "regmix", "regmix 60m")
"""Problems whose searches cost minutes where a process per metric is fitted again and again."""
ENTRANTS = (
    Entrant("random", "random", measured=True),
    Entrant("grid", "grid", measured=True, replans=True),
    Entrant("regression", "regression"),
    Entrant("regression, random", "random"),
    Entrant("regression, auto", "regression", surrogate="auto", dear=True),
    Entrant("doe", "doe", replans=True),
    Entrant("climb", "climb", replans=True),
    Entrant("bayes", "bayes"),
    Entrant("bayes, 2 sources", "bayes", sources=2),
    Entrant("scaling", "scaling", sources=2, replans=True, dear=True),
    Entrant("sft", "sft", replans=True),
    Entrant("pareto", "pareto", dear=True),
    Entrant("optuna TPE", "optuna", {"sampler": "tpe"}),
    Entrant("optuna GP", "optuna", {"sampler": "gp"}, dear=True),
    Entrant("optuna CMA-ES", "optuna", {"sampler": "cmaes"}),
    Entrant("optuna NSGA-II", "optuna", {"sampler": "nsga2"}),
)

BASELINES = ("regression", "regression, random", "random", "bayes")
"""Whose least median regret others are to reach at less cost."""


@dataclass(frozen=True)
class Row:
    strategy: str
    problem: str
    domains: int
    cost: float
    regret_median: float
    regret_q25: float
    regret_q75: float
    seeds: int
    ask_seconds: float
    loses_to_random: bool


@dataclass(frozen=True)
class Game:
    entrant: Entrant
    problem: str
    seed: int
    costs: tuple[int, ...]

    @property
    def key(self) -> str:
        return json.dumps([self.entrant.name, self.problem, self.seed, self.costs])


def games(entrants: Sequence[Entrant], problems: Sequence[str], seeds: int | None, quick: bool) -> Iterator[Game]:
    for problem in problems:
        for entrant in entrants:
            if (problem == "regmix" and entrant.sources == 2) or (problem.startswith("regmix") and entrant.strategy in ("sft", "pareto")):
                continue  # one source has no second; no fine-tuning, and 13 objectives are no front
            if entrant.options.get("sampler") == "gp" and problem in LARGE:
                continue  # torch fits for minutes per trial asked for
            costs = QUICK_COSTS[problem] if quick else CONTROL_COSTS.get(problem, COSTS[problem]) if entrant.measured else COSTS[problem]
            is_dear = entrant.dear or (problem in LARGE and entrant.strategy == "bayes")
            count = seeds or (QUICK_SEEDS if quick else DEAR_SEEDS if is_dear else SEEDS)
            yield from (Game(entrant, problem, seed, costs) for seed in range(count))


def play_game(game: Game, data: Path | None) -> tuple[Game, list[Score], float]:
    begun = time.process_time()
    return game, play(problem_of(game.problem, game.seed, data), game.entrant, game.costs, game.seed), time.process_time() - begun


def played(folder: Path) -> dict[str, list[Score]]:
    """What lies in the output folder; a line that a kill has cut off is played again."""
    found: dict[str, list[Score]] = {}
    path = folder / "games.jsonl"
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            body = json.loads(line)
        except ValueError:
            continue
        found[body["key"]] = [Score(**score) for score in body["scores"]]
    return found


def rows_of(scores: Sequence[Score], order: Sequence[str]) -> list[Row]:
    grouped: dict[tuple[str, str, int, float], list[Score]] = {}
    for score in scores:
        grouped.setdefault((score.problem, score.entrant, score.domains, score.cost), []).append(score)
    rows = []
    for (problem, name, domains, cost), group in sorted(
        grouped.items(), key=lambda item: (item[0][0], order.index(item[0][1]), item[0][3])
    ):
        regrets = np.array([score.regret for score in group])
        quartiles = [float(np.quantile(regrets, share, method="nearest")) for share in (0.25, 0.5, 0.75)]
        seeds = {score.seed for score in group}
        blind = [score.regret for score in grouped.get((problem, "random", domains, cost), ()) if score.seed in seeds]
        rows.append(
            Row(
                name,
                problem,
                domains,
                cost,
                quartiles[1],
                quartiles[0],
                quartiles[2],
                len(group),
                float(np.median([s.ask_seconds for s in group])),
                bool(blind) and quartiles[1] > float(np.quantile(blind, 0.5, method="nearest")),
            )
        )
    return rows


def cost_for(rows: Sequence[Row], regret: float) -> float:
    """The least cost at which a strategy's median regret is at most `regret`, interpolated in the logarithms; infinite if it has none."""
    before: Row | None = None
    for row in sorted(rows, key=lambda one: one.cost):
        if row.regret_median <= regret:
            if before is None or not np.isfinite(before.regret_median) or before.regret_median <= row.regret_median:
                return row.cost
            if row.regret_median <= 0:
                return row.cost
            share = np.log(before.regret_median / regret) / np.log(before.regret_median / row.regret_median)
            return float(before.cost * (row.cost / before.cost) ** share)
        before = row
    return float("inf")


def shares(scores: Sequence[Score], baseline: str) -> dict[tuple[str, str], float]:
    """(problem, strategy) -> cost for the least median regret that `baseline` has, as a share of what the baseline needs for it.

    Over the seeds that both have played: they draw the law, and medians over other laws do not compare.
    """
    found = {}
    by_name: dict[tuple[str, str], list[Score]] = {}
    for score in scores:
        by_name.setdefault((score.problem, score.entrant), []).append(score)
    for (problem, name), own in by_name.items():
        seeds = {score.seed for score in own} & {score.seed for score in by_name.get((problem, baseline), ())}
        if seeds:
            ours, theirs = (
                rows_of([score for score in by_name[problem, who] if score.seed in seeds], [name, baseline]) for who in (name, baseline)
            )
            least = min(row.regret_median for row in theirs)
            found[(problem, name)] = cost_for(ours, least) / cost_for(theirs, least)
    return found


def show(rows: Sequence[Row], scores: Sequence[Score]) -> None:
    print(f"{'problem':<20}{'strategy':<18}{'cost':>6}{'regret':>9}{'quartiles':>17}{'seeds':>7}{'ask s':>8}")
    for row in rows:
        quartiles = f"{row.regret_q25:.2f} to {row.regret_q75:.2f}"
        print(
            f"{row.problem:<20}{row.strategy:<18}{row.cost:>6g}{row.regret_median:>9.3f}{quartiles:>17}{row.seeds:>7}{row.ask_seconds:>8.2f}"
            + ("  loses to random" if row.loses_to_random else "")
        )
    print()
    print(f"{'cost for the least median regret of':<40}" + "".join(f"{name:>20}" for name in BASELINES))
    tables = [shares(scores, baseline) for baseline in BASELINES]
    for problem, name in dict.fromkeys(pair for table in tables for pair in table):
        cells = [table.get((problem, name), float("nan")) for table in tables]
        print(f"{problem:<20}{name:<20}" + "".join(f"{'never' if np.isinf(cell) else f'{cell:.2f}':>20}" for cell in cells))


def main() -> int:
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small laws, two seeds, few trials")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows, a list of flat objects")
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="where games are kept, so that a run goes on; default: a temporary folder"
    )
    parser.add_argument("--strategies", nargs="+", metavar="NAME", help=f"of {', '.join(one.name for one in ENTRANTS)}")
    parser.add_argument("--problems", nargs="+", metavar="NAME", help=f"of {', '.join(COSTS)}")
    parser.add_argument("--seeds", type=int, metavar="N", help="for all strategies")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes, of one thread each")
    arguments = parser.parse_args()
    if arguments.json is not None and (why := why_unwritable(arguments.json)):
        parser.error(why)
    known = [one for one in ENTRANTS if one.strategy in strategy_names()]
    for flag, given, names in (
        ("--strategies", arguments.strategies, [one.name for one in known]),
        ("--problems", arguments.problems, list(COSTS)),
    ):
        if given and not set(given) <= set(names):
            parser.error(f"{flag} knows {', '.join(names)}, not {', '.join(sorted(set(given) - set(names)))}")
    shared = os.environ.get("MIXOPT_SHARED")
    data = Path(shared) / "data" / "swarms" / "regmix" if shared else None
    problems = arguments.problems or list(QUICK_COSTS if arguments.quick else COSTS)
    if data is None and any(name.startswith("regmix") for name in problems):
        print("MIXOPT_SHARED is not set, so the tables of RegMix are left out.")
        problems = [name for name in problems if not name.startswith("regmix")]
    entrants = [one for one in known if not arguments.strategies or one.name in arguments.strategies]
    folder = arguments.output or Path(tempfile.mkdtemp(prefix="mixopt-search-"))
    folder.mkdir(parents=True, exist_ok=True)
    scores = play_all(list(games(entrants, problems, arguments.seeds, arguments.quick)), data, folder, arguments.jobs)
    rows = rows_of(scores, [one.name for one in ENTRANTS])
    show(rows, scores)
    if arguments.json is not None:
        write_rows(arguments.json, rows)
    return 0


def play_all(wanted: Sequence[Game], data: Path | None, folder: Path, jobs: int) -> list[Score]:
    """Scores of all games, those in the folder included; each is kept as soon as it ends."""
    known = played(folder)
    scores = [score for game in wanted for score in known.get(game.key, ())]
    missing = [game for game in wanted if game.key not in known]
    path = folder / "games.jsonl"
    if path.exists() and not (text := path.read_text()).endswith("\n"):
        path.write_text(
            text[: text.rfind("\n") + 1]
        )  # without the line that a kill has cut off, which the next game would be written behind
    # Threads of polars and torch do not survive a fork.
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool, path.open("a") as kept:
        futures = [pool.submit(play_game, game, data) for game in missing]
        for number, future in enumerate(as_completed(futures), start=1):
            try:
                game, found, seconds = future.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)  # not played for nothing
                raise
            kept.write(json.dumps({"key": game.key, "scores": [asdict(score) for score in found]}) + "\n")
            kept.flush()
            scores += found
            print(
                f"{number} of {len(missing)}: {game.entrant.name} on {game.problem}, seed {game.seed}, {seconds:.0f} CPU-seconds",
                file=sys.stderr,
            )
    return scores


if __name__ == "__main__":
    sys.exit(main())
