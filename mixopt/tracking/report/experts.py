"""The section of the report on experts: whether routers collapsed, and which experts see which domain."""

from __future__ import annotations

from collections import Counter
from typing import Any

from mixopt.balance import DEFINITION
from mixopt.history import TrialRecord
from mixopt.tracking.drawings.experts import expert_map, spoken_shares
from mixopt.tracking.findings import ARM_TITLES, Findings
from mixopt.tracking.report.blocks import Drawing, Heading, Prose, Section, Table, missing
from mixopt.tracking.report.measured import arms_of

TITLE = "Experts"


def experts_section(findings: Findings) -> Section:
    """Load, dead experts and entropy of every trial that counted them, and a map for one."""
    balances, collapsed = findings.balances, findings.collapsed
    if not balances:
        text = "Not measured: no finished trial counted what its experts got. Dense proxies have none, and earlier versions did not count."
        return Section("experts", TITLE, [missing(text)])
    told = f"The router has collapsed in {len(collapsed)} of {len(balances)} trials." if collapsed else ""
    even = f"No router has collapsed in {len(balances)} trial{'s' * (len(balances) > 1)}." if not collapsed else ""
    worth = " Their losses are those of smaller proxies, and may rank mixtures otherwise." if collapsed else ""
    blocks: list[Any] = [Prose(f"{even}{worth} {DEFINITION}".strip(), strong=told)]
    if collapsed:
        rows = [[record.trial.trial_id[:8], record.stage, _mixture(record), str(record.trial.seed), how] for record, how in collapsed]
        blocks += [
            Heading("Collapsed routers"),
            Table("Trials with a collapsed router", ["trial", "stage", "mixture", "seed", "how"], rows, words=[1, 2, 4]),
        ]
    shown = expert_map(findings)
    if shown is None:
        blocks.append(missing("By domain: not measured, because no trial in the record scored held-out text of the domains."))
    else:
        alt = f"Share of each domain's tokens that each expert saw, by layer, for {shown.trial}; the shares are in the table"
        cells = [
            [name, str(layer), spoken_shares(shares_E)]
            for layer, shares_NE in enumerate(shown.shares_LNE, start=1)
            for name, shares_E in zip(shown.names, shares_NE, strict=True)
        ]
        caption = f"Share of tokens that an expert saw, largest first, on held-out text and over the last tenth of training: {shown.trial}"
        blocks += [
            Drawing("experts", alt),
            Table(caption, ["domain", "layer", "experts"], cells, words=[2], folded="Experts by domain as a table"),
        ]
    blocks.append(_trials(findings))
    return Section("experts", TITLE, blocks)


def _trials(findings: Findings) -> Table:
    """Every trial's load at a glance; those of the verification first, which decide."""
    order = sorted(findings.balances, key=lambda pair: (pair[0].stage != "verification", pair[0].ordinal))
    layers, uneven = max(len(balance.rows_LE) for _, balance in order), _uneven(findings)
    head = [
        "trial",
        "stage",
        "mixture",
        "seed",
        "dead experts",
        "fullest sees",
        "entropy",
        *(["steps counted"] if uneven else []),
    ]
    rows = []
    for record, balance in order:
        numbers = [
            " ".join(map(str, balance.dead_experts)),
            " ".join(f"{share:.0%}" for share in balance.fullest_shares),
            " ".join(f"{value:.2f}" for value in balance.entropy) or "not measured",
        ]
        who = [record.trial.trial_id[:8], record.stage, _mixture(record), str(record.trial.seed)]
        rows.append([*who, *numbers, *([str(balance.steps)] if uneven else [])])
    by_layer = "one number per layer: " if layers > 1 else ""
    caption = (
        f"Balance over the last tenth of training, {by_layer}dead experts, share of the tokens that the fullest expert sees, and entropy of the "
        "router on held-out text (1 is undecided, 0 certain)"
    )
    return Table(caption, head, rows, words=[1, 2], folded=f"Balance of {len(rows)} trials as a table")


def _uneven(findings: Findings) -> bool:
    """Whether trials of one source counted over different numbers of steps, because an earlier version had begun them."""
    steps = {(record.trial.source.key, record.trial.recipe.get("tokens_per_step"), balance.steps) for record, balance in findings.balances}
    return any(count > 1 for count in Counter(key[:2] for key in steps).values())


def _mixture(record: TrialRecord) -> str:
    arms = arms_of(record)
    return " = ".join(ARM_TITLES.get(arm, arm) for arm in arms) or record.trial.label
