"""What the benchmark of merging is about: corpus, base of every size, trials of every arm, and what they are scored on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from merging_runs.arms import STEP, Arm, ArmTrials, Asked, asked_mixtures, base_trial, trials_of
from merging_runs.pool import Task
from merging_runs.train import train

from mixopt.config import Experiment
from mixopt.corpus.manifest import Manifest
from mixopt.domains import DomainSet
from mixopt.proxy_config import BeginningConfig
from mixopt.runner import Evaluation
from mixopt.trial import Trial, content_digest
from proxy_models import ENGINE_VERSION
from workers.compose import domain_set
from workers.convert import recipe_for
from workers.tokens.prepare import prepare

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
        size: base_trial(domains, size, base_steps * STEP, recipes["scratch"][size], manifest.tokenizer_hash, ENGINE_VERSION) for size in sizes
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
