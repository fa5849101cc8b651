"""How well proxies that are merged rank mixtures, beside proxies that are trained and cost as much, on real text.

python benchmarks/merging.py [--quick] [--json FILE] [--output DIR] [--sizes SIZE ...]
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from merging_runs.arms import arms
from merging_runs.pool import run_all
from merging_runs.report import print_report, report_of
from merging_runs.study import DOMAINS, Study, study_of
from rows_file import why_unwritable, write_rows

from mixopt.experiment_file import load_experiment

ROOT = Path(__file__).resolve().parent.parent
BASE_STEPS = {False: 3_000, True: 300}


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
    start = time.monotonic()
    if not options.report:
        for task, _ in run_all(study.tasks(), 2):
            print(f"{(time.monotonic() - start) / 60:5.1f} min  {task.name}", flush=True)
            if options.json is not None and task.name.split()[1] in ("merges", "trained", "short"):
                write(options.json, study)
    report = report_of(study)
    print_report(report)
    if options.json is not None:
        write_rows(options.json, [*report.rows, *report.differences, *report.break_even])
    return 0 if report.rows else 1


def write(path: Path, study: Study) -> None:
    """What can be said by now, so that an interruption leaves it."""
    report = report_of(study)
    if report.rows:
        write_rows(path, [*report.rows, *report.differences, *report.break_even])


def planned(options: argparse.Namespace) -> Study:
    experiment = load_experiment(ROOT / "examples" / "shared-corpus.yaml")
    chosen = [domain for domain in experiment.domains if domain.name in DOMAINS]
    experiment = experiment.model_copy(update={"domains": tuple(chosen), "output": str(options.output.resolve())})
    kept = [arm for arm in arms(options.quick) if options.sizes is None or arm.size in options.sizes]
    return study_of(experiment, kept, BASE_STEPS[options.quick])


if __name__ == "__main__":
    sys.exit(main())
