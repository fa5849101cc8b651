"""What the benchmark of merging is about: corpus, base of every size, trials of every arm, and what they are scored on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from merging_runs.arms import STEP, Arm, ArmTrials, Asked, asked_mixtures, base_trial, trials_of
from merging_runs.cost import CostJob
from merging_runs.measure import Measured, MeasureJob, measure, trained_losses
from merging_runs.pool import Task
from merging_runs.rank import Truth, truth_of
from merging_runs.train import train

from mixopt.config import Experiment
from mixopt.corpus.manifest import Manifest
from mixopt.domains import DomainSet
from mixopt.proxy_config import BeginningConfig
from mixopt.runner import Evaluation
from mixopt.trial import Trial, content_digest
from proxy_models import ENGINE_VERSION
from proxy_models.config import proxy_config
from workers.compose import domain_set
from workers.convert import recipe_for
from workers.tokens.prepare import prepare
from workers.trial_folder import TrialFolder

DOMAINS = ("qa_forum", "wiki_zh", "wiki_en", "books", "biomed", "law_de", "code_python", "math_word")
"""Of the shared corpus: what its targets ask for, and what they do not."""
PROBE_TOKENS = 20_000
"""Of all held-out sets together: what a merged proxy is scored on, and a short run."""
FULL_TOKENS = 2_048
"""Of each held-out set: what the mixtures that are really trained are scored on besides."""
PACK = 4


@dataclass(frozen=True)
class Study:
    """Attributes:
    bases: size -> the trial that all its trials begin with.
    """

    store: Path
    manifest: Manifest
    domains: DomainSet
    arms: tuple[Arm, ...]
    bases: Mapping[str, Trial]
    trials: Mapping[Arm, ArmTrials]
    window: int

    def asked(self, arm: Arm) -> list[Asked]:
        return asked_mixtures(self.domains, arm.wide, arm.within)

    @property
    def probe(self) -> tuple[Evaluation, ...]:
        """Held-out sets of domains and targets, `PROBE_TOKENS` in all; for every model."""
        sets = len(self.manifest.domains) + len(self.manifest.targets)
        return _evaluations(self.manifest, self.window, PROBE_TOKENS // sets, "probe")

    @property
    def full(self) -> tuple[Evaluation, ...]:
        """The same sets, twice as much of them; for the mixtures that are really trained."""
        return _evaluations(self.manifest, self.window, FULL_TOKENS, "full")

    @property
    def catalog(self) -> dict[str, Path]:
        return {files.train.content_hash: self.manifest.absolute(files.train) for files in self.manifest.domains.values()}

    def training(self) -> list[Task]:
        """Packs, the bases first; no pack begins before its base is trained."""
        given = partial(_pack_task, self.store, self.catalog)
        tasks = [given(f"base {size}", self.probe, (base,), frozenset()) for size, base in self.bases.items()]
        for arm in self.arms:
            needs = frozenset({f"base {arm.size}"})
            trained = self.trials[arm]
            groups = {
                **{f"components {general}": (self.probe, group) for general, group in trained.components.items()},
                "trained": (self.probe + self.full, trained.trained),
                "again": (self.probe + self.full, trained.again),
                **{f"short {tokens}": (self.probe, group) for tokens, group in trained.short.items()},
            }
            for name, (evaluations, group) in groups.items():
                packs = [group[first : first + PACK] for first in range(0, len(group), PACK)]
                tasks += [given(f"{arm.name} {name} {number}", evaluations, pack, needs) for number, pack in enumerate(packs)]
        return tasks

    def measuring(self) -> list[Task]:
        """What merges and ensembles lose, once components are trained."""
        tasks = []
        for arm in self.arms:
            packs = len(self.domains.names) // PACK
            for general in arm.generals:
                needs = frozenset(f"{arm.name} components {general} {number}" for number in range(packs))
                tasks.append(Task(f"{arm.name} merges {general}", measure, (self._measure_job(arm, general),), needs))
        return tasks

    def tasks(self) -> list[Task]:
        """All, each measurement as soon as its components are there."""
        trained, measured = self.training(), self.measuring()
        ordered: list[Task] = []
        for task in trained:
            ordered.append(task)
            names = {one.name for one in ordered}
            ordered += [one for one in measured if one.needs <= names and one.name not in names]
        return ordered

    def _measure_job(self, arm: Arm, general: float) -> MeasureJob:
        names = self.domains.names
        return MeasureJob(
            store=self.store,
            base=self.bases[arm.size],
            components=self.trials[arm].components[general],
            names=names,
            text=tuple(self.manifest.absolute(self.manifest.domains[name].train) for name in names),
            natural_K=tuple(self.domains.natural().array(names).tolist()),
            weights_MK=tuple(tuple(one.mixture.array(names).tolist()) for one in self.asked(arm)),
            probe=self.probe,
            window=self.window,
            every_operator=arm.every_operator,
            template=Measured(
                evaluator="",
                operator="",
                weights="",
                size=arm.size,
                tokens=arm.horizon,
                schedule=arm.schedule,
                rate_scale=arm.rate_scale,
                general=general,
                losses={},
                shared_flops=0.0,
                each_flops=0.0,
            ),
        )

    def cost_job(self) -> CostJob:
        """Of nano's first components."""
        arm = next(arm for arm in self.arms if arm.size == "nano")
        return CostJob(self.store, self.bases[arm.size], self.trials[arm].components[arm.generals[-1]], self.probe, self.window)

    def measured(self, arm: Arm) -> list[Measured]:
        """Merges and ensembles that were measured by now."""
        jobs = [self._measure_job(arm, general) for general in arm.generals]
        found = [one for job in jobs if job.path.exists() for one in measure(job)]
        return [self._with_costs(arm, one) for one in found]

    def _with_costs(self, arm: Arm, measured: Measured) -> Measured:
        """Components, and the probe: once more for each merge, once for each component of an ensemble, whose mixtures are then free."""
        components = len(self.domains.names)
        training, scoring = components * self._training_flops(arm.size, arm.horizon), self._scoring_flops(arm.size)
        if measured.evaluator == "ensemble":
            return replace(measured, shared_flops=training + components * scoring, each_flops=0.0)
        return replace(measured, shared_flops=training, each_flops=scoring)

    def trained(self, arm: Arm, trials: Sequence[Trial], evaluations: Sequence[Evaluation]) -> Measured | None:
        """Trials of one length as an evaluator; None where some are not done."""
        losses = trained_losses(trials, lambda trial_id: TrialFolder(self.store, trial_id).read_outcome(), evaluations)
        if losses is None or not trials:
            return None
        tokens = trials[0].source.tokens
        flops = self._training_flops(arm.size, tokens) + self._scoring_flops(arm.size)
        return Measured("trained", "", "", arm.size, tokens, arm.schedule, arm.rate_scale, None, losses, 0.0, flops)

    def truth(self, arm: Arm) -> Truth | None:
        """None where the mixtures are not trained yet."""
        first = self.trained(arm, self.trials[arm].trained, self.full)
        again = self.trained(arm, self.trials[arm].again, self.full)
        if first is None:
            return None
        names = self.domains.names
        mixtures = np.array([one.mixture.array(names) for one in self.asked(arm)])
        return truth_of(first, None if again is None else again.losses, arm.wide, mixtures, self.domains.natural().array(names))

    def _training_flops(self, size: str, tokens: int) -> float:
        return proxy_config(size, self.manifest.vocab_size).training_flops_per_token(self.window) * tokens

    def _scoring_flops(self, size: str) -> float:
        """Of the probe, by one model: a forward pass."""
        tokens = sum(one.max_tokens or 0 for one in self.probe)
        return proxy_config(size, self.manifest.vocab_size).forward_flops_per_token(self.window) * tokens


def study_of(experiment: Experiment, planned: Sequence[Arm], base_steps: int) -> Study:
    """Prepares tokens where they are missing.

    Args:
        base_steps: of the bases.
    """
    manifest = prepare(experiment)
    domains = domain_set(experiment, manifest)
    proxy = experiment.proxy.model_copy(update={"learning_rate": None, "schedule": "constant", "tokens_per_step": STEP})
    begun = {kind: proxy.model_copy(update={"beginning": BeginningConfig(kind=kind)}) for kind in ("scratch", "continued")}
    sizes = list(dict.fromkeys(arm.size for arm in planned))
    recipes = {kind: {size: recipe_for(begun[kind], size, manifest.vocab_size) for size in sizes} for kind in begun}
    bases = {
        size: base_trial(domains, size, base_steps * STEP, recipes["scratch"][size], manifest.tokenizer_hash, ENGINE_VERSION)
        for size in sizes
    }
    trials = {arm: trials_of(arm, domains, bases[arm.size], recipes["continued"][arm.size]) for arm in planned}
    return Study(experiment.output_dir, manifest, domains, tuple(planned), bases, trials, proxy.window)


def _evaluations(manifest: Manifest, window: int, tokens: int, which: str) -> tuple[Evaluation, ...]:
    held_out = [(f"valid/{name}", files.kind, files.valid) for name, files in manifest.domains.items()]
    held_out += [(f"target/{name}", target.kind, target.file) for name, target in manifest.targets.items()]
    return tuple(
        Evaluation(
            key=content_digest([file.content_hash, kind, window, tokens, which]),
            metric=metric,
            kind=kind,
            path=manifest.absolute(file),
            max_tokens=tokens,
            curve_tokens=1,  # the least there is: nobody looks at the points before the end
        )
        for metric, kind, file in held_out
    )


def _pack_task(
    store: Path,
    catalog: Mapping[str, Path],
    name: str,
    evaluations: Sequence[Evaluation],
    trials: tuple[Trial, ...],
    needs: frozenset[str],
) -> Task:
    return Task(name, train, (store, dict(catalog), tuple(evaluations), trials), needs)
