"""A search that never ran, recorded as one that did: outcomes follow a power law in the weights, so figures and tables look as they will."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mixopt.domains import Domain, DomainSet
from mixopt.effects import DomainEffects, raised
from mixopt.experiment_file import parse_experiment
from mixopt.factory import TrialFactory
from mixopt.history import History
from mixopt.mixture import Mixture, Schedule
from mixopt.objective import fit_objective
from mixopt.proposal import Effect, Proposal
from mixopt.swarm import Swarm
from mixopt.trial import Failure, FailureKind, Measurement, Outcome, Source, Trial
from mixopt.verification import Verification, plan_verification, summarize

NAMES = [
    "web",
    "python",
    "docs",
    "math",
    "cpp",
    "markdown",
    "licences",
    "books",
    "patents",
    "news",
    "law",
    "chemistry",
    "wiki",
    "forums",
    "subtitles",
    "papers",
    "recipes",
    "poems",
    "email",
    "tables",
]
TARGETS = {"target/functions": 1.0, "target/questions": 1.0}
SEARCH_ID = "5ea7c4" + "0" * 14
BUDGET_TOKENS = 30e9
SOURCE, LARGER = Source("trained", "nano", 1_000_000), Source("trained", "micro", 1_500_000)


class RecordedSearch:
    """A record with a search in it, filled step by step as a search would."""

    folder: Path

    def __init__(self, history: History, domain_count: int = 6) -> None:
        self.history = history
        self.random = np.random.default_rng(7)
        sizes = 16e9 * 0.02 ** (np.arange(domain_count) / (domain_count - 1))
        names = NAMES[:domain_count]
        self.domains = DomainSet(
            tuple(Domain(n, f"{i:064x}", 2_000_000, float(s)) for i, (n, s) in enumerate(zip(names, sizes, strict=True))), BUDGET_TOKENS
        )
        recipe = {"window": 512, "learning_rate": 0.002}
        self.factory = TrialFactory(self.domains, SOURCE, recipe, "ab" * 32, "1")
        self.larger = TrialFactory(self.domains, LARGER, recipe, "ab" * 32, "1")
        self.metrics = {f"key-{name}": f"valid/{name}" for name in names} | {"key-t": "target/functions", "key-q": "target/questions"}
        self.best = np.minimum(self.random.dirichlet(np.full(domain_count, 1.2)), self.domains.epoch_limits())
        self.best /= self.best.sum()

    def begin(self) -> RecordedSearch:
        experiment = parse_experiment(
            {
                "name": "demo",
                "output": "out",
                "budget_tokens": BUDGET_TOKENS,
                "domains": [{"name": d.name, "path": f"{d.name}.jsonl", "tokens": d.target_tokens} for d in self.domains.domains],
            },
            Path("/corpus"),
        )
        self.history.add_search(SEARCH_ID, "demo", experiment.to_yaml())
        self.history.save_document(SEARCH_ID, "context", self.context())
        self.history.set_search_state(SEARCH_ID, "running")
        return self

    def context(self) -> dict[str, Any]:
        domains = self.domains
        return {
            "name": "demo",
            "search_id": SEARCH_ID,
            "domains": [
                {
                    "name": d.name,
                    "group": "",
                    "content_hash": d.content_hash,
                    "target_tokens": d.target_tokens,
                    "prepared_tokens": d.prepared_tokens,
                    "prepared_documents": 2000,
                    "max_epochs": d.max_epochs,
                    "bounds": list(d.bounds),
                    "held_out": {"content_hash": f"{i:064x}", "documents": 40, "tokens": 40_000, "bytes": 160_000},
                }
                for i, d in enumerate(domains.domains, start=100)
            ],
            "targets": [
                {"name": name, "kind": "text", "content_hash": f"{i:064x}", "documents": 30, "tokens": 30_000, "bytes": 90_000}
                for i, name in enumerate(("functions", "questions"), start=200)
            ],
            "budget_tokens": BUDGET_TOKENS,
            "natural": domains.natural().as_dict(),
            "uniform": domains.uniform().as_dict(),
            "unimax": domains.unimax().as_dict(),
            "upper": dict(zip(domains.names, np.minimum(domains.epoch_limits(), 1).tolist(), strict=True)),
            "metrics": self.metrics,
            "sources": {"search": ["trained", "nano", 1_000_000], "verification": ["trained", "micro", 1_500_000]},
            "tokenizer": {"hash": "ab" * 32, "path": "tokenizer.json", "vocab_size": 8192},
            "recipe": dict(self.factory.recipe),
            "strategy": "regression",
            "surrogate": "gaussian_process",
            "seed": 0,
            "versions": {"mixopt": "0.1.0", "commit": "0123456789ab", "engine": "1", "torch": "2.13.0"},
            "experiment_hash": "e" * 20,
            "objective": {
                "kind": "noise_scaled",
                "over": "targets",
                "pull": 0.05,
                "weights": {"target/functions": 3.0, "target/questions": 1.0},
            },
            "unique": {n: [t.tokens, t.note] for n, t in domains.unique_tokens(1_000_000, 512).items()},
        }

    def distance(self, weights: np.ndarray) -> float:
        return float(np.sum((np.sqrt(weights) - np.sqrt(self.best)) ** 2))

    def ask(self, count: int) -> list[Trial]:
        """Natural, uniform and UniMax three times each, then a wide Dirichlet design."""
        natural, names = self.domains.natural(), self.domains.names
        anchors = [("natural", natural), ("uniform", self.domains.uniform()), ("unimax", self.domains.unimax())]
        plan = [(label, mixture, seed) for seed in range(3) for label, mixture in anchors]
        while len(plan) < count:
            weights = np.round(self.random.dirichlet(natural.array() * 4 + 0.3), 3)
            plan.append(("design", Mixture.from_array(names, weights / weights.sum()), len(plan)))
        trials = [self.factory.make(Schedule.constant(mixture), seed, label) for label, mixture, seed in plan[:count]]
        self.history.add_trials(SEARCH_ID, trials, "search")
        return trials

    def outcome(self, trial: Trial) -> Outcome:
        weights = trial.schedule.average().array()
        random = np.random.default_rng(int(trial.trial_id[:12], 16))
        measurements = []
        for index, key in enumerate(self.metrics):
            gap = self.distance(weights) if index >= len(weights) else 1 / (0.02 + float(weights[index])) ** 0.3 / 5
            end = 1.1 + 0.5 * gap + float(random.normal(0, 0.01))
            tokens = trial.source.tokens
            for share in (0.25, 0.5, 1.0):
                bits = end * share**-0.15
                measurements.append(Measurement(key, int(tokens * share), bits * 2.9, bits))
        realized = {d.content_hash: (float(w),) for d, w in zip(trial.domains, weights, strict=True) if w > 0}
        diagnostics = {"gradient_norm": 0.7, "balance": self.balance(np.random.default_rng(trial.seed))}
        return Outcome(trial.trial_id, realized, tuple(measurements), trial.source.tokens, 6e12, 21.5, diagnostics)

    def balance(self, random: np.random.Generator, layers: int = 2, experts: int = 8) -> dict[str, Any]:
        """What a trial says of its experts: even enough over training, each domain with favourites of its own."""

        def rows(total: int, evenness: float) -> list[list[int]]:
            return [random.multinomial(total, random.dirichlet(np.full(experts, evenness))).tolist() for _ in range(layers)]

        return {
            "experts_per_token": 2,
            "last_step_rows": rows(2048, 50),
            "recent_rows": rows(200_000, 50),
            "recent_steps": 98,
            "entropy": random.uniform(0.5, 0.9, layers).tolist(),
            "rows_by_set": {key: rows(10_000, 1) for key in self.metrics},
        }

    def complete(self, trials: list[Trial]) -> None:
        self.history.mark_running([trial.trial_id for trial in trials])
        for trial in trials:
            self.history.complete(self.outcome(trial))

    def diverge(self, trial: Trial) -> None:
        self.history.mark_running([trial.trial_id])
        self.history.fail(trial.trial_id, Failure(FailureKind.DIVERGED, "loss is not finite at step 12", 12_288), 3)

    def propose(self, trials: list[Trial]) -> Proposal:
        names, natural = self.domains.names, self.domains.natural()
        limits = self.domains.epoch_limits()
        weights = 0.8 * self.best + 0.2 * natural.array()
        for _ in range(20):  # onto the caps: what is cut off goes to the rest
            weights = np.minimum(weights / weights.sum(), limits)
        mixture = Mixture.from_array(names, weights / weights.sum())
        level = self.distance(natural.array())

        def objective(values: np.ndarray) -> float:
            return 25 * (self.distance(values) - level)

        predicted = []
        for trial in trials:
            truth = objective(trial.schedule.average().array())
            mean, measured = truth + self.random.normal(0, 0.7), truth + self.random.normal(0, 1)
            predicted.append({"trial_id": trial.trial_id, "label": trial.label, "measured": measured, "mean": mean, "std": 1.1})
        best = min(predicted, key=lambda pair: pair["measured"])
        best_trial = next(trial for trial in trials if trial.trial_id == best["trial_id"])
        value = objective(mixture.array())
        effects = {name: Effect(-0.01 * i, -0.01 * i - 0.02, -0.01 * i + 0.02) for i, name in enumerate(self.metrics.values())}
        proposal = Proposal(
            schedule=Schedule.constant(mixture),
            objective=Effect(value, value - 1.4, value + 1.4),
            effects=effects,
            near_optimal={n: (max(0.0, w * 0.75), min(w * 1.3, c)) for n, w, c in zip(names, mixture.weights, limits, strict=True)},
            epochs=self.domains.epochs(mixture),
            binding=(f"{names[-1]}: 4 epochs allow at most {limits[-1]:.3f}",),
            screened={"valid/web": "its spread over mixtures is within seed noise"},
            best_measured={
                "trial_id": best["trial_id"],
                "label": "design",
                "weights": best_trial.schedule.average().as_dict(),
                "objective": best["measured"],
            },
            evidence={
                "trials": len(trials),
                "surrogate": "gaussian_process",
                "pull": 0.05,
                "objective_over_trials": [{key: pair[key] for key in ("trial_id", "label", "measured")} for pair in predicted],
                "spearman": {"objective": 0.91, "target/functions": 0.88},
                "noise_std": dict.fromkeys(self.metrics.values(), 0.01),
                "baselines": {
                    "natural": {"mean": 0.0, "low": -0.5, "high": 0.5, "measured": 0.1},
                    "uniform": {"mean": objective(self.domains.uniform().array()), "low": -2.0, "high": 1.0, "measured": None},
                },
                "predicted": predicted,
                "objective_noise_std": 0.7,
                "objective": fit_objective("noise_scaled", TARGETS, self.swarm(), natural).to_json(),
                "domain_effects": self.effects(objective).to_json(),
                "front": self.front(predicted, mixture, value),
            },
        )
        self.history.save_document(SEARCH_ID, "proposal", proposal.to_json())
        return proposal

    def front(self, predicted: list[dict[str, Any]], mixture: Mixture, value: float) -> dict[str, Any]:
        """As a search with two objectives has it."""
        measured = [
            {
                "trial_id": pair["trial_id"],
                "label": pair["label"],
                "values": [pair["measured"], 3 - pair["measured"]],
                "feasible": number % 3 > 0,
                "undominated": number % 2 > 0,
            }
            for number, pair in enumerate(predicted)
        ]
        along = [
            {"weights": mixture.as_dict(), "mean": [value + step, value - step], "std": [0.4, 0.5]} for step in (-1.0, -0.3, 0.0, 0.4, 1.2)
        ]
        return {
            "objectives": ["functions", "prose"],
            "unit": "seed noises",
            "preferences": None,
            "reference": [1.0, 1.0],
            "proposal": [value, value],
            "hypervolume": 2.0,
            "predicted": along,
            "measured": measured,
        }

    def swarm(self) -> Swarm:
        return self.history.swarm(SEARCH_ID, self.domains.names, self.metrics)

    def effects(self, objective: Callable[[np.ndarray], float]) -> DomainEffects:
        """Of one point of each domain on the objective; on every metric a thousandth of it, give or take as much in every third column."""
        natural, metrics = self.domains.natural().array(), (*self.metrics.values(), "objective")
        gains = [objective(raised(natural, index)) - objective(natural) for index in range(len(natural))]
        mean = [[gain / (1 if metric == "objective" else 1000) for metric in metrics] for gain in gains]
        ends = [
            [
                (value - 1.5 * abs(value), value + 1.5 * abs(value)) if column % 3 == 0 else (value, value)
                for column, value in enumerate(row)
            ]
            for row in mean
        ]
        low, high = (tuple(tuple(pair[end] for pair in row) for row in ends) for end in (0, 1))
        return DomainEffects("natural", 0.01, self.domains.names, metrics, tuple(map(tuple, mean)), low, high)

    def verify(self, proposal: Proposal, seeds: int = 3) -> Verification:
        """All arms at the larger source; the last seed of UniMax diverges."""
        domains = self.domains
        plan = plan_verification(proposal, domains.natural(), domains.uniform(), domains.unimax(), self.larger.make, seeds)
        self.history.add_trials(SEARCH_ID, plan, "verification")
        self.complete(plan[:-1])
        self.diverge(plan[-1])
        objective = fit_objective("noise_scaled", TARGETS, self.history.swarm(SEARCH_ID, domains.names, self.metrics), domains.natural())
        verification = summarize(self.history.swarm(SEARCH_ID, domains.names, self.metrics, "verification"), plan, objective)
        self.history.save_document(SEARCH_ID, "verification", verification.to_json())
        return verification

    def finish(self, count: int = 24, seeds: int = 3) -> RecordedSearch:
        """The whole of a search: one trial diverges, the others complete, then proposal and verification."""
        trials = self.begin().ask(count)
        self.complete(trials[:-1])
        self.diverge(trials[-1])
        self.verify(self.propose(trials[:-1]), seeds)
        self.history.set_search_state(SEARCH_ID, "finished")
        return self


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., RecordedSearch]:
    """Makes an empty record with the search's domains: `recorded(domain_count)`."""

    def make(domain_count: int = 6) -> RecordedSearch:
        folder = tmp_path_factory.mktemp("record")
        search = RecordedSearch(History.open(folder / "record.sqlite"), domain_count)
        search.folder = folder
        return search

    return make
