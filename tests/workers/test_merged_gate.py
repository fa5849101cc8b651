"""The gate before a search: what is trained and averaged for it, what follows from its verdict, and that none of it is done twice."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from mixopt.corpus.manifest import DomainFiles, Manifest, TargetFile, TokenFile
from mixopt.experiment_file import parse_experiment
from mixopt.history import History
from mixopt.progress import Silent
from mixopt.runner import Capacity, Completed, Evaluation, Failed, Started, TrialEvent
from mixopt.trial import AVERAGED, Failure, FailureKind, Measurement, Outcome, Trial
from workers.compose import Search, compose
from workers.convert import used_domains
from workers.merged_gate import gate_mixtures, judged, known_verdict
from workers.offers import LEFT_TO_USE

TOKENS = {"web": "6B", "code": "3B", "math": "1B", "law": "2B"}
BEST = {"web": 0.2, "code": 0.3, "math": 0.2, "law": 0.3}


def composed(folder: Path, **changes: Any) -> Search:
    def file(name: str) -> TokenFile:
        return TokenFile(f"{name}.tokens", f"content-{name}", 1_000_000, 4_000_000, 100)

    raw: dict[str, Any] = {
        "name": "gated",
        "output": str(folder),
        "budget_tokens": "4B",
        "domains": [{"name": name, "path": f"{name}.jsonl", "tokens": tokens} for name, tokens in TOKENS.items()],
        "proxy": {
            "tokens": 204_800,
            "window": 64,
            "tokens_per_step": 1024,
            "beginning": {"kind": "continued", "base": {"tokens": 819_200}},
        },
        "components": {"general": 0.5, "tokens": 204_800},
        "search": {"strategy": "bayes", "evaluators": ["merged", "ensemble"], "trials": 48},
        "verification": {"enabled": False},
    }
    for section, change in changes.items():
        raw[section] = {**raw.get(section, {}), **change}
    parts = {name: DomainFiles(file(f"{name}.train"), file(f"{name}.valid")) for name in TOKENS}
    manifest = Manifest(folder / "tokens", "tokenizer.json", "hash", 4096, parts, {"t": TargetFile("completion", file("target-t"))})
    return compose(parse_experiment(raw, folder), manifest)


@dataclass
class LawRunner:
    """Ends every trial at once, with losses by a law; of averages by the law, or by chance where `good` does not hold for them.

    Attributes:
        good: evaluator, general share by weights of a merge, horizon, frozen -> whether averages rank as the law does.
    """

    evaluations: Mapping[str, Sequence[Evaluation]]
    good: Any
    fails: Any = None
    ended: list[Trial] = field(default_factory=list)
    _queue: list[Trial] = field(default_factory=list)

    def capacity(self) -> Capacity:
        return Capacity(1, 4)

    def submit(self, trials: Sequence[Trial]) -> None:
        self._queue.extend(trials)

    def events(self) -> Iterator[TrialEvent]:
        while self._queue:
            trial = self._queue.pop(0)
            self.ended.append(trial)
            yield Started(trial.trial_id)
            if self.fails is not None and self.fails(trial):
                yield Failed(trial.trial_id, Failure(FailureKind.DATA, "made to fail"))
                continue
            yield Completed(trial.trial_id, self._outcome(trial))

    def cancel(self, trial_ids: Collection[str]) -> None:
        return None

    def close(self) -> None:
        return None

    def _outcome(self, trial: Trial) -> Outcome:
        weights = trial.schedule.average().as_dict()
        averaged = trial.source.evaluator != "trained"
        measured = []
        for place, one in enumerate(self.evaluations[trial.source.key]):
            law = sum((place % 3 + 1) * abs(weights[name] - best) for name, best in BEST.items())
            rng = random.Random(f"{trial.trial_id}{one.key}")
            if averaged and not self.good(trial):
                law = rng.random() * 3
            noise = 0.0 if averaged else rng.gauss(0, 0.01)
            measured.append(Measurement(one.key, trial.source.tokens, 1 + law + noise, 1 + law + noise))
        merge = {AVERAGED: {"agreement_with_base": 0.9}} if averaged else {}
        return Outcome(trial.trial_id, used_domains(trial), tuple(measured), trial.source.tokens, 1e9, 1.0, merge)


@pytest.fixture(autouse=True)
def _weights_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is trained here: weights are taken to be in place, and components near their base."""
    monkeypatch.setattr("workers.components.forget_results_without_weights", lambda store, trials: [])
    monkeypatch.setattr(
        "workers.merged_gate.displacements", lambda family, store: {name: {"total": 0.08, "by_group": {}} for name in family.components}
    )


def gated(search: Search, runner: LawRunner) -> tuple[Search, dict[str, Any]]:
    search.store.mkdir(parents=True, exist_ok=True)
    with History.open(search.store / "record.sqlite") as history:
        history.add_search(search.search_id, "gated", "")
        found = judged(search, history, runner, Silent(), (), None)
        body = history.document(search.search_id, "gate")
    assert body is not None
    return found, body


def evaluators(search: Search) -> list[str]:
    return [offer.source.evaluator for offer in search.strategy.assignment.offers]


def test_good_averages_are_trusted_and_the_gates_trials_are_the_searchs_own(tmp_path: Path) -> None:
    search = composed(tmp_path)
    runner = LawRunner(search.evaluations, lambda trial: True)
    found, body = gated(search, runner)
    assert evaluators(found) == ["ensemble", "merged", "trained"]
    assert body["trusted"] == ["ensemble", "merged"]
    assert search.components is not None
    assert found.strategy.assignment.before == pytest.approx(search.components.flops(search.components.making))
    with History.open(search.store / "record.sqlite") as history:
        stages = Counter((record.stage, record.trial.source.evaluator) for record in history.trials(search.search_id))
    assert stages["components", "trained"] == 4
    assert stages["search", "trained"] == search.experiment.components.gate + 2
    assert stages["search", "merged"] >= 8
    (attempt,) = body["attempts"]
    assert attempt["remedy"] is None
    assert {verdict["evaluator"] for verdict in attempt["verdicts"]} == {"merged", "ensemble"}
    assert all(sentence for sentences in attempt["sentences"].values() for sentence in sentences)


def test_the_mixtures_of_the_gate_are_ones_that_all_evaluators_and_the_target_run_can_have(tmp_path: Path) -> None:
    search = composed(tmp_path)
    assert search.family is not None
    mixtures = gate_mixtures(search)
    assert len(mixtures) == search.experiment.components.gate - 3
    assert len({mixture.weights for mixture in mixtures}) == len(mixtures)
    for mixture in mixtures:
        assert search.family.weights(mixture).min() > -1e-9
        assert search.space.contains(mixture.array(search.space.domains)[None, :])[0]
    wide = gate_mixtures(composed(tmp_path, search={"evaluators": ["merged"]}))
    assert min(float(search.family.weights(mixture).min()) for mixture in wide) < -0.05, "linear merges extrapolate"


def test_an_evaluator_that_fails_leaves_and_the_other_stays(tmp_path: Path) -> None:
    search = composed(tmp_path)
    found, body = gated(search, LawRunner(search.evaluations, lambda trial: trial.source.evaluator == "ensemble"))
    assert evaluators(found) == ["ensemble", "trained"]
    assert body["trusted"] == ["ensemble"]
    assert len(body["attempts"]) == 1


def test_a_remedy_that_helps_is_taken_and_counted(tmp_path: Path) -> None:
    """Only components of half the tokens average well."""
    search = composed(tmp_path, search={"evaluators": ["merged"]})
    assert search.components is not None
    found, body = gated(search, LawRunner(search.evaluations, lambda trial: trial.source.tokens == 102_400))
    assert [attempt["remedy"] for attempt in body["attempts"]] == [None, "larger general share", "shorter horizon"]
    assert [bool(attempt["why"]) for attempt in body["attempts"]] == [False, True, True]
    assert evaluators(found) == ["merged", "trained"]
    assert [offer.source.tokens for offer in found.strategy.assignment.offers] == [102_400, 204_800]
    spent = [attempt["flops"] for attempt in body["attempts"]]
    assert spent[2] == pytest.approx(search.components.flops(search.components.making) / 2, rel=0.1)
    assert found.strategy.assignment.before == pytest.approx(sum(spent))
    assert found.family is not None
    assert found.family.share == 0.75, "a remedy keeps what those before it changed"
    assert found.left_out == set(body["left_out"])
    with History.open(search.store / "record.sqlite") as history:
        averages = {r.trial.trial_id: r.trial for r in history.trials(search.search_id, "search") if r.trial.source.evaluator == "merged"}
    seen = [trial for key, trial in averages.items() if key not in found.left_out]
    assert seen
    assert {trial.recipe["merge"]["base"] for trial in seen} == {found.family.base.trial_id}
    own = {trial.trial_id for trial in found.family.trials}
    assert all(set(trial.recipe["merge"]["weights"]) <= own for trial in seen), "averages of other components do not pass for these"


def test_where_nothing_helps_the_search_trains_its_proxies(tmp_path: Path) -> None:
    search = composed(tmp_path, search={"evaluators": ["merged"]})
    runner = LawRunner(search.evaluations, lambda trial: False)
    found, body = gated(search, runner)
    assert evaluators(found) == ["trained"]
    assert found.averages == ()
    assert [attempt["remedy"] for attempt in body["attempts"]] == [None, "larger general share", "shorter horizon", "frozen router"]
    assert body["ended"]
    budget = search.strategy.assignment.trials * search.strategy.assignment.offers[-1].cost
    assert body["flops"] <= 0.5 * budget


@pytest.mark.parametrize(
    ("settings", "remedies"),
    [({"remedies": []}, [None]), ({"remedies": ["frozen router"]}, [None, "frozen router"]), ({"most_share": 0.12}, [None])],
)
def test_remedies_are_those_that_the_file_allows_and_can_pay(settings: dict[str, Any], remedies: list[str | None], tmp_path: Path) -> None:
    search = composed(tmp_path, search={"evaluators": ["merged"]}, components=settings)
    _, body = gated(search, LawRunner(search.evaluations, lambda trial: False))
    assert [attempt["remedy"] for attempt in body["attempts"]] == remedies


def test_a_verdict_is_kept_and_nothing_is_done_twice(tmp_path: Path) -> None:
    search = composed(tmp_path, search={"evaluators": ["merged"]})
    first = LawRunner(search.evaluations, lambda trial: trial.source.tokens == 102_400)
    found, body = gated(search, first)
    second = LawRunner(search.evaluations, lambda trial: True)
    again, same = gated(composed(tmp_path, search={"evaluators": ["merged"]}), second)
    assert second.ended == []
    assert same == body
    assert evaluators(again) == evaluators(found)
    with History.open(search.store / "record.sqlite") as history:
        told = known_verdict(composed(tmp_path, search={"evaluators": ["merged"]}), history)
    assert told.family is not None
    assert found.family is not None
    assert [trial.trial_id for trial in told.family.trials] == [trial.trial_id for trial in found.family.trials]


def test_a_general_share_that_an_ensemble_could_not_be_judged_with_is_not_tried(tmp_path: Path) -> None:
    """Without general data ensembles reach all mixtures; with half of it few that were trained."""
    search = composed(tmp_path, search={"evaluators": ["ensemble"]}, components={"general": 0.0})
    found, body = gated(search, LawRunner(search.evaluations, lambda trial: False))
    assert [attempt["remedy"] for attempt in body["attempts"]] == [None]
    assert evaluators(found) == ["trained"]
    assert "trained proxies are used" in " ".join(body["ended"])


def test_remedies_leave_what_the_gate_has_trained_and_something_to_use(tmp_path: Path) -> None:
    search = composed(tmp_path, search={"evaluators": ["merged"], "trials": 22})
    found, body = gated(search, LawRunner(search.evaluations, lambda trial: False))
    cost = found.strategy.assignment.offers[-1].cost
    assert [attempt["remedy"] for attempt in body["attempts"]] == [None, "shorter horizon"], (
        "components as long as these would leave nothing"
    )
    assert body["flops"] + (12 + LEFT_TO_USE) * cost <= 22 * cost * (1 + 1e-9)


def test_an_evaluator_whose_averages_fail_leaves_and_the_other_stays(tmp_path: Path) -> None:
    search = composed(tmp_path)
    runner = LawRunner(search.evaluations, lambda trial: True, lambda trial: trial.source.evaluator == "merged")
    found, body = gated(search, runner)
    assert evaluators(found) == ["ensemble", "trained"]
    assert "merged" in body["attempts"][0]["refused"]


def test_where_the_objective_cannot_be_measured_the_search_goes_on_with_trained_proxies(tmp_path: Path) -> None:
    search = composed(tmp_path)
    natural = search.domains.natural().array()

    def fails(trial: Trial) -> bool:
        at_natural = bool(abs(trial.schedule.average().array(search.domains.names) - natural).sum() < 1e-6)
        return at_natural and trial.source.evaluator == "trained" and trial.label != "base"

    found, body = gated(search, LawRunner(search.evaluations, lambda trial: True, fails))
    assert evaluators(found) == ["trained"]
    assert set(body["attempts"][0]["refused"]) == {"merged", "ensemble"}
    assert body["ended"]
