"""What an inventory means, in sentences: what is wrong first, then what was looked for and not found."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from mixopt.corpus.overlap import RUN_WORDS, SHORTEST_QUESTION_WORDS, Overlap

if TYPE_CHECKING:
    from mixopt.corpus.inspection import Shared
    from mixopt.corpus.inventory import DomainRow, TargetRow


def verdicts(
    domains: Sequence[DomainRow], targets: Sequence[TargetRow], shared: Sequence[Shared], overlaps: Sequence[Overlap], infeasible: str
) -> Iterator[str]:
    """The sentences, worst first. `infeasible`: why the epoch caps allow no mixture, or "" if they do."""
    if infeasible:
        yield infeasible
    yield from _of_overlaps(targets, overlaps)
    yield from _of_duplicates(domains, shared)
    for domain in domains:
        empty = domain.train.empty + domain.valid.empty
        if empty:
            yield f"{documents(empty)} of {domain.name} {'is' if empty == 1 else 'are'} empty and will be left out."
        if not domain.train.documents:
            yield f"{domain.name} holds no training text; `mixopt prepare` will refuse it."
        if not domain.valid.documents:
            yield f"{domain.name} holds no held-out text; `mixopt prepare` will refuse it."
    partial = [domain.name for domain in domains if not domain.complete]
    if partial:
        yield f"Only the beginning of {', '.join(partial)} was read: everything here is about that part, and more may be found in the rest."
    estimated = [domain.name for domain in domains if not (domain.train.counted and domain.valid.counted)]
    if estimated:
        whose = "All tokens" if len(estimated) == len(domains) else f"Tokens of {', '.join(estimated)}"
        yield f"{whose} are estimated from bytes; `mixopt prepare FILE` counts them."


def documents(count: int) -> str:
    return f"{count:,} document{'' if count == 1 else 's'}"


def _of_overlaps(targets: Sequence[TargetRow], overlaps: Sequence[Overlap]) -> Iterator[str]:
    items = {target.name: target.items for target in targets}
    for overlap in sorted(overlaps, key=lambda overlap: -overlap.items / items[overlap.target]):
        one, example = overlap.items == 1, overlap.example
        yield (
            f"{overlap.items:,} of {items[overlap.target]:,} {overlap.target} items {'shares' if one else 'share'} a {RUN_WORDS}-gram with "
            f"{overlap.domain}, in {documents(overlap.documents)}: {'its loss measures' if one else 'their losses measure'} memory "
            f'(item {example.item:,} with {example.document}: "{example.words}").'
        )
    if targets and not overlaps:
        yield f"No target item shares a {RUN_WORDS}-gram with training text."
    short = {target.name: target.items - target.checkable for target in targets if target.items > target.checkable}
    if short:
        total = sum(short.values())
        yield (
            f"{total:,} target {'item has' if total == 1 else 'items have'} fewer than {SHORTEST_QUESTION_WORDS} words and cannot be checked: "
            f"{', '.join(f'{count:,} of {name}' for name, count in short.items())}."
        )


def _of_duplicates(domains: Sequence[DomainRow], shared: Sequence[Shared]) -> Iterator[str]:
    for each in shared:
        stand = "stands" if each.documents == 1 else "stand"
        memory = " that held-out loss measures memory" if each.held_out else ""
        yield (
            f"{documents(each.documents)} of {_short(each.first)} also {stand} in {_short(each.second)}"
            f"{':' + memory if memory else ''} ({each.example})."
        )
    for domain in domains:
        for side, where in ((domain.train, "of"), (domain.valid, "of the held-out set of")):
            if side.repeats:
                yield (
                    f"{documents(side.repeats)} {where} {domain.name} ({100 * side.repeats / side.documents:.2g}%) "
                    f"{'repeats' if side.repeats == 1 else 'repeat'} an earlier one ({side.repeats_example})."
                )
    if not shared and not any(side.repeats for domain in domains for side in (domain.train, domain.valid)):
        yield "No document occurs twice, within a domain or across domains."


def _short(owner: str) -> str:
    """ "domain 'web'" as "web"; the held-out set keeps its words."""
    return owner.replace("domain '", "").replace("'", "")
