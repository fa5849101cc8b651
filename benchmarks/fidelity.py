"""How well small proxies rank mixtures as larger ones do, on real text, beside what seed noise allows.

    python benchmarks/fidelity.py [--quick] [--json FILE] [--output DIR] [--arms NAME ...] [--experiment FILE]

The same mixtures (natural, uniform, UniMax, two corners, then draws of a search's own design) are trained at every arm: nano on 1M tokens, micro on
1.5M, small on 1M, and nano with one thing changed: a tenth and a hundredth of the rate, a constant rate, no epoch matching, a quarter of the tokens.
Earlier points of nano's curves are compared too. On a GPU: 48 mixtures at every size up to medium.

Every proxy is trained from scratch at its size's rate, whatever the experiment file says. Losses are bits per byte on the corpus's 11 targets and
14 held-out sets, each arm's on the subset that a search would score. The table gives Spearman's correlation and the share of pairs ordered alike (pairwise decision accuracy), with 90% intervals over mixtures, next to the ceiling: the mean
of both if the two arms ranked the noise-free mixtures identically, given each arm's noise over seeds (two seeds at natural, uniform and the corners).
noise, signal: standard deviations of the arm over seeds, and over mixtures without the noise's share.

Resumable: trials are those of a search with the same output, and are kept there. Run it again to go on. --quick (200K tokens, 6 mixtures)
shows that it works; its numbers mean little.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rows_file import why_unwritable, write_rows
from transfer.arms import Arm, arms, trials_of
from transfer.table import Measured, Row, compare, measured_of, print_rows

from mixopt.experiment_file import load_experiment
from mixopt.proxy_config import BeginningConfig
from mixopt.runner import Completed, Failed, Runner
from mixopt.trial import Outcome, Trial
from proxy_models import ENGINE_VERSION
from workers.compose import domain_set
from workers.convert import recipe_for
from workers.evaluations import plan_evaluations
from workers.tokens.prepare import prepare

ROOT = Path(__file__).resolve().parent.parent
REFERENCES = ("micro", "small", "medium")
"""Arms that others are compared with."""


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="three arms of 200K tokens and 5 or 6 mixtures: under five minutes")
    parser.add_argument("--experiment", type=Path, default=ROOT / "examples" / "shared-corpus.yaml", help="whose corpus and targets")
    parser.add_argument("--output", type=Path, help="where tokens and trials are kept; default: the experiment's own")
    parser.add_argument("--arms", nargs="+", help="only these, by name")
    parser.add_argument("--gpu", action="store_true", help="the arms of a GPU")
    parser.add_argument("--in-process", action="store_true", help="one core, without Ray")
    parser.add_argument("--report", action="store_true", help="train nothing; compare what is there")
    parser.add_argument("--json", type=Path, help="also write the rows there")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    if "MIXOPT_SHARED" not in os.environ and options.experiment.name == "shared-corpus.yaml":
        print("Set MIXOPT_SHARED to the shared data folder (it holds data/corpus), or name another --experiment.", file=sys.stderr)
        return 2
    if options.json is not None and (why := why_unwritable(options.json)) is not None:
        print(why, file=sys.stderr)
        return 2
    planned = arms(options.quick, options.gpu)
    unknown = sorted(set(options.arms or []) - {arm.name for arm in planned})
    if unknown:
        print(f"Unknown arms {', '.join(unknown)}; known: {', '.join(arm.name for arm in planned)}.", file=sys.stderr)
        return 2
    study = Study(options, [arm for arm in planned if options.arms is None or arm.name in options.arms])
    start = time.monotonic()
    try:
        if not options.report:
            study.train()
    except KeyboardInterrupt:
        print("\nInterrupted; run it again to go on. What can be compared by now:", file=sys.stderr)
    rows = study.rows()
    print_rows(rows, per_target=False)
    print()
    print_rows([row for row in rows if row.arm in ("nano", "micro")], per_target=True)
    print(
        f"\n{study.trained} trials trained in {(time.monotonic() - start) / 60:.1f} minutes, {len(study.outcomes) - study.trained} reused."
    )
    if options.json is not None:
        write_rows(options.json, rows)
    return 0 if rows else 1


class Study:
    """The trials of all arms, their outcomes as they come, and what they say."""

    def __init__(self, options: argparse.Namespace, planned: Sequence[Arm]) -> None:
        experiment = load_experiment(options.experiment)
        if options.output is not None:
            experiment = experiment.model_copy(update={"output": str(options.output.resolve())})
        manifest = prepare(experiment)
        domains = domain_set(experiment, manifest)
        own = experiment.proxy.model_copy(update={"learning_rate": None, "beginning": BeginningConfig()})
        self.trials: dict[Arm, list[Trial]] = {
            arm: trials_of(arm, domains, recipe_for(own, arm.size, manifest.vocab_size), manifest.tokenizer_hash, ENGINE_VERSION)
            for arm in planned
        }
        self.evaluations = {arm.source.key: plan_evaluations(manifest, arm.tokens, own.window, None) for arm in planned}
        self.catalog = {files.train.content_hash: manifest.absolute(files.train) for files in manifest.domains.values()}
        self.outcomes: dict[str, Outcome] = {}
        self.trained = 0
        self._store, self._in_process = experiment.output_dir, options.in_process
        self._read_back()

    def _read_back(self) -> None:
        """Outcomes of trials that are scored on all that is asked."""
        from workers.trial_folder import TrialFolder, measured_at_end

        for arm, trials in self.trials.items():
            wanted = {evaluation.key for evaluation in self.evaluations[arm.source.key]}
            for trial in trials:
                outcome = TrialFolder(self._store, trial.trial_id).read_outcome()
                if outcome is not None and wanted <= measured_at_end(outcome):
                    self.outcomes[trial.trial_id] = outcome

    def train(self) -> None:
        """What is missing, arm by arm."""
        missing = [[trial for trial in trials if trial.trial_id not in self.outcomes] for trials in self.trials.values()]
        if not any(missing):
            return
        runner = self._runner()
        try:
            for arm, trials in zip(self.trials, missing, strict=True):
                print(f"{arm.name}: {len(self.trials[arm]) - len(trials)} trials there, {len(trials)} to train", flush=True)
                runner.submit(trials)
            for event in runner.events():
                if isinstance(event, Completed):
                    self.outcomes[event.trial_id] = event.outcome
                    self.trained += 1
                elif isinstance(event, Failed):
                    print(f"{event.trial_id} failed: {event.failure.message}", file=sys.stderr)
        finally:
            runner.close()

    def _runner(self) -> Runner:
        if self._in_process:
            from workers.local import LocalRunner

            return LocalRunner(self._store, self.catalog, self.evaluations)
        from workers.ray_runner import RayRunner

        return RayRunner(self._store, self.catalog, self.evaluations)

    def rows(self) -> list[Row]:
        """Every arm against each reference after it, the earlier points of nano's curves too."""
        measured = {arm.name: self._measured(arm) for arm in self.trials}
        ends = {name: points[0] for name, points in measured.items() if points}
        rows: list[Row] = []
        for reference in REFERENCES:
            if reference not in ends:
                continue
            names = [name for name in ends if name not in REFERENCES[REFERENCES.index(reference) :]]
            for name in names:
                rows += compare(ends[name], ends[reference])
            for point in measured.get("nano", [])[1:]:
                rows += compare(point, ends[reference])
        return rows

    def _measured(self, arm: Arm) -> list[Measured]:
        metrics = {evaluation.key: evaluation.metric for evaluation in self.evaluations[arm.source.key]}
        return measured_of(arm, self.trials[arm], self.outcomes, metrics)


if __name__ == "__main__":
    sys.exit(main())
