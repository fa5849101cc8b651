"""Overlap of texts with targets, against a reference that compares tuples of words."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixopt.corpus.ngrams import UNSPACED, run_hashes, words_of
from mixopt.corpus.overlap import (
    RUN_WORDS,
    SHORTEST_QUESTION_WORDS,
    TEMPLATE_ITEMS,
    OverlapCounter,
    TargetItem,
    TargetRuns,
    parts_of,
)

UNSPACED_CLASS = "".join(f"{chr(first)}-{chr(last)}" for first, last in UNSPACED)
# Punctuation stands in those blocks too, and is no word.
WORD = re.compile(f"(?=\\w)[{UNSPACED_CLASS}]|(?:(?![{UNSPACED_CLASS}])\\w)+")

# Few words, so that runs in common are frequent; scripts with and without spaces, case, digits, marks, controls, a lone surrogate.
WORDS = ["a", "b", "A", "ab", "x1", "naïve", "İstanbul", "ΣΑΣ", "под", "数", "据", "か", "_", "é", "一二", "한국", "・"]
GAPS = [" ", "\n", ", ", "-", "", "\x00", "\ud800", "。", "  "]
texts = st.lists(st.tuples(st.sampled_from(WORDS), st.sampled_from(GAPS)), max_size=60).map(lambda pairs: "".join(a + b for a, b in pairs))


def words(text: str) -> tuple[str, ...]:
    return tuple(WORD.findall(text.lower()))


def grams(sequence: Sequence[str], length: int) -> set[tuple[str, ...]]:
    return {tuple(sequence[i : i + length]) for i in range(len(sequence) - length + 1)}


def runs_of_item(item: TargetItem) -> set[tuple[str, ...]]:
    whole = words(item.question + item.rest)
    found = grams(whole, RUN_WORDS)
    for text in (words(item.question), whole):
        if SHORTEST_QUESTION_WORDS <= len(text) < RUN_WORDS:
            found.add(text)
    return found


def reference(documents: Sequence[str], items: Sequence[TargetItem]) -> tuple[int, int]:
    """(documents, items) with a run in common."""
    runs = [runs_of_item(item) for item in items]
    held = [
        set().union(*(grams(words(document), length) for length in range(SHORTEST_QUESTION_WORDS, RUN_WORDS + 1))) for document in documents
    ]
    return (
        sum(any(document & run for run in runs) for document in held),
        sum(any(document & run for document in held) for run in runs),
    )


@settings(deadline=None)  # the first call makes the table of characters
@given(st.lists(texts, max_size=5))
def test_words_are_those_of_the_regular_expression(documents: list[str]) -> None:
    found = words_of([document.lower() for document in documents])
    expected = [(number, word) for number, document in enumerate(documents) for word in words(document)]
    assert [(int(text), found.excerpt(index, 1)) for index, text in enumerate(found.texts)] == expected
    by_hash: dict[int, str] = {}
    for value, (_, word) in zip(found.hashes.tolist(), expected, strict=True):
        assert by_hash.setdefault(value, word) == word
    assert len(by_hash) == len({word for _, word in expected}), "one word, one hash, wherever it stands"


@settings(deadline=None)
@given(texts)
def test_runs_have_one_hash_each(document: str) -> None:
    sequence = words(document)
    hashes = words_of([document.lower()]).hashes
    for length, found in run_hashes(hashes, [1, 3, RUN_WORDS]):
        runs = [sequence[i : i + length] for i in range(len(sequence) - length + 1)]
        assert len(found) == len(runs)
        assert len(set(zip(found.tolist(), runs, strict=True))) == len(set(found.tolist())) == len(set(runs))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_counts_are_those_of_the_reference(data: st.DataObject) -> None:
    items = data.draw(st.lists(st.builds(TargetItem, texts, texts), max_size=4))
    documents = data.draw(st.lists(texts, max_size=4))
    # Half of the time a document holds an item, or a part of it, as a leak would.
    for item in items:
        if data.draw(st.booleans()):
            text = item.question + item.rest
            start = data.draw(st.integers(0, len(text)))
            documents.append(data.draw(texts) + text[start : data.draw(st.integers(start, len(text)))] + data.draw(texts))
    counter = OverlapCounter(TargetRuns.from_items({"empty": [], "t": items}))
    for number, document in enumerate(documents):
        counter.add(document, str(number))
    found = counter.close("d")
    assert [(overlap.documents, overlap.items) for overlap in found] == [counts for counts in [reference(documents, items)] if any(counts)]
    for overlap in found:
        example = overlap.example
        (run,) = [run for run in runs_of_item(items[example.item - 1]) if run == words(example.words)] or [()]
        assert run, "the example is a run of the item it names"
        assert run in grams(words(documents[int(example.document)]), len(run)), "and of the document"


@settings(deadline=None)
@given(texts, st.integers(1, 40))
def test_parts_of_a_long_text_hold_all_its_runs_and_no_others(text: str, characters: int) -> None:
    lowered = text.lower()
    parts = list(parts_of(lowered, characters))
    for length in (1, SHORTEST_QUESTION_WORDS, RUN_WORDS):
        assert set().union(*(grams(words(part), length) for part in parts)) == grams(words(lowered), length)


def test_a_document_longer_than_a_batch_counts_once() -> None:
    question = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
    filler = " ".join(f"w{n}" for n in range(100_000))
    counter = OverlapCounter(TargetRuns.from_items({"t": [TargetItem(question)]}))
    counter.add("before it", "0")
    counter.add(f"{question} {filler} {question}", "long")
    counter.add(question, "2")
    (overlap,) = counter.close("d")
    assert (overlap.documents, overlap.items) == (2, 1)
    assert overlap.example.document == "long"
    assert overlap.example.words == question.rpartition(" ")[0]


def test_what_all_prompts_begin_and_end_with_is_no_part_of_the_question() -> None:
    questions = [f"why is number {n} more than all the others below {n}" for n in range(TEMPLATE_ITEMS)]
    items = [TargetItem(f"Question: {question}?\nAnswer:", f" because {n}") for n, question in enumerate(questions)]
    counter = OverlapCounter(TargetRuns.from_items({"t": items}))
    counter.add(f"Somebody asked {questions[7]}, and nobody knew.", "d")
    (overlap,) = counter.close("d")
    assert (overlap.documents, overlap.items, overlap.example.item) == (1, 1, 8)
    few = OverlapCounter(TargetRuns.from_items({"t": items[:8]}))
    few.add(f"Somebody asked {questions[7]}, and nobody knew.", "d")
    assert few.close("d") == [], "of few items a common beginning may be chance"


@pytest.mark.parametrize(("count", "checkable"), [(7, 0), (8, 1), (12, 1), (13, 1), (14, 1)])
def test_items_that_are_too_short_are_told(count: int, checkable: int) -> None:
    runs = TargetRuns.from_items({"t": [TargetItem(" ".join(f"w{n}" for n in range(count)))]})
    assert runs.checkable == (checkable,)


@pytest.mark.parametrize("characters", [1, 7, 20, 50])
def test_no_run_is_lost_between_parts(characters: int) -> None:
    lowered = " ".join(f"w{n}" for n in range(100))
    parts = list(parts_of(lowered, characters))
    assert len(parts) > 1
    assert set().union(*(grams(words(part), RUN_WORDS) for part in parts)) == grams(words(lowered), RUN_WORDS)


def test_a_run_does_not_reach_into_the_next_document() -> None:
    question = [f"w{n}" for n in range(RUN_WORDS)]
    counter = OverlapCounter(TargetRuns.from_items({"t": [TargetItem(" ".join(question))]}))
    counter.add(" ".join(question[:6]), "0")
    counter.add(" ".join(question[6:]), "1")
    assert counter.close("d") == []
