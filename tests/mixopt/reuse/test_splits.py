"""What documents say of domains that were split."""

from __future__ import annotations

import pytest

from mixopt.errors import ConfigError
from mixopt.reuse.splits import find_splits, found_sentences


def test_parts_are_told_by_most_of_their_documents() -> None:
    shares = {"web_high": {"web": 1.0, "code": 0.05}, "web_low": {"web": 0.6}, "books": {"web": 0.4}, "news": {"code": 0.02}}
    assert find_splits(shares, {}) == {"web": ("web_high", "web_low")}


def test_what_was_merged_comes_from_none() -> None:
    assert find_splits({"mixed": {"web": 0.6, "code": 0.4}, "books": {}}, {}) == {}


def test_a_part_that_was_merged_is_ambiguous_until_it_is_said() -> None:
    shares = {"web_high": {"web": 1.0}, "mixed": {"code": 0.7, "web": 0.3}}
    with pytest.raises(ConfigError) as error:
        find_splits(shares, {})
    assert "'mixed' has documents of 'code' (70%) and 'web' (30%), and 'web' went into web_high too" in error.value.message
    assert "`--split web=web_high,mixed`" in error.value.hint
    assert "`--split web=web_high`" in error.value.hint
    assert find_splits(shares, {"web": ("web_high", "mixed")}) == {}
    assert find_splits(shares, {"web": ("web_high",)}) == {}, "said to be new, so it is not taken for code"


def test_a_domain_that_only_lost_or_gained_some_documents_is_the_same_by_name() -> None:
    shares = {"web": {"web": 0.9}, "mixed": {"web": 0.5, "code": 0.5}}
    found = find_splits(shares, {})
    assert found == {"web": ("web",)}
    assert found_sentences(found, shares) == ()


def test_what_is_given_is_not_told_again() -> None:
    shares = {"a": {"web": 1.0}, "b": {"web": 1.0}, "c": {"law": 0.9}, "d": {"law": 1.0}}
    assert find_splits(shares, {"web": ("a",)}) == {"law": ("c", "d")}
    assert find_splits(shares, {"code": ("a", "b")}) == {"law": ("c", "d")}


def test_what_was_told_is_said() -> None:
    (sentence,) = found_sentences({"web": ("a", "b")}, {"a": {"web": 1.0}, "b": {"web": 0.75}})
    assert sentence == "a (100%), b (75%) come from 'web', as their documents say; `--split` says otherwise."
