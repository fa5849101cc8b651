"""`mixopt.fit` from Python: the answer is right where the truth is known, and the same however the runs are given."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest

import mixopt
from mixopt.errors import ConfigError, DataError, InfeasibleError
from mixopt.fitting.file import FitFile, parse_fit_file
from mixopt.fitting.fit import FitResult
from mixopt.fitting.outputs import proposal_body
from mixopt.fitting.predictions import objective_std
from mixopt.fitting.runs import Runs, join_tables
from mixopt.fitting.tables import table_of
from mixopt.surrogates import get_surrogate
from mixopt.swarm import Points, Swarm

DOMAINS = ("books", "code", "web")
COUNTED = {"web": {"tokens": 600}, "code": {"tokens": 300}, "books": {"tokens": 100}}
Frames = tuple[pl.DataFrame, pl.DataFrame]


def joined(mixtures: pl.DataFrame, metrics: pl.DataFrame, maximize: tuple[str, ...] = ()) -> Runs:
    return join_tables(table_of(mixtures, "mixtures.csv"), table_of(metrics, "metrics.csv"), maximize)


def losses(weights: np.ndarray) -> np.ndarray:
    """The law behind the synthetic runs: web_loss and code_loss of weights of web, code, books."""
    return np.asarray(2 + np.exp(-weights @ np.array([[1.5, 0.2], [0.2, 1.8], [0.3, 0.1]])))


@pytest.fixture(scope="module")
def result(runs: Runs) -> FitResult:
    return mixopt.fit(runs, surrogate="gaussian_process")


def test_it_needs_no_training_no_ray_and_no_gpu() -> None:
    """And `import mixopt` stays light."""
    code = "import sys, mixopt; assert 'scipy' not in sys.modules; mixopt.fit; import json; print(json.dumps(sorted(sys.modules)))"
    loaded = json.loads(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)
    assert not {"ray", "torch", "mlflow", "matplotlib", "lightgbm", "workers", "proxy_models"} & set(loaded)


def test_the_answer_is_near_the_best_mixture_of_the_law(result: FitResult) -> None:
    """By the true losses, in units of the noise measured, it leaves less than a twentieth of what there is to gain over the uniform mixture."""
    objective = result.prediction.objective
    order = [("web_loss", "code_loss").index(metric) for metric in objective.metrics]
    grid = np.array([(a, b, 20 - a - b) for a in range(21) for b in range(21 - a)]) / 20
    proposed = np.array([result.proposal.mixture.as_dict()[name] for name in ("web", "code", "books")])
    truth = (losses(np.vstack([grid, proposed, np.full(3, 1 / 3)]))[:, order] / np.array(objective.noise_std)).mean(axis=1)
    *others, found, uniform = truth.tolist()
    assert found - min(others) < 0.05 * (uniform - min(others))
    assert result.proposal.objective.high < 0
    assert result.natural_name == "uniform"
    assert any("natural mixture is unknown and taken to be uniform" in note for note in result.notes)


def test_predictions_are_near_the_law(result: FitResult) -> None:
    weights = np.random.default_rng(5).dirichlet(np.ones(3), 40)
    frame = pl.DataFrame(weights, schema=["web", "code", "books"], orient="row").insert_column(0, pl.Series("run_id", range(40)))
    predicted = result.predict(frame)
    truth = losses(weights)
    names = [f"{metric}_{what}" for metric in ("code_loss", "web_loss") for what in ("mean", "std")]
    assert predicted.columns == ["run_id", *names, "objective_mean", "objective_std"]
    assert predicted["run_id"].to_list() == [str(row) for row in range(40)]
    for metric, column in (("web_loss", 0), ("code_loss", 1)):
        error = predicted[f"{metric}_mean"].to_numpy() - truth[:, column]
        assert np.abs(error).mean() < 0.01  # of a range of .7
        inside = np.abs(error) < 3 * predicted[f"{metric}_std"].to_numpy()
        assert inside.mean() > 0.9


def test_the_order_of_domains_asked_about_does_not_matter(result: FitResult) -> None:
    weights = np.array([[0.2, 0.3, 0.5], [0.1, 0.0, 0.9]])
    source = result.prediction.source
    straight = result.predict(Points(DOMAINS, weights[:, None], (source,) * 2))
    turned = result.predict(Points(DOMAINS[::-1], weights[:, None, ::-1].copy(), (source,) * 2))
    assert straight.equals(turned)
    assert straight.columns[0] == "code_loss_mean"  # points have no ids


def test_the_natural_mixture_has_objective_zero(result: FitResult) -> None:
    predicted = result.predict(pl.DataFrame({"run": ["n"], **{name: [1 / 3] for name in DOMAINS}}))
    assert predicted["objective_mean"][0] == pytest.approx(0, abs=1e-9)
    assert predicted["objective_std"][0] < 0.01  # in noise of a run; drawn jointly with jitter


@pytest.mark.parametrize("kind", ["noise_scaled", "worst_case"])
def test_a_prediction_does_not_depend_on_what_else_is_asked(kind: str, runs: Runs) -> None:
    """All numbers of a row; drawn jointly, standard deviations of the objective moved by a tenth and more."""
    config = parse_fit_file({"objective": {"kind": kind, "pull": 0.05}})
    found = mixopt.fit(runs, config=config, surrogate="auto")
    weights = np.random.default_rng(6).dirichlet(np.ones(3), 70)  # more than one chunk of joint points

    def ask(rows: list[int]) -> pl.DataFrame:
        return found.predict(Points(DOMAINS, weights[rows, None], (found.prediction.source,) * len(rows)))

    together = ask(list(range(70)))
    for row in (0, 3, 69):
        np.testing.assert_allclose(ask([row]).to_numpy()[0], together.to_numpy()[row], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("kind", ["noise_scaled", "worst_case"])
def test_the_spread_of_the_objective_is_that_of_joint_draws(kind: str, runs: Runs) -> None:
    """Against `Prediction.difference_std`, which draws: 128 draws know a standard deviation within 6%, so 15% on average over 40 mixtures is ample."""
    found = mixopt.fit(runs, config=parse_fit_file({"objective": {"kind": kind, "pull": 0.05}}), surrogate="gaussian_process")
    weights = np.random.default_rng(7).dirichlet(np.ones(3), 40)
    drawn = found.prediction.difference_std(weights, found.prediction.natural)
    assert np.abs(objective_std(found.prediction, weights) / drawn - 1).mean() < 0.15


def test_a_swarm_gives_what_its_tables_give(runs: Runs, result: FitResult) -> None:
    assert isinstance(runs.swarm, Swarm)
    again = mixopt.fit(runs.swarm, surrogate=get_surrogate("gaussian_process"))
    assert again.proposal.mixture.as_dict() == result.proposal.mixture.as_dict()
    assert again.surrogate == "GaussianProcess"
    assert again.diagnostics["objective"] == result.diagnostics["objective"]


def test_a_maximized_metric_is_its_negated_loss_turned_back(frames: Frames, runs: Runs, result: FitResult) -> None:
    """The same numbers as losses and as scores: the same mixture; every output of the score is the loss's with the other sign."""
    mixtures, metrics = frames
    scores = metrics.with_columns(web_loss=-pl.col("web_loss"))
    config = FitFile(maximize=("web_loss",))
    turned = mixopt.fit(joined(mixtures, scores, config.maximize), config=config, surrogate="gaussian_process")
    assert turned.proposal.mixture.as_dict() == result.proposal.mixture.as_dict()
    asked = pl.DataFrame({"run": ["a"], "web": [0.5], "code": [0.3], "books": [0.2]})
    one, other = result.predict(asked), turned.predict(asked)
    assert other["web_loss_mean"][0] == -one["web_loss_mean"][0]
    assert other["web_loss_std"][0] == one["web_loss_std"][0]
    assert other.drop("web_loss_mean").equals(one.drop("web_loss_mean"))
    body, turned_body = proposal_body(result), proposal_body(turned)
    effect, turned_effect = (entry["predicted"]["metrics"]["web_loss"] for entry in (body, turned_body))
    assert turned_effect["mean"] == -effect["mean"]
    assert list(turned_effect["interval90"]) == [-effect["interval90"][1], -effect["interval90"][0]]
    assert turned_body["objective"]["maximized"] == ["web_loss"]
    # A swarm in memory: its scores are as measured, and `config` says which they are.
    raw = Runs(joined(mixtures, scores).swarm).swarm
    assert Runs.of(raw, ("web_loss",)).swarm.digest() == runs.swarm.digest()


def test_token_counts_make_a_natural_mixture_and_caps(runs: Runs) -> None:
    config = parse_fit_file({"budget_tokens": 1000, "domains": {**COUNTED, "code": {"tokens": 300, "max_epochs": 0.5}}})
    capped = mixopt.fit(runs, config=config, surrogate="ridge")
    assert capped.natural_name == "natural"
    assert capped.domains.natural().as_dict() == {name: pytest.approx(COUNTED[name]["tokens"] / 1000) for name in DOMAINS}
    assert capped.proposal.mixture.as_dict()["code"] == pytest.approx(0.15)
    assert capped.proposal.epochs["code"] == pytest.approx(0.5)
    assert any("code" in line for line in capped.proposal.binding)


def test_what_cannot_be_met_says_which_and_by_how_much(runs: Runs) -> None:
    bounds = {name: {"bounds": [0.4, 1]} for name in DOMAINS}
    with pytest.raises(InfeasibleError) as failed:
        mixopt.fit(runs, config=parse_fit_file({"domains": bounds}), surrogate="ridge")
    assert "1.2" in failed.value.message
    floor = {"metric": "web_loss", "baseline": 1.0}
    with pytest.raises(InfeasibleError) as failed:
        mixopt.fit(runs, config=parse_fit_file({"objective": {"floors": [floor]}}), surrogate="ridge")
    assert "web_loss" in failed.value.message


def test_slips_are_found_before_anything_is_fitted(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    def must_not_fit(*arguments: object) -> None:
        raise AssertionError("fitted in spite of the slip")

    monkeypatch.setattr("mixopt.surrogates.ridge.Ridge.fit", must_not_fit)
    slips: list[dict[str, Any]] = [
        {"domains": {"boks": {}}},
        {"objective": {"metrics": ["x"]}},
        {"objective": {"floors": [{"metric": "x"}]}},
        {"target": {"size": "1B"}},
    ]
    for raw in slips:
        with pytest.raises(ConfigError):
            mixopt.fit(runs, config=parse_fit_file(raw), surrogate="ridge")
    with pytest.raises(ConfigError, match="no surrogate 'rigde'"):
        mixopt.fit(runs, surrogate="rigde")
    with pytest.raises(DataError, match="at least 4 runs, got 3"):
        mixopt.fit(runs.swarm.select(runs.swarm.trial_ids[:3]), surrogate="ridge")


def test_four_runs_are_fitted_and_not_judged(runs: Runs) -> None:
    few = mixopt.fit(runs.swarm.select(("r5", "r6", "r7", "r8")), surrogate="ridge")
    assert few.diagnostics["folds"] == 0
    assert "too few" in few.diagnostics["not_judged"] or "fewer than" in few.diagnostics["not_judged"]
    assert few.diagnostics["objective"] is None
    assert sum(few.proposal.mixture.as_dict().values()) == pytest.approx(1)
    assert "not_judged" in proposal_body(few)["trust"]


def test_fewer_runs_than_domains(frames: Frames) -> None:
    weights = np.random.default_rng(0).dirichlet(np.ones(12), 8)
    mixtures = pl.DataFrame(weights, schema=[f"d{column}" for column in range(12)], orient="row").insert_column(0, frames[1]["run"][4:12])
    found = mixopt.fit(joined(mixtures, frames[1][4:12]), surrogate="ridge")
    assert any("fewer runs than domains" in note for note in found.notes)
    assert len(found.proposal.mixture.as_dict()) == 12


# Predictions that are asked for.


@pytest.mark.parametrize(
    ("columns", "message", "hint"),
    [
        ({"web": [0.5], "boks": [0.5]}, "'boks' is no domain of the runs", "Did you mean 'books'?"),
        ({"web": [0.5], "code": [0.2]}, "the weights do not sum to 1 in run a (0.7)", "within 2%"),
        ({"web": [1.5], "code": [-0.5]}, "domain 'code' has a negative weight in run a", "at least 0"),
        ({"web": [1.0], "size": ["1B"]}, "at size 1B and 1 tokens, where no run was fitted", "Runs are at size unknown"),
    ],
)
def test_what_cannot_be_predicted(columns: dict[str, list[object]], message: str, hint: str, result: FitResult) -> None:
    with pytest.raises(DataError) as failed:
        result.predict(pl.DataFrame({"run": ["a"], **columns}))
    assert message in failed.value.message
    assert hint in failed.value.hint


def test_weight_on_a_domain_that_no_run_had(result: FitResult) -> None:
    without = replace(result, runs=replace(result.runs, left_out_domains=("law",)))
    with pytest.raises(DataError, match="run b has weight on 'law', which no fitted run had"):
        without.predict(pl.DataFrame({"run": ["a", "b"], "web": [1.0, 0.9], "law": [0.0, 0.1]}))
    assert len(without.predict(pl.DataFrame({"run": ["a"], "web": [1.0], "law": [0.0]}))) == 1


def test_a_domain_left_out_of_the_asked_mixtures_has_no_weight(result: FitResult) -> None:
    short, full = (
        pl.DataFrame({"run": ["a"], "web": [0.4], "code": [0.6]}),
        pl.DataFrame({"run": ["a"], "web": [0.4], "code": [0.6], "books": [0.0]}),
    )
    assert result.predict(short).equals(result.predict(full))
    assert any("has no column books" in note for note in result.asked(short).notes)


# Several sources.


def sized(frames: Frames) -> Frames:
    mixtures, metrics = frames
    factor = pl.Series([1.0] * 20 + [0.9] * 8)
    return (
        mixtures.with_columns(size=pl.Series(["10M"] * 20 + ["100M"] * 8)),
        metrics.with_columns((pl.col(name) * factor).alias(name) for name in metrics.columns[1:]),
    )


@pytest.fixture(scope="module")
def two_sizes(frames: Frames) -> Runs:
    """The last eight runs ten times larger, and their losses a tenth less."""
    return joined(*sized(frames))


@pytest.fixture(scope="module")
def over_sizes(two_sizes: Runs) -> FitResult:
    return mixopt.fit(two_sizes, surrogate="multi_source_gp")


def test_a_surrogate_over_several_sources_answers_at_the_largest(over_sizes: FitResult) -> None:
    assert over_sizes.several
    assert over_sizes.prediction.source.size == "100M"
    assert over_sizes.diagnostics["judged_on"] == {"runs": 8, "size": "100M"}
    assert any("Runs are of 2 sizes and token counts; the answer is for size 100M." in note for note in over_sizes.notes)
    assert proposal_body(over_sizes)["predicted"]["at"] == {"size": "100M", "tokens": 1}


def test_predictions_can_be_asked_at_every_source(over_sizes: FitResult) -> None:
    mixture = {"web": [0.4] * 2, "code": [0.4] * 2, "books": [0.2] * 2}
    predicted = over_sizes.predict(pl.DataFrame({"run": ["small", "large"], "size": ["10M", "100M"], **mixture}))
    assert predicted["web_loss_mean"][1] / predicted["web_loss_mean"][0] == pytest.approx(0.9, abs=0.03)
    at_target = over_sizes.predict(pl.DataFrame({"run": ["here"], **{name: cells[:1] for name, cells in mixture.items()}}))
    assert at_target.row(0)[1:] == pytest.approx(predicted.row(1)[1:], rel=1e-6)
    with_natural = over_sizes.predict(pl.DataFrame({"run": ["n"], "size": ["10M"], **{name: [1 / 3] for name in DOMAINS}}))
    assert with_natural["objective_mean"][0] == pytest.approx(0, abs=1e-9)  # of the natural mixture at that size


def test_a_target_of_another_size(two_sizes: Runs) -> None:
    small = mixopt.fit(two_sizes, config=parse_fit_file({"target": {"size": "10M"}}), surrogate="ridge")
    assert small.prediction.source.size == "10M"
    assert len(small.fitted_on) == 20
    assert any("fits the 20 runs there; the other 8 are not used" in note for note in small.notes)


def test_a_surrogate_of_one_source_needs_runs_there(two_sizes: Runs) -> None:
    with pytest.raises(DataError) as failed:
        mixopt.fit(two_sizes, config=parse_fit_file({"target": {"size": "1B"}}), surrogate="ridge")
    assert "Surrogate 'ridge' fits runs of one size and token count, and 0 runs are at size 1B" in failed.value.message
    assert "surrogate over several sources" in failed.value.hint


def test_one_run_at_the_target_is_enough_for_an_answer_there(frames: Frames) -> None:
    mixtures, metrics = frames
    one = joined(mixtures.with_columns(size=pl.Series(["10M"] * 27 + ["100M"])), metrics)
    found = mixopt.fit(one, surrogate="anchor_ratio")
    assert found.prediction.source.size == "100M"
    assert found.diagnostics["judged_on"] == {"runs": 27, "size": "10M"}
    assert found.diagnostics["objective"]["spearman"] > 0.8


def test_the_sizes_of_the_file_reach_the_surrogate(frames: Frames) -> None:
    mixtures, metrics = frames
    named = joined(mixtures.with_columns(size=pl.Series(["nano"] * 20 + ["large"] * 8)), metrics)
    config = parse_fit_file({"sizes": {"nano": "10M", "large": "100M"}})
    assert mixopt.fit(named, config=config, surrogate="anchor_ratio").prediction.source.size == "large"


def test_the_seed_of_the_call_goes_before_that_of_the_file(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def stop(*arguments: object, **settings: object) -> None:
        seen.append(arguments[4].seed)  # type: ignore[attr-defined]
        raise KeyboardInterrupt

    monkeypatch.setattr("mixopt.fitting.fit.Study.of", stop)
    for seed in (None, 0, 3):
        with pytest.raises(KeyboardInterrupt):
            mixopt.fit(runs, config=FitFile(seed=7), surrogate="ridge", seed=seed)
    assert seen == [7, 0, 3]


def test_a_shuffled_swarm_of_several_sources_is_the_same(two_sizes: Runs, frames: Frames) -> None:
    rng = np.random.default_rng(0)
    shuffled = [frame[rng.permutation(len(frame)).tolist()].select(rng.permutation(frame.columns).tolist()) for frame in sized(frames)]
    assert joined(*shuffled).swarm.table.equals(two_sizes.swarm.table)
