"""What was measured: sources, noise, the best mixture, baselines, and when a gain is called noise."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest

from mixopt.answer.measured import (
    Measured,
    answer_source,
    best_measured,
    compare_baselines,
    guard,
    measured_at,
    out_of_fold_evidence,
    sources_of,
)
from mixopt.errors import ConfigError, DataError
from mixopt.mixture import FloatArray
from mixopt.objective import Objective
from mixopt.prediction import predict
from mixopt.recommendation import Settings, recommend
from mixopt.space import MixtureSpace
from mixopt.swarm import Swarm
from mixopt.trial import Source
from tests.mixopt.answer.conftest import NOISE, Law, domain_set

LAW = Law(("a", "b"), ("one", "two"), lambda p: np.stack([1 + p[:, 0], 2 - p[:, 0] / 2], axis=1))
DOMAINS = domain_set({"a": 1.0, "b": 3.0})
SMALL, LARGE = Source("trained", "nano", 1000), Source("trained", "micro", 500)


def shares(*of_a: float) -> FloatArray:
    return np.array([[share, 1 - share] for share in of_a])


def joined(*swarms: Swarm) -> Swarm:
    """Under names that tell the sources."""
    tables = [swarm.table.with_columns(trial_id=f"{index}-" + pl.col("trial_id")) for index, swarm in enumerate(swarms)]
    return Swarm(swarms[0].domains, pl.concat(tables))


def costing(swarm: Swarm, flops: float) -> Swarm:
    return Swarm(swarm.domains, swarm.table.with_columns(flops=pl.lit(flops)))


def objective() -> Objective:
    return LAW.prediction(DOMAINS, weights={"one": 1.0}).objective


def test_sources_are_ordered_by_the_cost_of_a_run() -> None:
    small, large = (LAW.swarm(shares(0.1, 0.5), source=source) for source in (SMALL, LARGE))
    assert sources_of(joined(small, large)) == [LARGE, SMALL], "by tokens where nothing is known of FLOPs"
    assert sources_of(joined(costing(small, 1e12), costing(large, 1e15))) == [SMALL, LARGE]


def test_one_of_several_sources_must_be_asked_for() -> None:
    runs = joined(LAW.swarm(shares(0.1), source=SMALL), LAW.swarm(shares(0.5), source=LARGE))
    assert answer_source(runs.at_source(SMALL), None) == SMALL
    assert answer_source(runs, LARGE) == LARGE
    with pytest.raises(ConfigError, match=r"2 sources \(trained/micro/500, trained/nano/1000\)"):
        answer_source(runs, None)


def test_measured_is_where_the_answer_is_wanted_else_at_the_largest_with_enough_runs() -> None:
    few, many = shares(0.1, 0.2, 0.3), shares(0.1, 0.2, 0.3, 0.4)
    small, large = costing(LAW.swarm(many, source=SMALL), 1.0), costing(LAW.swarm(many, source=LARGE), 2.0)
    both = joined(small, large)
    target = Source("trained", "huge", 10**9)
    assert set(measured_at(both, SMALL).points().sources) == {SMALL}
    assert set(measured_at(both, target).points().sources) == {LARGE}
    fewer = joined(small, costing(LAW.swarm(few, source=LARGE), 2.0))
    assert set(measured_at(fewer, LARGE).points().sources) == {SMALL}
    assert measured_at(small, SMALL) is small
    with pytest.raises(DataError, match="at least 4 finished trials of one source, got 6"):
        measured_at(joined(LAW.swarm(few, source=SMALL), LAW.swarm(few, source=LARGE)), SMALL)


def test_values_are_differences_to_natural_with_pooled_noise() -> None:
    runs = LAW.swarm(shares(0.25, 0.25, 0.6))
    moved = Swarm(
        runs.domains, runs.table.with_columns(bits_per_byte=pl.col("bits_per_byte") + 0.02 * (pl.col("trial_id") == "row-000001"))
    )
    found = Measured.of(moved, objective())
    np.testing.assert_allclose(found.values, [0, 0.02, 0.35], atol=1e-12)
    assert found.noise_std == pytest.approx(0.02 / np.sqrt(2))
    assert found.spread == pytest.approx(np.std([0, 0.02, 0.35], ddof=1))
    assert Measured.of(moved, objective(), 0.5).noise_std == 0.5
    with pytest.raises(DataError, match="no mixture was trained with two seeds"):
        Measured.of(LAW.swarm(shares(0.1, 0.2)), objective())


def measured(*of_a: float, losses: list[float] | None = None) -> Measured:
    """Runs at these shares of a; metric one as the law has it or as given."""
    runs = LAW.swarm(shares(*of_a))
    values = runs.values(["one"])[:, 0] - 1.25 if losses is None else np.array(losses)
    return Measured(runs, values, NOISE, 1.0)


def test_the_best_mixture_is_so_on_average_over_its_runs() -> None:
    """One lucky run of .5 is not enough; .3 is better on average."""
    best = best_measured(measured(0.5, 0.5, 0.3, 0.3, 0.9, losses=[-1.0, 1.0, -0.1, -0.3, 0.5]), MixtureSpace.from_domains(DOMAINS))
    assert best["weights"] == {"a": 0.3, "b": 0.7}
    assert best["objective"] == pytest.approx(-0.2)
    assert (best["runs"], best["trial_id"], best["note"]) == (2, "row-000002", "best of 3 feasible mixtures measured")


def test_only_what_keeps_the_caps_can_be_best_unless_nothing_does() -> None:
    runs = measured(0.1, 0.5, 0.9)
    within = MixtureSpace.from_domains(domain_set({"a": 1.0, "b": 3.0}, bounds={"a": (0.4, 1.0)}))
    best = best_measured(runs, within)
    assert (best["weights"]["a"], best["feasible"], best["note"]) == (0.5, True, "best of 2 feasible mixtures measured")
    beyond = MixtureSpace.from_domains(domain_set({"a": 1.0, "b": 3.0}, bounds={"a": (0.2, 0.3)}))
    best = best_measured(runs, beyond)
    assert (best["weights"]["a"], best["feasible"]) == (0.1, False)
    assert "none of them keeps the caps" in best["note"]


def test_domains_are_matched_by_name() -> None:
    turned = domain_set({"b": 3.0, "a": 1.0})
    best = best_measured(measured(0.1, 0.5), MixtureSpace.from_domains(turned))
    assert best["weights"] == {"b": 0.9, "a": 0.1}
    assert list(best["weights"]) == ["b", "a"]


def test_baselines_are_predicted_and_told_as_measured_where_they_were_run() -> None:
    domains = domain_set({"a": 1.0, "b": 3.0}, bounds={"a": (0.0, 0.3)})
    prediction = LAW.prediction(domains, weights={"one": 1.0})
    found = compare_baselines(prediction, measured(0.25, 0.25, 0.9, losses=[0.1, 0.3, 9.0]), MixtureSpace.from_domains(domains), domains)
    assert found["natural"]["mean"] == pytest.approx(0, abs=1e-6)
    assert (found["natural"]["measured"], found["natural"]["runs"], found["natural"]["feasible"]) == (pytest.approx(0.2), 2, True)
    assert found["uniform"]["mean"] == pytest.approx(0.25, abs=1e-6)
    assert (found["uniform"]["measured"], found["uniform"]["runs"], found["uniform"]["feasible"]) == (None, 0, False)
    assert set(found) == {"natural", "uniform", "unimax"}


@pytest.mark.parametrize(
    ("share", "doubt", "indistinct", "inside", "sentence"),
    [
        (0.1, 1e-9, 0.01, False, "beyond the noise."),
        (0.1, 1e-9, 0.2, True, "inside the noise: verification decides"),  # less than seeds can tell
        (0.1, 0.5, 0.01, True, "inside the noise: verification decides"),  # less than the surrogate knows
        (0.3, 1e-9, 0.2, True, "inside the noise: verification decides"),  # worse, by less than seeds can tell
        (0.3, 1e-9, 0.01, True, "predicted to be better, and is not proposed because of a floor or the pull"),
    ],
)
def test_a_gain_is_noise_where_seeds_or_the_surrogate_cannot_tell_it(
    share: float, doubt: float, indistinct: float, inside: bool, sentence: str
) -> None:
    law = Law(LAW.domains, LAW.metrics, LAW.losses, doubt=doubt)
    best = {"weights": {"a": 0.2, "b": 0.8}, "label": "design", "trial_id": "t", "feasible": True}
    said = guard(law.prediction(DOMAINS, weights={"one": 1.0}), shares(share)[0], best, indistinct)
    assert said["inside_noise"] is inside
    # Two independent doubts, 2000 draws: a standard error of doubt sqrt(2 / 2000), four of them.
    assert said["difference"]["mean"] == pytest.approx(share - 0.2, abs=4 * doubt * np.sqrt(2 / 2000) + 1e-6)
    assert sentence in said["sentence"]
    assert "the best measured feasible mixture (design)" in said["sentence"]


def test_out_of_fold_evidence_follows_the_measured_runs() -> None:
    """Of two sources, only the measured one's trials are told, in its order, each with its own prediction."""
    runs = joined(LAW.swarm(shares(0.8, 0.1, 0.4, 0.6, 0.2), source=SMALL), LAW.swarm(shares(0.3, 0.7, 0.5, 0.9), source=LARGE))
    prediction = predict(LAW, runs, objective(), DOMAINS.names, DOMAINS.natural().array(), 0, LARGE)
    part = runs.at_source(LARGE)
    evidence = out_of_fold_evidence(prediction, objective(), Measured.of(part, objective(), NOISE))
    assert [entry["trial_id"] for entry in evidence["predicted"]] == list(part.trial_ids)
    for entry in evidence["predicted"]:
        assert entry["mean"] == pytest.approx(entry["measured"], abs=1e-9), "the law is known"
        assert entry["std"] == pytest.approx(NOISE, rel=1e-6), "and a measurement is off by a seed's noise"
    assert evidence["spearman"] == {"one": pytest.approx(1), "two": pytest.approx(1), "objective": pytest.approx(1)}
    assert evidence["coverage90"] == 1.0
    json.dumps(evidence)


def test_too_few_runs_leave_no_out_of_fold_evidence_and_say_why() -> None:
    runs = LAW.swarm(shares(0.1, 0.4, 0.6, 0.9))
    prediction = predict(LAW, runs, objective(), DOMAINS.names, DOMAINS.natural().array(), 0)
    evidence = out_of_fold_evidence(prediction, objective(), Measured.of(runs, objective(), NOISE))
    assert evidence["predicted"] == []
    assert "leave fewer than" in evidence["out_of_fold_missing"]
    assert [entry["measured"] for entry in evidence["objective_over_trials"]] == pytest.approx([-0.15, 0.15, 0.35, 0.65])


def test_a_proposal_over_several_sources_says_which_was_measured() -> None:
    grown = shares(*np.linspace(0.05, 0.95, 8))
    runs = joined(costing(LAW.swarm(grown, source=SMALL), 1.0), costing(LAW.swarm(grown[:5], source=LARGE), 2.0))
    target = Source("trained", "huge", 10**9)
    settings = Settings({"one": 1.0}, "mean", seeds=3, pull=0.0, seed=0, source=target, loss_unit="nats")
    proposal = recommend(runs, MixtureSpace.from_domains(DOMAINS), DOMAINS, LAW, settings)
    evidence = proposal.evidence
    assert (evidence["source"], evidence["measured_source"], evidence["objective_unit"]) == (target.key, LARGE.key, "nats")
    assert len(evidence["objective_over_trials"]) == 5
    assert evidence["trials"] == 13
    assert "noise is estimated by the surrogate" in evidence["objective_basis"]
    assert proposal.mixture.as_dict()["a"] == pytest.approx(0, abs=1e-6)
    with pytest.raises(ConfigError, match="2 sources"):
        recommend(runs, MixtureSpace.from_domains(DOMAINS), DOMAINS, LAW, Settings({"one": 1.0}, "mean", 3, 0.0, 0))
