"""What an inventory of a corpus says: counts, duplicates, overlaps, epochs, tokens; on text that the test writes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixopt.config import Experiment
from mixopt.corpus.config import DomainConfig
from mixopt.corpus.documents import Document
from mixopt.corpus.inspection import EXTREMES, DomainScan, SideScan, shared_documents
from mixopt.corpus.inventory import PARALLEL_BYTES, Inventory, take_inventory
from mixopt.corpus.overlap import TargetRuns
from mixopt.errors import DataError
from mixopt.experiment_file import load_experiment, parse_experiment
from mixopt.progress import Silent

QUESTION = "how many of the seven hundred and twelve grey geese that left the lake in autumn came back"


def text(seed: int, words: int = 30) -> str:
    return " ".join(f"w{seed}x{n}" for n in range(words))


def write(path: Path, texts: list[str]) -> None:
    path.write_text("".join(json.dumps({"text": item}) + "\n" for item in texts))


def experiment(folder: Path, **changes: Any) -> Experiment:
    raw: dict[str, Any] = {
        "name": "x",
        "output": "run",
        "budget_tokens": "10B",
        "domains": [
            {"name": "web", "path": "web.jsonl", "valid": "web-valid.jsonl", "tokens": "9B"},
            {"name": "books", "path": "books.jsonl", "tokens": "3B", "held_out": 0.3},
        ],
        "targets": [{"name": "geese", "path": "geese.jsonl", "prompt_column": "q", "completion_column": "a"}],
    }
    return parse_experiment(raw | changes, folder)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    write(tmp_path / "web.jsonl", [text(1), text(2), "", text(1), text(3, 300), text(100), text(1)])
    write(tmp_path / "web-valid.jsonl", [text(50), text(2)])
    write(tmp_path / "books.jsonl", [text(n) for n in range(100, 140)])
    items = [{"q": QUESTION, "a": " 12"}, {"q": "too short", "a": " yes"}]
    (tmp_path / "geese.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    return tmp_path


def inventory(folder: Path, **changes: Any) -> Inventory:
    return take_inventory(experiment(folder, **changes), Silent())


def test_it_counts_documents_bytes_and_extremes(corpus: Path) -> None:
    web, books = inventory(corpus).domains
    assert (web.train.documents, web.train.empty, web.valid.documents) == (6, 1, 2)
    assert web.train.bytes == sum(len(text(*of)) for of in [(1,), (2,), (1,), (3, 300), (100,), (1,)])
    assert (web.train.longest[0].bytes, web.train.longest[0].source) == (len(text(3, 300)), "web.jsonl:5")
    assert web.train.shortest[0].source == "web.jsonl:1"
    assert books.train.documents + books.valid.documents == 40
    assert 0 < books.valid.documents < books.train.documents


def test_duplicates_within_and_across_and_into_held_out_text(corpus: Path) -> None:
    found = inventory(corpus)
    assert (found.domains[0].train.repeats, found.domains[0].train.repeats_example) == (2, "web.jsonl:1 and web.jsonl:4")
    assert found.domains[1].train.repeats == 0
    by_pair = {(shared.first, shared.second): (shared.documents, shared.example) for shared in found.shared}
    assert by_pair[("domain 'web'", "the held-out set of domain 'web'")] == (1, "web.jsonl:2 and web-valid.jsonl:2")
    (other,) = [pair for pair in by_pair if pair[1] != "the held-out set of domain 'web'"]
    assert other[0] == "domain 'web'"
    assert other[1] in ("domain 'books'", "the held-out set of domain 'books'"), "which side the hash takes is not the matter here"
    assert by_pair[other] == (1, "web.jsonl:6 and books.jsonl:1")
    said = "\n".join(found.verdicts)
    assert "1 document of web also stands in the held-out set of web: that held-out loss measures memory (web.jsonl:2 and" in said
    assert "2 documents of web (33%) repeat an earlier one (web.jsonl:1 and web.jsonl:4)." in said
    assert "1 document of web is empty and will be left out." in said


def test_a_planted_target_item_is_found_and_said(corpus: Path) -> None:
    assert "No target item shares a 13-gram with training text." in inventory(corpus).verdicts
    write(corpus / "books.jsonl", [f"{text(n)} {QUESTION.upper()}? {n}" if n < 103 else text(n) for n in range(100, 140)])
    found = inventory(corpus)
    (overlap,) = found.overlaps
    assert (overlap.domain, overlap.target, overlap.items) == ("books", "geese", 1)
    assert overlap.documents == sum(1 for shared in range(3)) - _held_out_of(corpus, 3)
    (sentence,) = [sentence for sentence in found.verdicts if "share" in sentence]
    assert sentence.startswith("1 of 2 geese items shares a 13-gram with books, in ")
    assert "how many of the seven hundred" in sentence
    assert "1 target item has fewer than 8 words and cannot be checked: 1 of geese." in found.verdicts


def _held_out_of(folder: Path, first: int) -> int:
    """Of the first documents of books, how many the hash holds out."""
    from mixopt.corpus.splits import Side, side_of

    rows = [json.loads(line)["text"] for line in (folder / "books.jsonl").read_text().splitlines()[:first]]
    return sum(side_of(row, 0.3) is Side.VALID for row in rows)


def test_epochs_at_the_budget(corpus: Path) -> None:
    web, books = inventory(corpus).domains
    assert (web.natural_weight, books.natural_weight) == (0.75, 0.25)
    assert web.natural_epochs == pytest.approx(10 / 12)
    assert (web.unimax_weight, books.unimax_epochs) == (0.5, pytest.approx(0.5 * 10 / 3))
    scarce = inventory(corpus, budget_tokens="100B")
    assert scarce.domains[0].unimax_weight is None
    assert scarce.verdicts[0].startswith("At their epoch caps all domains together give 4.8e+10 tokens")


def test_tokens_are_counted_once_prepared_and_estimated_when_the_documents_have_changed(corpus: Path) -> None:
    from workers.tokens.prepare import prepare

    before = inventory(corpus)
    assert not any(side.counted for row in before.domains for side in (row.train, row.valid))
    assert "All tokens are estimated from bytes; `mixopt prepare FILE` counts them." in before.verdicts
    settings = {"tokenizer": {"vocab_size": 512}, "proxy": {"window": 64, "tokens_per_step": 64, "tokens": 1024}}
    manifest = prepare(experiment(corpus, **settings))
    after = inventory(corpus)
    for row in after.domains:
        assert row.train.counted
        assert (row.train.tokens, row.train.documents) == (
            manifest.domains[row.name].train.tokens,
            manifest.domains[row.name].train.documents,
        )
        assert row.valid.tokens == manifest.domains[row.name].valid.tokens
    assert after.targets[0].tokens == manifest.targets["geese"].file.tokens
    assert not any("estimated" in sentence for sentence in after.verdicts)
    write(corpus / "web.jsonl", [text(1), text(2)])
    changed = inventory(corpus)
    assert not changed.domains[0].train.counted
    assert changed.domains[0].train.bytes_per_token == pytest.approx(after.domains[0].train.bytes_per_token, rel=0.01)
    assert "Tokens of web are estimated from bytes; `mixopt prepare FILE` counts them." in changed.verdicts


def test_a_quick_inventory_says_what_it_did_not_read(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mixopt.corpus import inventory as module

    monkeypatch.setattr(module, "QUICK_BYTES", 100.0)
    found = take_inventory(experiment(corpus), Silent(), quick=True)
    assert found.domains[0].train.documents == 1
    assert "Only the beginning of web, books was read: everything here is about that part" in "\n".join(found.verdicts)


def test_several_processes_find_what_one_finds(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mixopt.corpus import inventory as module

    one = inventory(corpus)
    monkeypatch.setattr(module, "PARALLEL_BYTES", 0.0)
    assert PARALLEL_BYTES > 0
    assert take_inventory(experiment(corpus), Silent(), processes=2) == one
    write(corpus / "books.jsonl", [])
    (corpus / "books.jsonl").write_text('{"text": 5}\n')
    with pytest.raises(DataError, match=r"Row 1 of .*books\.jsonl"):
        take_inventory(experiment(corpus), Silent(), processes=2)


@pytest.mark.parametrize(
    ("limits", "quick_bytes", "known"),
    [
        ({"max_documents": 10}, float("inf"), None),
        ({"max_documents": 10}, 50.0, 50.0),
        ({"max_bytes": 40, "max_documents": 10}, float("inf"), 40.0),
    ],
)
def test_a_bar_never_waits_for_endless_bytes(
    limits: dict[str, int], quick_bytes: float, known: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A terminal's estimate of the time left does not survive an endless total."""
    from mixopt.corpus import inventory as module

    class Totals(Silent):
        def stage(self, title: str, total: float | None, unit: str) -> Any:
            totals.append(total)
            return super().stage(title, total, unit)

    totals: list[float | None] = []
    monkeypatch.setattr(module, "scan_domain", lambda *_: None)
    hub = DomainConfig.model_validate({"name": "hub", "hub": {"dataset": "a/b"}, "tokens": 1e9} | limits)
    module.scan_domains([hub], TargetRuns.from_items({}), quick_bytes, Totals())
    assert totals == [known]


def test_the_result_is_json(corpus: Path) -> None:
    body = json.loads(json.dumps(inventory(corpus).to_json()))
    assert body["domains"][0]["train"]["documents"] == 6
    assert body["verdicts"]


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 6), max_size=8), min_size=2, max_size=4))
def test_shared_documents_are_those_of_the_reference(parts: list[list[int]]) -> None:
    scans = []
    for number, part in enumerate(parts):
        side = SideScan()
        for row, value in enumerate(part, start=1):
            side.add(Document(f"text {value}", f"{number}.jsonl:{row}"))
        assert side.repeats()[0] == len(part) - len(set(part))
        scans.append(DomainScan(f"d{number}", side, SideScan(), (), True))
    expected = {
        (f"domain 'd{i}'", f"domain 'd{j}'"): len(set(parts[i]) & set(parts[j]))
        for i in range(len(parts))
        for j in range(i + 1, len(parts))
    }
    found = shared_documents(scans)
    assert {(shared.first, shared.second): shared.documents for shared in found} == {pair: n for pair, n in expected.items() if n}
    for shared in found:
        places = [place.replace(".jsonl", "").split(":") for place in shared.example.split(" and ")]
        values = {parts[int(part)][int(row) - 1] for part, row in places}
        assert len(values) == 1, "the example is one text in both places"


@settings(deadline=None)
@given(st.lists(st.integers(1, 9), max_size=12))
def test_extremes_are_the_shortest_and_the_longest(sizes: list[int]) -> None:
    side = SideScan()
    for row, size in enumerate(sizes, start=1):
        side.add(Document("x" * size, f"f.jsonl:{row}"))
    assert [extreme.bytes for extreme in side.shortest] == sorted(sizes)[:EXTREMES]
    assert [extreme.bytes for extreme in side.longest] == sorted(sizes, reverse=True)[:EXTREMES]


def test_text_files_are_named_by_themselves() -> None:
    side = SideScan()
    for source in ("a.txt", "b.jsonl:7", "b.jsonl:9", "odd:name.txt", "c.txt"):
        side.add(Document(source, source))
    assert [side.sources[number] for number in range(5)] == ["a.txt", "b.jsonl:7", "b.jsonl:9", "odd:name.txt", "c.txt"]


@pytest.mark.shared
@pytest.mark.slow
def test_the_shared_corpus_is_clean_as_its_sources_say() -> None:
    """Overlapping documents and duplicates were dropped where it was built, by other code than ours."""
    shared = os.environ.get("MIXOPT_SHARED")
    if not shared:
        pytest.skip("MIXOPT_SHARED is not set")
    found = take_inventory(load_experiment(Path(__file__).resolve().parents[3] / "examples" / "shared-corpus.yaml"), Silent())
    assert found.overlaps == ()
    assert found.shared == ()
    assert {row.train.repeats for row in found.domains} == {0}
    assert {row.name: row.train.documents for row in found.domains}["math_word"] == 7072
