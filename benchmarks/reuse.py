"""What is lost by measuring less when domains change, on synthetic laws whose optimum is known.

    python benchmarks/reuse.py [--quick] [--domains N ...] [--seeds N] [--json FILE]

True losses are log-linear in the mixture (arXiv 2602.12237), five metrics over so many domains, steep as fitted ones are, with noise of .03 of their spread. An
earlier search of 3 (m + 1) runs has an answer; then domains are added, removed, split or revised, and `mixopt.reuse` plans. Every plan is carried out: its design
is run, the surrogate is fitted, and its answer scored by the true law. Each is also told with a warm start from the earlier runs that are still valid (as the
files that `mixopt reuse` writes have it); the plan "warm start" has it by itself, and keeps no shares.

regret: objective of the answer minus that of the true optimum, in standard deviations of a seed; median and quartiles over seeds. proxies: trained for it.
risk: what the plan said, median. within: share of the seeds in which full recompute beats the plan by at most its risk and one standard deviation of a seed.
recommended: share of the seeds in which the plan was the recommended one.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
from rows_file import why_unwritable, write_rows

from mixopt.domains import Domain, DomainSet
from mixopt.mixture import FloatArray
from mixopt.objective import fit_objective
from mixopt.reuse.changes import Changes, compare
from mixopt.reuse.law import fit_objective_law
from mixopt.reuse.plans import Plan, Risks, make_plans
from mixopt.reuse.virtual import with_kept
from mixopt.space import MixtureSpace
from mixopt.strategies.design import design_sequence
from mixopt.swarm import Swarm
from mixopt.trial import Source

METRICS = tuple(f"m{index}" for index in range(5))
SOURCE = Source("trained", "nano", 1_000_000)
NOISE, SEEDS_PER_MIXTURE, PULL, BUDGET = 0.03, 3, 0.05, 1e9
TITLES = {"full": "full reuse", "partial": "partial reuse", "warm": "warm start", "none": "full recompute"}
UPDATES = ("add 1", "add 3", "remove 1", "split 1", "revise 1", "revise most")


@dataclass(frozen=True)
class Row:
    update: str
    domains: int
    plan: str
    proxies: float
    regret_median: float
    regret_q25: float
    regret_q75: float
    risk: float | None
    within: float | None
    recommended: float | None
    seeds: int
    cpu_seconds: float


@dataclass(frozen=True)
class Truth:
    """Losses 1 + exp(A q) by metric; `columns`: domain -> column of A, shape (metrics,)."""

    columns: dict[str, FloatArray]

    def losses(self, domains: Sequence[str], q_ND: FloatArray) -> FloatArray:
        return np.asarray(1 + np.exp(q_ND @ np.stack([self.columns[name] for name in domains])))


@dataclass(frozen=True)
class Update:
    """Domains before and after, and what was split."""

    truth: Truth
    old: DomainSet
    new: DomainSet
    changes: Changes


def domain_set(contents: dict[str, str], tokens: dict[str, float]) -> DomainSet:
    return DomainSet(tuple(Domain(name, content, 10**7, tokens[name]) for name, content in contents.items()), BUDGET)


def make_update(kind: str, count: int, seed: int) -> Update:
    rng = np.random.default_rng([seed, 0xBE5E, count])

    def column() -> FloatArray:
        # A level that lowers losses a little, and one or two metrics that a domain is good for.
        good = rng.random(len(METRICS)) < 0.35
        return np.asarray(-0.3 * rng.random(len(METRICS)) - good * rng.gamma(2.0, 1.2, len(METRICS)))

    old = {f"d{index:02d}": f"c{index}" for index in range(count)}
    columns = {content: column() for content in old.values()}
    tokens = {name: float(BUDGET * rng.lognormal(-0.5, 0.9)) for name in old}
    new, splits = dict(old), {}
    if kind.startswith("add"):
        new |= {f"n{index}": f"new{index}" for index in range(int(kind.split()[1]))}
    elif kind == "remove 1":
        del new["d01"]
    elif kind == "split 1":
        del new["d01"]
        new |= {"d01a": "parta", "d01b": "partb"}
        splits = {"d01": ("d01a", "d01b")}
    else:
        changed = ["d01"] if kind == "revise 1" else list(old)[: int(0.75 * count)]
        new |= {name: f"revised-{name}" for name in changed}
    for name, content in new.items():
        tokens.setdefault(name, float(BUDGET * rng.lognormal(-0.5, 0.9)))
        if content.startswith("revised"):
            columns[content] = 0.6 * columns[old[name]] + 0.4 * column()
        elif content.startswith("part"):
            columns[content] = columns["c1"] + 0.6 * (column() - columns["c1"])
        else:
            columns.setdefault(content, column())
    truth = Truth({**{name: columns[content] for name, content in old.items()}, **{f"{n}*": columns[c] for n, c in new.items()}})
    # Names with a star are those of the new domains, for a revised one has the old name.
    return Update(truth, domain_set(old, tokens), domain_set(new, tokens), compare(old, new, splits))


@dataclass(frozen=True)
class Runs:
    """Mixtures (n, domains) and their measured losses (n, metrics)."""

    q_ND: FloatArray
    losses_NK: FloatArray


def run(truth: Truth, domains: DomainSet, names: Sequence[str], count: int, noise_K: FloatArray, rng: np.random.Generator) -> Runs:
    """The first `count` points of the design, measured."""
    points = list(islice(design_sequence(domains, SEEDS_PER_MIXTURE, int(rng.integers(2**20))), count))
    q_ND = np.stack([point.mixture.array(domains.names) for point in points])
    return Runs(q_ND, truth.losses(names, q_ND) + noise_K * rng.normal(size=(count, len(METRICS))))


def answer(domains: DomainSet, plain: DomainSet, runs: Runs) -> tuple[FloatArray, Swarm]:
    """The optimum of a log-linear law fitted to the runs, over the mixtures that `domains` allow; `plain` are without a kept unit."""
    swarm = Swarm.from_arrays(plain.names, runs.q_ND[:, None], METRICS, runs.losses_NK, SOURCE)
    objective = fit_objective("noise_scaled", dict.fromkeys(METRICS, 1.0), swarm, plain.natural())
    values = objective.difference(runs.losses_NK[:, [METRICS.index(m) for m in objective.metrics]], np.array(objective.natural_losses))
    law = fit_objective_law(swarm, objective, plain.natural().as_dict(), PULL * float(values.std()), folds=0, resamples=0).law
    space = MixtureSpace.from_domains(domains)
    order = [law.domains.index(name) for name in domains.names]
    ordered = replace(law, domains=domains.names, slopes_KD=law.slopes_KD[:, order], natural_D=law.natural_D[order])
    return ordered.optimum(space, plain.natural().array()), swarm


class Scorer:
    """The true objective of mixtures of the new domains, in standard deviations of a seed, above its optimum."""

    def __init__(self, update: Update, noise_K: FloatArray) -> None:
        from mixopt.reuse.law import ObjectiveLaw

        names = [f"{name}*" for name in update.new.names]
        slopes = np.stack([update.truth.columns[name] for name in names], axis=1)
        factors = 1 / noise_K / len(METRICS)
        self.law = ObjectiveLaw(update.new.names, slopes, factors, np.zeros(len(METRICS)), update.new.natural().array())
        best = self.law.optimum(MixtureSpace.from_domains(update.new), update.new.natural().array())
        self.least = float(self.law.value(best[None])[0])

    def regret(self, q_D: FloatArray) -> float:
        return float(self.law.value(q_D[None])[0]) - self.least


@dataclass(frozen=True)
class Result:
    plan: str
    proxies: int
    regret: float
    risk: float | None = None
    recommended: bool | None = None


def one_seed(kind: str, count: int, seed: int) -> list[Result]:
    """All arms of one update."""
    update = make_update(kind, count, seed)
    rng = np.random.default_rng([seed, 0xA5])
    old, new = update.old, update.new
    wide = MixtureSpace.from_domains(old).sample(256, np.random.default_rng(0))
    noise_K = NOISE * update.truth.losses(old.names, wide).std(axis=0)
    before = run(update.truth, old, old.names, 3 * (count + 1), noise_K, rng)
    kept_D, swarm = answer(old, old, before)
    objective = fit_objective("noise_scaled", dict.fromkeys(METRICS, 1.0), swarm, old.natural())
    values = objective.difference(swarm.values(objective.metrics), np.array(objective.natural_losses))
    fitted = fit_objective_law(swarm, objective, old.natural().as_dict(), PULL * float(values.std()), folds=0)
    indistinct = float(np.sqrt(2 / SEEDS_PER_MIXTURE)) / float(np.sqrt(len(METRICS)))
    risks = Risks.of(fitted.law, old, update.changes, new, fitted.resampled, seed)
    scorer, earlier = Scorer(update, noise_K), still_valid(update, before)
    kept = dict(zip(old.names, kept_D.tolist(), strict=True))
    plans, recommended, _ = make_plans(update.changes, new, kept, risks, indistinct, len(earlier.q_ND))
    names = [f"{name}*" for name in new.names]
    results = []
    for plan in plans:
        if plan.problem:
            continue
        for warm in (True,) if plan.name == "warm" else (False, True):
            q_D, proxies = carried_out(plan, update, names, noise_K, earlier if warm else None, seed)
            label = TITLES[plan.name] + (", warm" if warm and plan.name != "warm" else "")
            results.append(Result(label, proxies, scorer.regret(q_D), plan.risk, plan.name == recommended))
    return results


def still_valid(update: Update, before: Runs) -> Runs:
    """The earlier runs over the new domains, without those that give weight to text that is gone."""
    old, new = update.old.names, update.new.names
    gone = [old.index(name) for name in update.changes.removed]
    rows = before.q_ND[:, gone].sum(axis=1) == 0
    q_ND = np.zeros((len(before.q_ND), len(new)))
    for now, was in update.changes.kept.items():
        q_ND[:, new.index(now)] = before.q_ND[:, old.index(was)]
    return Runs(q_ND[rows], before.losses_NK[rows])


def carried_out(
    plan: Plan, update: Update, names: Sequence[str], noise_K: FloatArray, earlier: Runs | None, seed: int
) -> tuple[FloatArray, int]:
    """The answer of a plan and the proxies that it trained."""
    new = update.new
    if not plan.proxies:
        return np.array([plan.kept[name] for name in new.names]), 0
    domains = with_kept(new, plan.kept) if plan.kept else new
    runs = run(update.truth, domains, names, plan.proxies, noise_K, np.random.default_rng([seed, 0xC0]))
    if earlier is not None:
        runs = Runs(np.concatenate([runs.q_ND, earlier.q_ND]), np.concatenate([runs.losses_NK, earlier.losses_NK]))
    return answer(domains, new, runs)[0], plan.proxies


def rows_of(kind: str, count: int, seeds: int) -> list[Row]:
    started = time.process_time()
    found: dict[str, list[tuple[int, Result]]] = {}
    for seed in range(seeds):
        for result in one_seed(kind, count, seed):
            found.setdefault(result.plan, []).append((seed, result))
    spent = time.process_time() - started
    recompute = {seed: result.regret for seed, result in found["full recompute"]}
    rows = []
    for plan, pairs in found.items():
        regrets = [result.regret for _, result in pairs]
        told = [(result.regret - recompute[seed], result.risk) for seed, result in pairs if result.risk is not None]
        chosen = [result.recommended for _, result in pairs if result.recommended is not None]
        low, middle, high = np.percentile(regrets, [25, 50, 75]).tolist()
        rows.append(
            Row(
                kind,
                count,
                plan,
                float(np.mean([result.proxies for _, result in pairs])),
                round(middle, 4),
                round(low, 4),
                round(high, 4),
                round(float(np.median([risk for _, risk in told])), 4) if told else None,
                round(float(np.mean([gap <= risk + 1.0 for gap, risk in told])), 3) if told else None,
                round(float(np.mean(chosen)), 3) if chosen else None,
                len(pairs),
                round(spent, 1),
            )
        )
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="8 domains, 2 seeds, two updates")
    parser.add_argument("--domains", type=int, nargs="+", default=[8, 16], metavar="N", help="numbers of domains")
    parser.add_argument("--seeds", type=int, default=8, metavar="N", help="laws of each")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there")
    options = parser.parse_args(arguments)
    if options.json is not None and (problem := why_unwritable(options.json)) is not None:
        print(problem, file=sys.stderr)
        return 2
    sizes, seeds, updates = ((8,), 2, ("add 1", "remove 1")) if options.quick else (tuple(options.domains), options.seeds, UPDATES)
    rows: list[Row] = []
    print(f"{'update':12} {'m':>3} {'plan':22} {'proxies':>7} {'regret':>8} {'q25':>8} {'q75':>8} {'risk':>8} {'within':>6} {'taken':>6}")
    for count in sizes:
        for kind in updates:
            fresh = rows_of(kind, count, seeds)
            rows += fresh
            for row in fresh:
                shown = [f"{value:8.3f}" if value is not None else " " * 8 for value in (row.risk, row.within, row.recommended)]
                print(
                    f"{row.update:12} {row.domains:3d} {row.plan:22} {row.proxies:7.1f} {row.regret_median:8.3f} {row.regret_q25:8.3f} "
                    f"{row.regret_q75:8.3f} {shown[0]} {shown[1][2:]} {shown[2][2:]}",
                    flush=True,
                )
            if options.json is not None:
                write_rows(options.json, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
