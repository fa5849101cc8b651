"""Two sets of domains compared: what stayed, was renamed, added, removed, revised or split.

Content comes first: text that is the same is the same domain whatever it is called, so a rename costs nothing. The main trade-off: content is the hash of
all documents, so one more document makes a revision, however little it changes.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from mixopt.errors import ConfigError

NO_SPLITS = "none"
ChangeKind = Literal["unchanged", "renamed", "revised", "split", "added", "removed"]


@dataclass(frozen=True)
class Change:
    """What became of one domain.

    Attributes:
        old: its name before; empty where it was added.
        new: its names now, one unless it was split; none where it was removed. A revised one may have another.
    """

    kind: ChangeKind
    old: str
    new: tuple[str, ...]

    @property
    def names(self) -> str:
        """As tables name it."""
        now = ", ".join(self.new)
        return now if self.old in ("", now) else f"{self.old} \N{RIGHTWARDS ARROW} {now}" if now else self.old


@dataclass(frozen=True)
class Changes:
    """All changes, in the order of the new domains, removed ones last."""

    changes: tuple[Change, ...]

    @property
    def kept(self) -> dict[str, str]:
        """New name -> old name, of the domains whose text is the same."""
        return {change.new[0]: change.old for change in self.changes if change.kind in ("unchanged", "renamed")}

    @property
    def parents(self) -> dict[str, str]:
        """New name -> old name, of the domains whose text changed and that come from an old one."""
        return {name: change.old for change in self.changes if change.kind in ("revised", "split") for name in change.new}

    @property
    def fresh(self) -> tuple[str, ...]:
        """New domains of which nothing was measured: added, revised, split."""
        return tuple(name for change in self.changes if change.kind in ("added", "revised", "split") for name in change.new)

    @property
    def removed(self) -> tuple[str, ...]:
        """Old domains whose text is no longer there."""
        return tuple(change.old for change in self.changes if change.kind in ("removed", "revised", "split"))

    def count(self, kind: ChangeKind) -> int:
        return sum(change.kind == kind for change in self.changes)


def compare(old: Mapping[str, str], new: Mapping[str, str], splits: Mapping[str, Sequence[str]] | None = None) -> Changes:
    """What became of the old domains.

    Args:
        old, new: name -> content hash.
        splits: old name -> the new ones that its documents went into; with one new one it was revised.

    Raises:
        ConfigError: a split names a domain that is not there, or one whose text is that of an old domain, or two name the same.
    """
    splits = splits or {}
    by_content = {content: name for name, content in old.items()}
    origin = {name: by_content[content] for name, content in new.items() if content in by_content}
    for parent, children in splits.items():
        _check_split(parent, children, old, new, origin)
    parent_of: dict[str, str] = {}
    for parent, children in splits.items():
        for child in children:
            if parent_of.setdefault(child, parent) != parent:
                raise ConfigError(
                    f"'{child}' is said to be a part of '{parent_of[child]}' and of '{parent}'.", "A part is of one domain; leave one out."
                )
    consumed = {*origin.values(), *splits}
    found: list[Change] = []
    for name in new:
        if name in origin:
            found.append(Change("unchanged" if origin[name] == name else "renamed", origin[name], (name,)))
        elif name in parent_of:
            parent = parent_of[name]
            if splits[parent][0] == name:
                found.append(Change("split" if len(splits[parent]) > 1 else "revised", parent, tuple(splits[parent])))
        elif name in old and name not in consumed:
            consumed.add(name)
            found.append(Change("revised", name, (name,)))
        else:
            found.append(Change("added", "", (name,)))
    return Changes((*found, *(Change("removed", name, ()) for name in old if name not in consumed)))


def read_splits(options: Sequence[str]) -> dict[str, tuple[str, ...]] | None:
    """`old=new1,new2` as the command line has it; None for `none`: documents are not looked at for others.

    Raises:
        ConfigError: it is written otherwise, or an old name is there twice.
    """
    if list(options) == [NO_SPLITS]:
        return None
    splits: dict[str, tuple[str, ...]] = {}
    for option in options:
        parent, equals, children = option.partition("=")
        names = tuple(name.strip() for name in children.split(",") if name.strip())
        if not equals or not parent.strip() or not names:
            raise ConfigError(
                f"--split {option} is not OLD=NEW1,NEW2.", f"Write it as --split web=web_high,web_low, or --split {NO_SPLITS} alone."
            )
        if parent.strip() in splits:
            raise ConfigError(f"--split names '{parent.strip()}' twice.", "List all of its parts once.")
        splits[parent.strip()] = names
    return splits


def _check_split(parent: str, children: Sequence[str], old: Mapping[str, str], new: Mapping[str, str], origin: Mapping[str, str]) -> None:
    if parent not in old:
        raise ConfigError(f"'{parent}' is said to be split, but the earlier search has no such domain.", _nearest(parent, old))
    if parent in origin.values():
        raise ConfigError(f"'{parent}' is said to be split, but its text is still there as one domain.", "Leave the split out.")
    for child in children:
        if child not in new:
            raise ConfigError(f"'{parent}' is said to be split into '{child}', which is no domain of the new file.", _nearest(child, new))
        if child in origin:
            raise ConfigError(
                f"'{parent}' is said to be split into '{child}', whose text is that of the earlier domain '{origin[child]}'.",
                "Leave it out of the split.",
            )
    if len(set(children)) != len(children):
        raise ConfigError(f"'{parent}' is said to be split into a domain twice ({', '.join(children)}).", "List every part once.")


def _nearest(name: str, known: Iterable[str]) -> str:
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"Did you mean '{near[0]}'?" if near else f"There are: {', '.join(names)}."
