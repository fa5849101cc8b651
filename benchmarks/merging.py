"""How well proxies that are merged rank mixtures, beside proxies that are trained and cost as much, on real text.

    python benchmarks/merging.py [--quick] [--json FILE] [--output DIR] [--sizes SIZE ...] [--report]

Eight domains and all targets of the shared corpus. Nano and micro are trained on the natural mixture first; from that base, at constant rate, continue the components
(one domain each, with a general share beta of the natural mixture), the mixtures that are to be ranked, and shorter runs of these. What is ranked are the same 16
mixtures everywhere, as a search's own design draws them (`merging_runs/arms.py`), and 8 more within reach of components with half general data. The evaluators:

- merged: weighted merges of the components, by operator; ensemble: of the components' token probabilities; both scored on a probe of 20,000 tokens in all;
- trained: runs of half, a third and a twelfth of the tokens. Eight components cost as much as 16 runs of half the tokens, or 100 of a twelfth; 100 runs of a third
  cost four times as much;
- regression: ridge on the mixture, or on it and what an evaluator predicts for all targets, each run predicted from the others.

The truth is the loss of the mixtures that were really trained, on other rows and more of them. Rows hold Spearman's correlation with 90% intervals over mixtures, and among
the best quarter; FLOPs are of components and scoring, without the base, which all share. Two more tables answer whether merging pays: differences against
trained proxies of equal cost, and of four times the cost for 100 mixtures, both evaluators resampled together; and from how many mixtures on components are cheaper
than training each (`merging_runs/report.py`). A last one has time and memory of 1,000 merges of nano, at once and one by one through files (`merging_runs/cost.py`).

Resumable: trials and measurements are kept in --output; run it again to go on. --quick shows that it works; its numbers mean little.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from merging_runs.arms import arms
from merging_runs.cost import CostRow, measured_costs, print_costs
from merging_runs.pool import run_all
from merging_runs.report import print_report, report_of
from merging_runs.study import DOMAINS, Study, study_of
from rows_file import why_unwritable, write_rows

from mixopt.experiment_file import load_experiment

ROOT = Path(__file__).resolve().parent.parent
BASE_STEPS = {False: 3_000, True: 300}
MERGES = {False: 1_000, True: 100}
"""That are scored at once and one by one."""
PROCESSES = 2


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one horizon of nano, few mixtures: under five minutes")
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "merging", help="where tokens and trials are kept")
    parser.add_argument("--sizes", nargs="+", choices=("nano", "micro"), help="only these")
    parser.add_argument("--report", action="store_true", help="train nothing; compare what is there")
    parser.add_argument("--json", type=Path, help="also write the rows there")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    if "MIXOPT_SHARED" not in os.environ:
        print("Set MIXOPT_SHARED to the shared data folder (it holds data/corpus).", file=sys.stderr)
        return 2
    if options.json is not None and (why := why_unwritable(options.json)) is not None:
        print(why, file=sys.stderr)
        return 2
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    study = planned(options)
    if not options.report:
        run(study, options)
    report = report_of(study)
    costs = kept_costs(study)
    print_report(report)
    if costs:
        print()
        print_costs(costs)
    if options.json is not None:
        write_rows(options.json, [*report.rows, *report.differences, *report.break_even, *costs])
    return 0 if report.rows else 1


def planned(options: argparse.Namespace) -> Study:
    experiment = load_experiment(ROOT / "examples" / "shared-corpus.yaml")
    chosen = [domain for domain in experiment.domains if domain.name in DOMAINS]
    experiment = experiment.model_copy(update={"domains": tuple(chosen), "output": str(options.output.resolve())})
    kept = [arm for arm in arms(options.quick) if options.sizes is None or arm.size in options.sizes]
    return study_of(experiment, kept, BASE_STEPS[options.quick])


def run(study: Study, options: argparse.Namespace) -> None:
    """Trains and measures what is missing; rows are written as they come, so that an interruption leaves some."""
    start = time.monotonic()
    for task, _ in run_all(study.tasks(), PROCESSES):
        print(f"{(time.monotonic() - start) / 60:5.1f} min  {task.name}", flush=True)
        if options.json is not None and task.name.split()[1] == "merges" and (report := report_of(study)).rows:
            write_rows(options.json, [*report.rows, *report.differences, *report.break_even, *kept_costs(study)])
    if not kept_costs(study) and any(arm.size == "nano" for arm in study.arms):
        costs = measured_costs(study.cost_job(), MERGES[options.quick])
        costs_path(study).write_text(json.dumps([asdict(one) for one in costs]), encoding="utf-8")


def costs_path(study: Study) -> Path:
    return study.store / "costs.json"


def kept_costs(study: Study) -> list[CostRow]:
    """Measured by an earlier command, if any."""
    path = costs_path(study)
    return [CostRow(**one) for one in json.loads(path.read_text(encoding="utf-8"))] if path.exists() else []


if __name__ == "__main__":
    sys.exit(main())
