"""A whole search over pairs and text: prepared, trained, proposed and verified, with what was scored in the record, and exported."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from mixopt.config import Experiment
from mixopt.experiment_file import parse_experiment
from mixopt.export import exporter_names
from mixopt.history import History
from workers.compose import record_location
from workers.run import Finished, run

WINDOW, STEP, TOKENS = 64, 128, 4096


def write(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def sums(count: int, seed: int) -> list[dict[str, str]]:
    chosen = random.Random(seed)
    numbers = [(chosen.randrange(50), chosen.randrange(50)) for _ in range(count)]
    return [{"q": f"{seed}: {a} and {b} are", "a": f" {a + b}, and no more than that."} for a, b in numbers]


def echoes(count: int, seed: int) -> list[dict[str, str]]:
    chosen = random.Random(seed)
    words = [" ".join(chosen.choices(["river", "house", "grass", "old", "year", "lake", "bird"], k=5)) for _ in range(count)]
    return [{"q": f"Say again, {seed}: {text}.", "a": f" {text}!"} for text in words]


def experiment(folder: Path, **changes: Any) -> Experiment:
    pairs = {"prompt_column": "q", "completion_column": "a", "held_out": 0.2}
    raw: dict[str, Any] = {
        "name": "pairs",
        "output": "run",
        "budget_tokens": "1M",
        "domains": [
            {"name": "sums", "path": "sums.jsonl", "tokens": "300K", **pairs},
            {"name": "echoes", "path": "echoes.jsonl", "bytes": "3MB", **pairs},
            {"name": "text", "path": "text.jsonl", "tokens": "2M", "held_out": 0.2},
        ],
        "targets": [{"name": "more-sums", "path": "more-sums.jsonl", "prompt_column": "q", "completion_column": "a"}],
        "tokenizer": {"vocab_size": 512},
        "proxy": {"tokens": TOKENS, "window": WINDOW, "tokens_per_step": STEP, "seeds": 2},
        "search": {"trials": 8},
        "verification": {"size": "nano", "tokens": 2 * TOKENS, "seeds": 2},
        "ray": {"address": "in-process"},
        "tracking": {"enabled": False},
    }
    return parse_experiment(raw | changes, folder)


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Finished]:
    folder = tmp_path_factory.mktemp("pairs")
    write(folder / "sums.jsonl", sums(300, 0))
    write(folder / "more-sums.jsonl", sums(30, 1))
    write(folder / "echoes.jsonl", echoes(300, 0))
    write(folder / "text.jsonl", [{"text": " ".join(row["q"] + row["a"] for row in echoes(6, seed))} for seed in range(2, 80)])
    return folder, run(experiment(folder))


@pytest.mark.slow
def test_a_search_over_pairs_and_text_ends_with_an_answer(searched: tuple[Path, Finished]) -> None:
    folder, finished = searched
    assert finished.verification is not None
    assert finished.proposal.mixture.as_dict().keys() == {"sums", "echoes", "text"}
    with History.open(record_location(folder / "run")) as history:
        records = history.trials(finished.search.search_id, "search")
        names = {domain.content_hash: domain.name for domain in finished.search.domains.domains}
    assert len(records) == 8
    for record in records:
        outcome = record.outcome
        assert outcome is not None
        weights = record.trial.schedule.average().as_dict()
        scored = {names[key]: tokens for key, tokens in outcome.diagnostics["scored_tokens"].items()}
        for key, (share,) in outcome.realized.items():
            name, tokens = names[key], share * outcome.tokens
            assert share == pytest.approx(weights[name], abs=WINDOW / TOKENS)
            if tokens:
                assert 0 < scored[name] <= tokens
                assert (scored[name] == tokens) is (name == "text")
        by_set = outcome.diagnostics["balance"]["rows_by_set"]
        assert by_set.keys() == finished.search.metrics(finished.search.factory.source).keys(), "pairs have their experts, too"
    metrics = set(finished.search.metrics(finished.search.factory.source).values())
    assert metrics == {"valid/sums", "valid/echoes", "valid/text", "target/more-sums"}


@pytest.mark.slow
def test_it_is_finished_when_run_again(searched: tuple[Path, Finished]) -> None:
    folder, finished = searched
    again = run(experiment(folder))
    assert (again.trained, again.search.search_id) == (0, finished.search.search_id)
    assert (again.proposal.mixture, again.proposal.epochs) == (finished.proposal.mixture, finished.proposal.epochs)


@pytest.mark.slow
def test_pages_and_exports_take_it(searched: tuple[Path, Finished]) -> None:
    from mixopt.commands.review import export_mixture

    _, finished = searched
    assert (finished.search.folder / "report.html").stat().st_size > 10_000
    assert "echoes" in (finished.search.folder / "answer.md").read_text(encoding="utf-8")
    for name in exporter_names():
        options = {"prefix": "/data/{domain}_text_document"} if name == "megatron" else {}
        for path in export_mixture(finished.search.store, name, None, None, finished.search.search_id, options):
            assert path.stat().st_size > 0
