"""Which earlier domains were split into several, told by their documents where nobody says it.

A new domain comes from an earlier one if most of its documents are of that one and next to none of another. What a merged domain comes from is no
question, unless one of those that it was merged from was split as well: then only its user can say what it is. The main trade-off: documents are the
same or not, so one that was cleaned or cut anew counts as new, and parts made of such have to be named.
"""

from __future__ import annotations

from collections.abc import Mapping

from mixopt.errors import ConfigError

# Assumed: beyond half, what is said of the earlier domain says more of the new one than nothing does; up to a tenth are duplicates and strays.
MOST, NEXT_TO_NONE = 0.5, 0.1
Shares = Mapping[str, Mapping[str, float]]
"""New domain -> earlier domain -> the part of the new one's documents that are the earlier one's."""
Splits = Mapping[str, tuple[str, ...]]
"""Earlier domain -> the new ones that come from it."""


def find_splits(shares: Shares, given: Splits) -> dict[str, tuple[str, ...]]:
    """What documents say of the domains in `shares` that `given` does not name; of an earlier one with one new domain, that it is this one, revised.

    Raises:
        ConfigError: a domain holds documents of several, of which one was split.
    """
    named = {child for children in given.values() for child in children}
    found: dict[str, tuple[str, ...]] = {}
    mixed: dict[str, list[str]] = {}
    for child, of in shares.items():
        parents = sorted((old for old, share in of.items() if share > NEXT_TO_NONE), key=lambda old: (-of[old], old))
        if child in named or not parents:
            continue
        if len(parents) > 1:
            mixed[child] = parents
        elif of[parents[0]] > MOST and parents[0] not in given:
            found[parents[0]] = (*found.get(parents[0], ()), child)
    for child, parents in mixed.items():
        if split := next((old for old in parents if found.get(old, (old,)) != (old,)), None):
            held = " and ".join(f"'{old}' ({shares[child][old]:.0%})" for old in parents)
            others = ",".join(found[split])
            raise ConfigError(
                f"'{child}' has documents of {held}, and '{split}' went into {others.replace(',', ', ')} too: what '{child}' is a part of cannot be told.",
                f"Say it: `--split {split}={others},{child}`; or, if it is a domain of its own, `--split {split}={others}`.",
            )
    return found


def found_sentences(found: Splits, shares: Shares) -> tuple[str, ...]:
    """What was told by documents, a sentence for each earlier domain."""
    said = []
    for old, children in found.items():
        if children == (old,):
            continue  # its name says so
        parts = ", ".join(f"{child} ({shares[child][old]:.0%})" for child in children)
        said.append(f"{parts} {'comes' if len(children) == 1 else 'come'} from '{old}', as their documents say; `--split` says otherwise.")
    return tuple(said)
