"""The main job, whole: documents in, a verified and exported mixture out; again, it trains nothing; changed, it trains what is new."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from mixopt.config import Experiment
from mixopt.corpus.manifest import Manifest
from mixopt.errors import ConfigError
from mixopt.experiment_file import parse_experiment
from mixopt.export import export_search
from mixopt.history import History
from workers.compose import Search, compose, record_location
from workers.run import Finished, run
from workers.tokens.prepare import prepare

WINDOW = 64
TEXTS = {
    "code": [f"def add_{index}(x, y):\n    total = x + y * {index}\n    return total\n" for index in range(400)],
    "prose": [
        f"The {index}th traveller crossed river number {index * 7 % 31} and rested in the shade of a tree.\n" for index in range(400)
    ],
    "lists": [f"- item {index}\n- item {index + 1}\n- and {index * 3} more\n" for index in range(400)],
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("main-job")
    for name, texts in TEXTS.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    pairs = [{"prompt": f"def mul_{index}(x, y):\n", "completion": f"    return x * y + {index}\n"} for index in range(60)]
    (folder / "functions.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    return folder


def experiment(folder: Path, **changes: Any) -> Experiment:
    raw: dict[str, Any] = {
        "name": "whole",
        "output": "run",
        "budget_tokens": "10B",
        "domains": [
            {"name": name, "path": f"{name}.jsonl", "tokens": tokens, "held_out": 0.2}
            for name, tokens in {"code": "0.5B", "prose": "6B", "lists": "4B"}.items()
        ],
        "targets": [{"name": "functions", "path": "functions.jsonl", "prompt_column": "prompt", "completion_column": "completion"}],
        "tokenizer": {"vocab_size": 512},
        "proxy": {"tokens": 2048, "window": WINDOW, "tokens_per_step": 128, "seeds": 2},
        "search": {"trials": 10},
        "verification": {"size": "nano", "tokens": 4096, "seeds": 2},
        "tracking": {"enabled": False},
        "ray": {"address": "in-process"},
    }
    return parse_experiment(raw | changes, folder)


@pytest.fixture(scope="module")
def first(corpus: Path) -> Finished:
    return run(experiment(corpus))


@pytest.mark.slow
def test_documents_become_a_verified_mixture(first: Finished) -> None:
    search = first.search
    assert search.space.contains(first.proposal.mixture.array(search.domains.names)[None])[0]
    assert first.verification is not None
    assert set(first.verification.arms) >= {"proposal", "natural", "uniform", "unimax"}
    assert first.verification.sentence
    assert list((search.folder / "figures").glob("*.png"))
    assert "functions" in (search.folder / "answer.md").read_text()
    assert yaml.safe_load((search.folder / "experiment.yaml").read_text())["name"] == "whole"
    with History.open(record_location(search.store)) as history:
        assert history.search(search.search_id).state == "finished"
        records = history.trials(search.search_id, "search")
        assert len(records) == 10
        assert {"natural", "uniform", "unimax"} <= {record.trial.label for record in records}
        for record in history.trials(search.search_id):
            assert record.outcome is not None
            tokens = {m.tokens for m in record.outcome.measurements}
            assert max(tokens) == record.trial.source.tokens
            assert len(tokens) > 1, "losses at several points of the run"


@pytest.mark.slow
def test_what_is_exported_keeps_the_budget_and_the_caps(first: Finished, tmp_path: Path) -> None:
    with History.open(record_location(first.search.store)) as history:
        (path,) = export_search(history, first.search.search_id, "json", tmp_path, arm="proposal")
    body = json.loads(path.read_text())
    (phase,) = body["phases"]
    assert phase["weights"] == pytest.approx({k: v for k, v in first.proposal.mixture.as_dict().items() if v > 0}, abs=1e-5)
    assert body["budget_tokens"] == 10e9
    target_tokens = {"code": 0.5e9, "prose": 6e9, "lists": 4e9}
    assert body["epochs"] == pytest.approx({k: weight * 10e9 / target_tokens[k] for k, weight in phase["weights"].items()}, abs=1e-4)


@pytest.mark.slow
def test_a_finished_search_trains_nothing_and_starts_no_runner(first: Finished, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("workers.run.make_runner", pytest.fail)
        again = run(experiment(corpus))
    assert (again.trained, again.reused) == (0, first.trained)
    assert json.dumps(again.proposal.to_json()) == json.dumps(first.proposal.to_json())
    assert again.verification == first.verification


@pytest.mark.slow
def test_another_objective_is_another_search_over_the_same_trials(first: Finished, corpus: Path) -> None:
    other = run(experiment(corpus, objective={"kind": "mean"}, verification={"enabled": False}))
    assert other.search.search_id != first.search.search_id
    assert (other.trained, other.reused) == (0, 10), "the design does not depend on the objective, so every trial is in the record"


@pytest.mark.slow
def test_more_trials_go_on_where_the_search_ended(first: Finished, corpus: Path) -> None:
    more = run(experiment(corpus, search={"trials": 12}, verification={"enabled": False}))
    assert more.search.search_id == first.search.search_id
    assert more.trained == 2


def composed(corpus: Path, manifest: Manifest, **changes: Any) -> Search:
    return compose(experiment(corpus, **changes), manifest)


@pytest.fixture(scope="module")
def manifest(corpus: Path) -> Manifest:
    return prepare(experiment(corpus, output="composed"))


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"search": {"trials": 40}}, True),
        ({"verification": {"enabled": False}}, True),
        ({"tracking": {"enabled": True}}, True),
        ({"ray": {"cpus": 1}}, True),
        ({"name": "other"}, True),
        ({"output": "elsewhere"}, True),
        ({"search": {"trials": 10, "seed": 1}}, False),
        ({"search": {"trials": 10, "surrogate": "lightgbm"}}, False),
        ({"objective": {"kind": "mean"}}, False),
        ({"objective": {"pull": 0.5}}, False),
        ({"objective": {"over": "all"}}, False),
        ({"budget_tokens": "9B"}, False),
        ({"proxy": {"tokens": 4096, "window": WINDOW, "tokens_per_step": 128, "seeds": 2}, "verification": {"tokens": 8192}}, False),
        ({"targets": []}, False),
    ],
)
def test_a_search_is_what_decides_its_answer(corpus: Path, manifest: Manifest, changes: dict[str, Any], same: bool) -> None:
    assert (composed(corpus, manifest, **changes).search_id == composed(corpus, manifest).search_id) is same


def test_the_weight_of_a_target_is_part_of_the_search_and_its_name_is_not(corpus: Path, manifest: Manifest) -> None:
    target = {"path": "functions.jsonl", "prompt_column": "prompt", "completion_column": "completion"}
    both = [{"name": "a", **target}, {"name": "b", "path": "prose.jsonl"}]
    prepared = prepare(experiment(corpus, output="composed", targets=both))
    weighted = composed(corpus, prepared, targets=[both[0], {**both[1], "weight": 3.0}])
    assert weighted.search_id != composed(corpus, prepared, targets=both).search_id
    named = prepare(experiment(corpus, output="composed", targets=[{"name": "renamed", **target}]))
    assert composed(corpus, named, targets=[{"name": "renamed", **target}]).search_id == composed(corpus, manifest).search_id


def test_a_rate_given_for_the_search_is_not_used_at_another_size(corpus: Path, manifest: Manifest) -> None:
    proxy = {"tokens": 2048, "window": WINDOW, "tokens_per_step": 128, "seeds": 2, "learning_rate": 0.123}
    same_size = composed(corpus, manifest, proxy=proxy)
    assert same_size.factory.recipe["learning_rate"] == same_size.verification_factory.recipe["learning_rate"] == 0.123
    larger = composed(corpus, manifest, proxy=proxy, verification={"size": "micro", "tokens": 4096})
    assert larger.factory.recipe["learning_rate"] == 0.123
    assert larger.verification_factory.recipe["learning_rate"] != 0.123


def test_an_evaluation_is_known_by_what_is_scored(corpus: Path, manifest: Manifest) -> None:
    """Another window, another number of tokens or other documents give other losses; a search and its verification score other subsets."""
    search = composed(corpus, manifest)
    narrow = composed(corpus, manifest, proxy={"tokens": 2048, "window": 128, "tokens_per_step": 128, "seeds": 2})
    keys = [{e.key for e in entries} for entries in (*search.evaluations.values(), narrow.evaluations[narrow.factory.source.key])]
    assert all(len(entry) == 4 for entry in keys)
    assert len(set().union(*keys)) == 12
    files = {f"valid/{name}": manifest.absolute(files.valid) for name, files in manifest.domains.items()}
    files["target/functions"] = manifest.absolute(manifest.targets["functions"].file)
    for entries in search.evaluations.values():
        assert {entry.metric: entry.path for entry in entries} == files


def test_domains_with_the_same_documents_are_refused(corpus: Path) -> None:
    domains = [{"name": name, "path": "code.jsonl", "tokens": "6B", "held_out": 0.2} for name in ("a", "b")]
    twice = experiment(corpus, output="composed", domains=domains)
    with pytest.raises(ConfigError, match="Domains 'a' and 'b' hold the same documents"):
        compose(twice, prepare(twice))


def test_a_verification_at_the_source_of_the_search_is_refused(corpus: Path) -> None:
    with pytest.raises(ConfigError, match="trains the same proxies as the search"):
        run(experiment(corpus, verification={"size": "nano", "tokens": 2048}))
