"""Merged and ensembled trials in worker processes: their scores against slow ways of having them, and what is kept, lost and gone on from."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from mixopt.components.family import Family, component_factory, family_of
from mixopt.domains import Domain, DomainSet
from mixopt.factory import TrialFactory
from mixopt.mixture import Mixture, Schedule
from mixopt.proxy_config import ProxyConfig as ProxySettings
from mixopt.runner import Evaluation
from mixopt.trial import FailureKind, Outcome, Source, Trial
from proxy_models.checkpoint import load_checkpoint
from proxy_models.evaluate import EvaluationSet, evaluate
from proxy_models.merging.components import StoredComponent
from proxy_models.merging.merge import merge
from proxy_models.model import PackedProxy
from proxy_models.token_store import TokenWriter
from workers.averages import operator_of, write_merge
from workers.components import component_recipe
from workers.control import DriverControl
from workers.convert import evaluation_of, proxy_of, recipe_for
from workers.packing import plan_packs
from workers.train_pack import PackJob, TrialResult, run_pack
from workers.trial_folder import TrialFolder

NAMES = ("a", "b", "c")


@dataclasses.dataclass(frozen=True)
class Scene:
    """A base and three components, trained, and two held-out sets."""

    job: PackJob
    family: Family

    def trial(self, *weights: float, evaluator: str = "merged", operator: str = "linear") -> Trial:
        """The average with these weights."""
        family = dataclasses.replace(self.family, operator={"kind": operator})
        return family.maker(evaluator).make(Schedule.constant(family.mixture(np.array(weights))), 0, "x")

    def run(self, *trials: Trial) -> list[TrialResult]:
        return run_pack(dataclasses.replace(self.job, trials=trials))

    def outcomes(self, *trials: Trial) -> list[Outcome]:
        found = {result.trial_id: result for result in self.run(*trials)}
        assert all(result.outcome for result in found.values()), [result.failure for result in found.values()]
        return [outcome for trial in trials if (outcome := found[trial.trial_id].outcome) is not None]

    def sets(self) -> list[EvaluationSet]:
        return [EvaluationSet(evaluation_of(one), 64) for one in self.job.evaluations]

    def states(self) -> list[dict[str, torch.Tensor]]:
        return [dict(load_checkpoint(TrialFolder(self.job.store, t.trial_id).weights_path).part("model")) for t in self.family.trials]


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    folder = tmp_path_factory.mktemp("averages")
    rng = np.random.default_rng(0)
    files = {}
    for place, name in enumerate((*NAMES, "held-out", "other")):
        path = folder / f"{name}.tokens"
        with TokenWriter(path, 512, "tokenizer") as writer:
            for _ in range(4):
                writer.add((rng.integers(1, 120, 300) + 100 * (place % 3)).tolist(), text_bytes=1000)
            writer.close(f"content-{name}")
        files[name] = path
    domains = DomainSet(tuple(Domain(name, f"content-{name}", 1200, 1e6) for name in NAMES), 3e6)
    recipe = recipe_for(ProxySettings(window=64, tokens_per_step=128, tokens=1024, schedule="constant"), "nano", 512)
    base = TrialFactory(domains, Source("trained", "nano", 2048), recipe, "tokenizer", "1").make(
        Schedule.constant(domains.natural()), 0, "base"
    )
    continued = component_recipe({**recipe, "beginning": {"kind": "continued"}}, frozen=False)
    factory = component_factory(domains, Source("trained", "nano", 1024), continued, base)
    family = family_of(domains, base, factory.make, domains.natural(), 0.25, 0, {"kind": "linear"})
    evaluations = (
        Evaluation("key-1", "valid/a", "text", files["held-out"], 256, 64, "key-1-curve"),
        Evaluation("key-2", "valid/b", "text", files["other"], 256),
    )
    catalog = {f"content-{name}": files[name] for name in NAMES}
    job = PackJob("pack", folder, DriverControl(folder / "control").folder, (), catalog, evaluations)
    for trials in ((base,), family.trials):
        assert all(result.outcome for result in run_pack(dataclasses.replace(job, trials=trials)))
    return Scene(job, family)


def losses(outcome: Outcome) -> dict[str, float]:
    return {m.evaluation_key: m.loss_nats for m in outcome.measurements}


@pytest.mark.parametrize("operator", ["linear", "task_arithmetic", "ties", "dare", "spherical", "breadcrumbs"])
def test_a_merged_trial_is_scored_as_its_merge_is(scene: Scene, operator: str) -> None:
    trials = [scene.trial(*weights, operator=operator) for weights in ((0.5, 0.3, 0.2), (0.0, 0.1, 0.9))]
    components = [StoredComponent(t.trial_id, TrialFolder(scene.job.store, t.trial_id).weights_path) for t in scene.family.trials]
    base = StoredComponent("base", TrialFolder(scene.job.store, scene.family.base.trial_id).weights_path)
    for trial, outcome in zip(trials, scene.outcomes(*trials), strict=True):
        weights = {one.name: trial.recipe["merge"]["weights"].get(one.name, 0.0) for one in components}
        model = PackedProxy(proxy_of(trial), [0])
        model.load_member_state(0, merge(components, weights, operator_of({"kind": operator}), base))
        wanted = {score.key: score.loss_nats for score in evaluate(model, scene.sets(), "end")[0]}
        found = losses(outcome)
        assert {key: found[key] for key in wanted} == pytest.approx(wanted, rel=2e-6)
        assert found.keys() == {"key-1", "key-1-curve", "key-2"}
        assert outcome.trained_tokens == 0
        shares = {key: shares[0] for key, shares in outcome.realized.items()}
        assert shares == pytest.approx({f"content-{name}": w for name, w in trial.schedule.average().as_dict().items()})


def test_every_merge_comes_with_how_far_components_have_gone_and_how_they_route(scene: Scene) -> None:
    (outcome,) = scene.outcomes(scene.trial(0.2, 0.2, 0.6))
    merge = outcome.diagnostics["merge"]
    assert 0 < merge["displacement"] <= merge["largest_displacement"] < 1
    assert 0 < merge["lowest_agreement"] <= merge["agreement"] <= 1
    assert 0 < merge["agreement_with_base"] <= 1
    assert isinstance(merge["dead_experts"], list)
    assert merge["tokens"] > 100


def test_one_component_merged_alone_is_that_component(scene: Scene) -> None:
    (outcome,) = scene.outcomes(scene.trial(0.0, 1.0, 0.0))
    trained = TrialFolder(scene.job.store, scene.family.trials[1].trial_id).read_outcome()
    assert trained is not None
    ends = {m.evaluation_key: m.loss_nats for m in trained.measurements if m.tokens == trained.tokens}
    assert losses(outcome) == pytest.approx(ends, rel=1e-9)


def test_a_linear_merge_extrapolates(scene: Scene) -> None:
    """Less of domain a than the general share: its weight is below zero."""
    trial = scene.trial(-0.1, 0.4, 0.7)
    assert min(trial.recipe["merge"]["weights"].values()) == pytest.approx(-0.1)
    (outcome,) = scene.outcomes(trial)
    state: dict[str, torch.Tensor] = {}
    for name in scene.states()[0]:
        parts = [one[name].double() for one in scene.states()]
        state[name] = sum((w * part for w, part in zip((-0.1, 0.4, 0.7), parts, strict=True)), torch.zeros(())).float()
    model = PackedProxy(proxy_of(trial), [0])
    model.load_member_state(0, state)
    wanted = {score.key: score.loss_nats for score in evaluate(model, scene.sets(), "end")[0]}
    found = losses(outcome)
    assert {key: found[key] for key in wanted} == pytest.approx(wanted, rel=2e-6)


def test_an_ensembled_trial_is_the_average_of_probabilities(scene: Scene) -> None:
    weights = (0.6, 0.1, 0.3)
    (outcome,) = scene.outcomes(scene.trial(*weights, evaluator="ensemble"))
    for one in scene.sets():
        by_token = []
        for state in scene.states():
            model = PackedProxy(proxy_of(scene.family.trials[0]), [0])
            model.load_member_state(0, state)
            rows = []
            for tokens_BS, counts_BT in one.batches("end"):
                batch = model.token_losses(torch.from_numpy(tokens_BS)[None])[0].double().detach().numpy()
                rows += batch[counts_BT].tolist()
            by_token.append(rows)
        probability = sum(w * np.exp(-np.array(rows)) for w, rows in zip(weights, by_token, strict=True))
        assert losses(outcome)[one.spec.key] == pytest.approx(float(-np.log(probability).mean()), rel=1e-5)


def test_a_components_probabilities_are_had_once(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.outcomes(scene.trial(0.5, 0.2, 0.3, evaluator="ensemble"))
    for trial in scene.family.trials:
        assert TrialFolder(scene.job.store, trial.trial_id).token_losses_path.exists()
    monkeypatch.setattr("proxy_models.ensemble.token_losses", None)
    scene.outcomes(scene.trial(0.5, 0.3, 0.2, evaluator="ensemble"))


def test_a_finished_average_is_read_back_and_a_lost_component_is_said(scene: Scene) -> None:
    known, new = scene.trial(0.1, 0.1, 0.8), scene.trial(0.1, 0.8, 0.1)
    (before,) = scene.outcomes(known)
    path = TrialFolder(scene.job.store, scene.family.trials[2].trial_id).weights_path
    hidden = path.rename(path.with_suffix(".away"))
    try:
        assert scene.outcomes(known) == [before]
        (result,) = scene.run(new)
    finally:
        hidden.rename(path)
    assert result.failure is not None
    assert result.failure.kind is FailureKind.DATA
    assert scene.family.trials[2].trial_id[:8] in result.failure.message


def test_what_a_killed_process_had_scored_is_there(scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Results are written one by one: a process that dies in the second pack leaves the first, and the next one scores the rest only."""
    trials = [scene.trial(w, 0.35 - w, 0.65) for w in (0.05, 0.15, 0.25)]
    written = TrialFolder.write_outcome

    def dies_at_the_second(self: TrialFolder, spec: dict[str, object], outcome: Outcome) -> None:
        if self.trial_id == trials[1].trial_id:
            raise KeyboardInterrupt
        written(self, spec, outcome)

    monkeypatch.setattr(TrialFolder, "write_outcome", dies_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        scene.run(*trials)
    monkeypatch.undo()
    folders = [TrialFolder(scene.job.store, trial.trial_id) for trial in trials]
    assert [folder.read_outcome() is not None for folder in folders] == [True, False, False]
    first = folders[0].result_path.read_text(encoding="utf-8")
    assert all(result.outcome for result in scene.run(*trials))
    assert folders[0].result_path.read_text(encoding="utf-8") == first
    assert json.loads(first)["trial"]["source"][0] == "merged"


def test_averages_share_packs_whatever_their_weights(scene: Scene) -> None:
    trials = [scene.trial(w, 1 - w, 0.0) for w in np.linspace(0.05, 0.95, 20).tolist()]
    packs = plan_packs([*trials, scene.family.trials[0]], slots=1)
    assert sorted(len(pack.trials) for pack in packs) == [1, 20]


def test_a_frozen_router_stays_the_bases(scene: Scene) -> None:
    recipe = component_recipe(scene.family.trials[0].recipe, frozen=True)
    factory = component_factory(scene.family.domains, scene.family.source, recipe, scene.family.base)
    trial = factory.make(Schedule.constant(Mixture.of({"a": 1.0, "b": 0.0, "c": 0.0})), 0, "")
    scene.outcomes(trial)
    state = load_checkpoint(TrialFolder(scene.job.store, trial.trial_id).weights_path).part("model")
    base = load_checkpoint(TrialFolder(scene.job.store, scene.family.base.trial_id).weights_path).part("model")
    frozen = {name for name in base if name.endswith((".router", ".router_bias"))}
    assert frozen
    assert {name for name in base if torch.equal(base[name], state[name])} == frozen


def test_a_merge_is_written_where_somebody_wants_its_weights(scene: Scene) -> None:
    """And is what was scored; scoring itself leaves no copy."""
    trial = scene.trial(-0.05, 0.45, 0.6)
    (outcome,) = scene.outcomes(trial)
    folder = TrialFolder(scene.job.store, trial.trial_id)
    assert not folder.weights_path.exists()
    write_merge(trial, scene.job.store)
    model = PackedProxy(proxy_of(trial), [0])
    model.load_member_state(0, load_checkpoint(folder.weights_path).part("model"))
    wanted = {score.key: score.loss_nats for score in evaluate(model, scene.sets(), "end")[0]}
    found = losses(outcome)
    assert {key: found[key] for key in wanted} == pytest.approx(wanted, rel=2e-6)


def test_what_an_average_was_scored_on_before_is_kept(scene: Scene) -> None:
    """Another search's held-out sets come on top, losses and folds alike."""
    trial = scene.trial(0.15, 0.15, 0.7)
    first = dataclasses.replace(scene, job=dataclasses.replace(scene.job, evaluations=scene.job.evaluations[:1]))
    second = dataclasses.replace(scene, job=dataclasses.replace(scene.job, evaluations=scene.job.evaluations[1:]))
    (before,) = first.outcomes(trial)
    (after,) = second.outcomes(trial)
    assert losses(after).items() > losses(before).items()
    folds = TrialFolder(scene.job.store, trial.trial_id).read_folds()
    assert folds.keys() == {"key-1", "key-2"}
    for key, parts in folds.items():
        bits = sum(parts["bits"]) / sum(parts["text_bytes"])
        recorded = next(m.bits_per_byte for m in after.measurements if m.evaluation_key == key)
        assert bits == pytest.approx(recorded, rel=1e-9)
