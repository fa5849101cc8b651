"""What became of the domains of an earlier search."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixopt.errors import ConfigError
from mixopt.reuse.changes import Changes, compare, read_splits

OLD = {"web": "w1", "code": "c1", "math": "m1", "law": "l1"}


def kinds(changes: Changes) -> dict[str, str]:
    return {change.names: change.kind for change in changes.changes}


def test_every_kind_of_change_is_told() -> None:
    new = {"web_high": "w2", "web_low": "w3", "code": "c2", "maths": "m1", "books": "b1"}
    changes = compare(OLD, new, {"web": ("web_high", "web_low")})
    assert kinds(changes) == {
        "web \N{RIGHTWARDS ARROW} web_high, web_low": "split",
        "code": "revised",
        "math \N{RIGHTWARDS ARROW} maths": "renamed",
        "books": "added",
        "law": "removed",
    }
    assert changes.kept == {"maths": "math"}
    assert changes.fresh == ("web_high", "web_low", "code", "books")
    assert changes.parents == {"web_high": "web", "web_low": "web", "code": "code"}
    assert set(changes.removed) == {"web", "code", "law"}


def test_names_that_changed_places_are_renamed_and_not_revised() -> None:
    changes = compare(OLD, {**OLD, "web": "c1", "code": "w1"})
    assert changes.kept == {"web": "code", "code": "web", "math": "math", "law": "law"}
    assert not changes.fresh


def test_a_name_given_to_other_text_while_its_own_text_moved_on_is_an_addition() -> None:
    changes = compare({"web": "w1", "code": "c1"}, {"crawl": "w1", "web": "w2", "code": "c1"})
    assert kinds(changes) == {"web \N{RIGHTWARDS ARROW} crawl": "renamed", "web": "added", "code": "unchanged"}


def test_what_went_into_one_was_revised_whatever_it_is_called() -> None:
    changes = compare(OLD, {**OLD, "crawl": "w2"} | {"web": "w3"}, {"web": ("crawl",)})
    assert kinds(changes)["web → crawl"] == "revised"
    assert kinds(changes)["web"] == "added"


@given(st.permutations(list(OLD)), st.sets(st.sampled_from(list(OLD))))
def test_every_old_domain_is_accounted_for_whatever_the_order(order: list[str], gone: set[str]) -> None:
    new = {name: OLD[name] for name in order if name not in gone} | {"extra": "x"}
    changes = compare(OLD, new)
    assert {change.old for change in changes.changes} - {""} == set(OLD)
    assert [name for change in changes.changes for name in change.new] == list(new)
    assert set(changes.removed) == gone


@pytest.mark.parametrize(
    ("splits", "message", "hint"),
    [
        ({"wed": ("web_high",)}, "'wed' is said to be split, but the earlier search has no such domain", "'web'"),
        ({"web": ("web_hihg",)}, "'web_hihg', which is no domain of the new file", "'web_high'"),
        ({"code": ("web_high",)}, "'code' is said to be split, but its text is still there", "Leave the split out"),
        ({"web": ("code",)}, "whose text is that of the earlier domain 'code'", "Leave it out of the split"),
        ({"web": ("web_high", "web_high")}, "twice", "once"),
        ({"web": ("web_high",), "law": ("web_high",)}, "a part of 'web' and of 'law'", "leave one out"),
    ],
)
def test_a_split_that_cannot_be_is_refused(splits: dict[str, tuple[str, ...]], message: str, hint: str) -> None:
    with pytest.raises(ConfigError) as error:
        compare(OLD, {"web_high": "w2", "code": "c1", "math": "m1"}, splits)
    assert message in error.value.message
    assert hint in error.value.hint


def test_splits_are_read_as_the_command_line_has_them() -> None:
    assert read_splits(["web=web_high, web_low", "law=de,en"]) == {"web": ("web_high", "web_low"), "law": ("de", "en")}
    assert read_splits(["none"]) is None
    for wrong in (["none", "web=a,b"], ["web"], ["web="], ["=a"], ["web=a", "web=b"]):
        with pytest.raises(ConfigError, match="--split"):
            read_splits(wrong)
