"""Token counts of the target corpus: given, counted or estimated, and never one passed off as another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mixopt.config import Experiment
from mixopt.corpus.manifest import DomainFiles, Manifest, TokenFile
from mixopt.errors import InfeasibleError
from mixopt.experiment_file import parse_experiment
from workers.checks import check_experiment
from workers.compose import checked_domains, compose, domain_set
from workers.search_context import context

PREPARED = TokenFile("train.tokens", "content", 1_000_000, 3_200_000, 100)


def manifest(*names: str) -> Manifest:
    def files(name: str) -> DomainFiles:
        train = TokenFile(f"{name}.train.tokens", f"content-{name}", PREPARED.tokens, PREPARED.bytes, PREPARED.documents)
        return DomainFiles(train, TokenFile(f"{name}.valid.tokens", f"held-out-{name}", 10_000, 30_000, 10))

    return Manifest(Path("tokens"), "tokenizer.json", "hash", 512, {name: files(name) for name in names}, {})


def experiment(folder: Path, budget: str, *domains: dict[str, Any]) -> Experiment:
    entries = [{"name": f"d{number}", "path": "x.jsonl", **domain} for number, domain in enumerate(domains)]
    return parse_experiment({"name": "x", "output": str(folder / "run"), "budget_tokens": budget, "domains": entries}, folder)


def test_tokens_are_given_counted_or_estimated_and_say_so(tmp_path: Path) -> None:
    made = experiment(tmp_path, "4M", {"tokens": "5M"}, {"tokens": "count"}, {"bytes": "32MB"}, {"bytes": "32MB", "repeats": 2})
    domains = domain_set(made, manifest("d0", "d1", "d2", "d3")).domains
    assert [domain.token_count_source for domain in domains] == ["given", "counted", "estimated", "estimated"]
    # 3.2 bytes per token were measured on what is prepared.
    assert [domain.target_tokens for domain in domains] == pytest.approx([5e6, 1e6, 1e7, 1e7])
    assert [domain.unique_target_tokens for domain in domains] == pytest.approx([5e6, 1e6, 1e7, 5e6])


def test_the_stored_context_says_how_counts_are_known(tmp_path: Path) -> None:
    made = experiment(tmp_path, "4M", {"tokens": "5M"}, {"bytes": "32MB", "repeats": 2})
    entries = context(compose(made, manifest("d0", "d1")))["domains"]
    assert [entry["token_count_source"] for entry in entries] == ["given", "estimated"]
    assert [entry["repeats"] for entry in entries] == [1.0, 2.0]
    assert [entry["unique_target_tokens"] for entry in entries] == pytest.approx([5e6, 5e6])


def test_a_search_is_told_apart_by_numbers_and_not_by_how_they_are_known(tmp_path: Path) -> None:
    def search_id(**domain: Any) -> str:
        return compose(experiment(tmp_path, "4M", {"tokens": "5M"}, domain), manifest("d0", "d1")).search_id

    given = search_id(tokens=1e6)
    assert search_id(tokens="count") == given
    assert search_id(bytes=3.2e6) == given
    assert search_id(tokens=1e6, repeats=1) == given
    assert search_id(tokens=2e6, repeats=2) != given
    assert search_id(tokens=2e6, repeats=2) != search_id(tokens=2e6)


def test_searches_of_part_1_keep_their_identity(tmp_path: Path) -> None:
    made = experiment(tmp_path, "4M", {"tokens": "5M"}, {"tokens": "3M", "max_epochs": 2, "bounds": [0.1, 0.6]})
    assert compose(made, manifest("d0", "d1")).search_id == "9f3874ea362790473acf"


def test_what_is_infeasible_whatever_is_counted_is_found_at_once(tmp_path: Path) -> None:
    hopeless = experiment(tmp_path, "1B", {"tokens": "count", "bounds": [0, 0.2]}, {"tokens": "100M"})
    with pytest.raises(InfeasibleError, match=r"sum to 0\.6"):
        check_experiment(hopeless)
    counting = experiment(tmp_path, "1B", {"tokens": "count"}, {"tokens": "100M"})
    check_experiment(counting)
    with pytest.raises(InfeasibleError, match="short of 1"):
        checked_domains(counting, manifest("d0", "d1"))
