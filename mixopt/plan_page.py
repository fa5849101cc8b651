"""The plan on a terminal: what does not fit first, then the tables, then what the numbers rest on."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from mixopt.cost import Advice, Disk, DomainEpochs, Memory, NoiseKnown, Plan, Preparation, Stage
from mixopt.terminal import quantity

MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0
AT_MOST = "\N{LESS-THAN OR EQUAL TO}"


def show_plan(plan: Plan, console: Console) -> None:
    """Prints the plan."""
    known = f"search {plan.search_id[:8]}, " if plan.search_id else ""
    _say(
        console,
        f"Plan of {plan.name}: {known}{len(plan.domains)} domains, for a run of {quantity(plan.budget_tokens)} tokens; on "
        f"{plan.machine.where} with {_counted(plan.machine.slots, 'slot')} ({'GPUs' if plan.machine.device == 'cuda' else 'cores'}).",
    )
    for problem in plan.problems:
        _say(console, f"Problem: {problem.message} {problem.remedy}", style="red")
    console.print(_stages_table(plan))
    for stage in plan.stages:
        _say(console, f"{stage.name.capitalize()}: {stage.what}; measuring losses adds {stage.measuring_share:.0%} to the training.")
    _say(console, _time(plan))
    for size_name, speed in dict.fromkeys((stage.source.split("/")[1], stage.speed) for stage in plan.stages):
        _say(console, f"Speed of {size_name}: {speed.flops_per_second / 1e9:.3g} GFLOP/s per slot, {speed.sentence}.")
    _say(console, f"Memory: {_memory(plan.memory, plan)}.")
    _say(console, f"Disk: {_disk(plan.disk, plan)}.")
    console.print(_epochs_table(plan.domains))
    for warning in plan.warnings:
        _say(console, f"Note well: {warning}")
    _show_noise(plan.noise, console)
    for one in plan.averages:
        _say(console, f"{one.sentence[0].upper()}{one.sentence[1:]}.")
    if plan.calibration:
        _say(console, f"Calibration: {plan.calibration}")
    _show_advice(plan.advice, plan, console)
    for note in plan.notes:
        _say(console, note)


def duration(seconds: float) -> str:
    """As people say it: 42 s, 14 min, 3.6 h, 12 days."""
    if seconds < 2 * MINUTE:
        return f"{seconds:.0f} s"
    if seconds < 2 * HOUR:
        return f"{seconds / MINUTE:.0f} min"
    if seconds < 2 * DAY:
        return f"{seconds / HOUR:.3g} h"
    return f"{seconds / DAY:,.0f} days"


def size(value: float) -> str:
    """Bytes as people read them: 48 MB, 2.5 GB."""
    for scale, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "KB")):
        if value >= scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value:.0f} bytes"


def _stages_table(plan: Plan) -> Table:
    table = Table(title="Cost", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("", overflow="fold")
    for name in ("trials", "in the\nrecord", "tokens", "FLOPs", "one\ntrial", "packs\nleft", "time\nleft"):
        table.add_column(name, justify="right", no_wrap=True)
    for stage in plan.stages:
        _, proxy, tokens = stage.source.split("/")
        most = AT_MOST if stage.at_most else ""
        table.add_row(
            f"{stage.name}\n  {proxy}, {quantity(int(tokens))}",
            f"{most}{stage.trials}",
            str(stage.reused),
            f"{most}{quantity(stage.tokens)}",
            f"{most}{_flops(stage.flops)}",
            duration(stage.seconds_per_trial),
            _packs(stage, most),
            duration(stage.seconds),
        )
    if len(plan.stages) > 1:
        most = AT_MOST if any(stage.at_most for stage in plan.stages) else ""
        reused, seconds = sum(stage.reused for stage in plan.stages), sum(stage.seconds for stage in plan.stages)
        total = ["total", f"{most}{plan.trials}", str(reused), f"{most}{quantity(plan.tokens)}", f"{most}{_flops(plan.flops)}"]
        table.add_row(*total, "", "", duration(seconds), style="bold")
    return table


def _packs(stage: Stage, most: str) -> str:
    """As 12 x 4; where the places of a pack are given on to trials that wait, as 1, 4 at once."""
    if not stage.packs:
        return "none"
    waiting = stage.trials - stage.reused > stage.packs * stage.pack_size
    return f"{stage.packs}, {most}{stage.pack_size} at once" if waiting else f"{stage.packs} x {most}{stage.pack_size}"


def _flops(value: float) -> str:
    """As 1.15e14."""
    digits, _, exponent = f"{value:.2e}".partition("e")
    return f"{digits}e{int(exponent)}"


def _time(plan: Plan) -> str:
    return f"Time: {duration(plan.seconds)} in all. Preparing the corpus: {_preparation(plan.preparation)}."


def _preparation(preparation: Preparation) -> str:
    if preparation.done or preparation.seconds is None or preparation.text_bytes is None:
        return preparation.sentence
    return f"{duration(preparation.seconds)} for {size(preparation.text_bytes)} of text, {preparation.sentence}"


def _memory(memory: Memory, plan: Plan) -> str:
    slots = plan.machine.slots
    packs = f"{slots} packs of {size(memory.pack_bytes)}" if slots > 1 else f"a pack of {size(memory.pack_bytes)}"
    there = "unknown how much is available" if plan.machine.memory_bytes is None else f"{size(plan.machine.memory_bytes)} available"
    on_gpu = f"; of each GPU a pack takes {size(memory.device_bytes)} (arithmetic, not measured)" if memory.device_bytes else ""
    return f"{packs}, {size(memory.driver_bytes)} for the driver and Ray: {size(memory.total_bytes)}; {there}{on_gpu}"


def _disk(disk: Disk, plan: Plan) -> str:
    tokens = "tokens unknown" if disk.tokens_bytes is None else f"tokens {size(disk.tokens_bytes)}"
    parts = [tokens, f"trials {size(disk.trials_bytes)}", f"record {size(disk.record_bytes)}"]
    if disk.mlflow_bytes:
        parts.append(f"MLflow {size(disk.mlflow_bytes)}")
    parts.append(f"figures and report {size(disk.results_bytes)}")
    there = "unknown how much is free" if plan.machine.disk_bytes is None else f"{size(plan.machine.disk_bytes)} free"
    while_running = f"; up to {size(disk.checkpoints_bytes)} more for checkpoints while trials run" if disk.checkpoints_bytes else ""
    return f"{', '.join(parts)}: {size(disk.lasting_bytes)}{while_running}; {size(disk.needed_bytes)} still to come, {there}"


def _epochs_table(domains: tuple[DomainEpochs, ...]) -> Table:
    title = "Epochs of each domain: of the target run / of a proxy of the search"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("domain", overflow="fold")
    for name in ("tokens", "cap", "natural", "UniMax", "at\nhand", "seen by\na proxy", ""):
        table.add_column(name, justify="right", no_wrap=True)
    for domain in domains:
        table.add_row(
            domain.name,
            f"{'about ' * (domain.token_count_source == 'estimated')}{quantity(domain.target_tokens)}",
            f"{domain.max_epochs:g}",
            f"{_epochs(domain.natural_epochs)}/{_epochs(domain.proxy_natural_epochs)}",
            f"{_epochs(domain.unimax_epochs)}/{_epochs(domain.proxy_unimax_epochs)}",
            "?" if domain.prepared_tokens is None else quantity(domain.prepared_tokens),
            quantity(domain.unique_tokens),
            domain.note,
        )
    return table


def _epochs(value: float) -> str:
    return f"{value:.2f}" if value < 100 else f"{value:.0f}"


def _show_noise(noise: NoiseKnown, console: Console) -> None:
    _say(console, f"Noise: {noise.sentence}")
    known = [f"{_short(target.metric)} {target.seed_std:.2g}" for target in noise.targets if not target.screened]
    for target in noise.targets:
        if target.screened:
            _say(console, f"  {_short(target.metric)}: {target.screened}")
    if known:
        _say(console, f"  Seed noise in bits per byte of those that are not: {', '.join(known)}.")


def _show_advice(advice: Advice, plan: Plan, console: Console) -> None:
    stage: Stage = plan.search
    name = stage.source.split("/")[1]
    _say(console, f"Proxy size: {advice.evidence}")
    of_it = f"of these {quantity(stage.embedding_parameters)} in the embedding"
    if advice.enough:
        _say(console, f"  {name} has {quantity(advice.search_active_parameters)} active parameters ({of_it}): enough by this evidence.")
        return
    _say(
        console,
        f"  {name} has {quantity(advice.search_active_parameters)} active parameters ({of_it}), {advice.asked_active_parameters / advice.search_active_parameters:.0f} "
        f"times fewer than the evidence asks for where the target has billions. Its ranking of mixtures may not hold there; verification at a larger "
        f"size tells more.",
    )
    _say(
        console,
        f"  {_counted(stage.trials, 'trial')} of the smallest proxy that has enough ({advice.size}, {quantity(advice.active_parameters)} active, "
        f"{quantity(advice.flops_per_token)} FLOPs per token: {advice.counting}) would take:",
    )
    for budget in advice.budgets:
        _say(
            console,
            f"  - with {quantity(budget.tokens)} tokens each ({budget.rule}): {_flops(budget.flops)} FLOPs, {duration(budget.seconds_here)} here, "
            f"{duration(budget.seconds_gpu)} on one GPU",
        )
    _say(console, f"  Here: at the speed of {name} on all slots. One GPU: {advice.gpu}.")


def _short(metric: str) -> str:
    return metric.removeprefix("target/")


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _say(console: Console, text: str, style: str | None = None) -> None:
    """A sentence: broken at the width of a terminal, whole where there is none."""
    console.print(text, style=style, highlight=False, markup=False, soft_wrap=not console.is_terminal)
