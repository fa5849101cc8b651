"""What reuse reads of a finished search."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mixopt.constraints.rules import Constraints, Near
from mixopt.errors import DataError
from mixopt.groups.rules import GroupRule
from mixopt.history import History
from mixopt.reuse.earlier_search import EarlierSearch, stored_domains
from mixopt.space import MixtureSpace

CONTEXT: dict[str, Any] = {
    "budget_tokens": 100.0,
    "domains": [
        {
            "name": name,
            "content_hash": name,
            "prepared_tokens": 1000,
            "target_tokens": 60.0,
            "group": group,
            "max_epochs": 4.0,
            "bounds": [0, 1],
        }
        for name, group in (("a", "web/high"), ("b", "web/low"), ("c", ""), ("d", ""))
    ],
}


def test_rules_and_constraints_come_back() -> None:
    experiment = {
        "groups": {"web": {"shares": {"high": 0.7, "low": 0.3}, "bounds": [0.1, 0.5]}, "web/low": {"shares": None, "bounds": [0.0, 1.0]}},
        "constraints": {"most_domains": 3, "near": {"mixture": "natural", "distance": 0.4}},
    }
    domains = stored_domains(CONTEXT, experiment)
    assert domains.rules == (GroupRule("web", (("high", 0.7), ("low", 0.3)), (0.1, 0.5)), GroupRule("web/low"))
    assert domains.constraints == Constraints(3, Near("natural", 0.4))
    assert MixtureSpace.from_domains(domains).units.names == ("web/*", "c", "d")


def test_searches_from_before_there_were_any_have_none() -> None:
    domains = stored_domains(CONTEXT, {"name": "old"})
    assert not domains.rules
    assert not domains.constraints


def test_a_search_without_an_answer_is_nothing_to_reuse(tmp_path: Path) -> None:
    with History.open(tmp_path / "record.db") as history:
        history.add_search("0123456789abcdef0123", "young", "name: young")
        with pytest.raises(DataError, match="has no proposal yet"):
            EarlierSearch.of(history, "0123456789abcdef0123")
