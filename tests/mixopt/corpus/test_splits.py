"""The held-out split loses nothing, doubles nothing, and does not move."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixopt.corpus.documents import Document, Pair
from mixopt.corpus.splits import Side, side_of, take_side
from mixopt.errors import DataError

shares = st.floats(0.01, 0.49)
documents = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=20), max_size=60).map(
    lambda texts: [Document(text, f"row {index}") for index, text in enumerate(texts)]
)


def sides(items: list[Document], held_out: float) -> dict[Side, list[Document]]:
    return {side: [item for item in items if side_of(item.text, held_out) is side] for side in Side}


@given(documents, shares)
def test_each_document_is_on_exactly_one_side(items: list[Document], held_out: float) -> None:
    split = {}
    for side in Side:
        try:
            split[side] = list(take_side(items, held_out, side, "domain 'x'"))
        except DataError:
            split[side] = []
    assert split == sides(items, held_out)
    assert sorted(item.source for side in split.values() for item in side) == sorted(item.source for item in items)
    assert not {item.text for item in split[Side.TRAIN]} & {item.text for item in split[Side.VALID]}


@given(documents, shares, st.randoms(use_true_random=False))
def test_order_and_further_documents_move_nothing(items: list[Document], held_out: float, random: object) -> None:
    shuffled = [*items, Document("one more", "new")]
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    before, after = sides(items, held_out), sides(shuffled, held_out)
    for side in Side:
        assert {item.source for item in before[side]} == {item.source for item in after[side]} - {"new"}


@given(documents, shares, shares)
def test_a_larger_share_only_adds_held_out_documents(items: list[Document], one: float, other: float) -> None:
    small, large = sorted((one, other))
    held_out = {item.source for item in sides(items, small)[Side.VALID]}
    assert held_out <= {item.source for item in sides(items, large)[Side.VALID]}


@pytest.mark.parametrize("held_out", [0.02, 0.1, 0.4])
def test_the_share_holds(held_out: float) -> None:
    count = 20_000
    taken = sum(side_of(f"document {index}", held_out) is Side.VALID for index in range(count))
    # Binomial; five standard deviations, and the hash is fixed, so this never flickers.
    assert abs(taken - held_out * count) < 5 * (count * held_out * (1 - held_out)) ** 0.5


def test_an_empty_side_is_an_error_with_a_remedy() -> None:
    text = next(f"{index}" for index in range(100) if side_of(f"{index}", 0.02) is Side.TRAIN)
    with pytest.raises(DataError, match=r"1 documents of domain 'x' .* no held-out document") as caught:
        list(take_side([Document(text, "")], 0.02, Side.VALID, "domain 'x'"))
    assert "held_out" in caught.value.hint


def test_a_prompt_is_on_one_side_whatever_follows_it() -> None:
    pairs = [Pair(f"Question {number}?", answer) for number in range(200) for answer in ("yes", "no")]
    valid = list(take_side(pairs, 0.2, Side.VALID, "domain 'x'"))
    train = list(take_side(pairs, 0.2, Side.TRAIN, "domain 'x'"))
    assert len(train) + len(valid) == len(pairs)
    assert 20 < len({pair.prompt for pair in valid}) < 60
    assert not {pair.prompt for pair in train} & {pair.prompt for pair in valid}


def test_pairs_without_a_prompt_are_split_by_their_completions() -> None:
    pairs = [Pair("", f"Answer {number}.") for number in range(200)]
    assert 20 < len(list(take_side(pairs, 0.2, Side.VALID, "domain 'x'"))) < 60
