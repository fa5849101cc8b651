"""`mixopt fit` as a user runs it: two tables in, predictions, proposal, diagnostics and report out; and what is said of tables that are wrong.

Losses are made up: a power law of the mixture with noise of 3% of its spread, 28 runs of four domains.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml
from typer.testing import CliRunner

import mixopt
from mixopt.cli import app
from mixopt.errors import MixoptError
from mixopt.mixture import FloatArray
from mixopt.swarm import Swarm
from mixopt.trial import Source

DOMAINS = ("web", "code", "math", "books")
RUNS = 28
WORTH = np.array([[1.0, 0.3, 0.2, 0.5], [0.1, 1.0, 0.6, 0.2]])


def truth(weights: FloatArray) -> FloatArray:
    return np.asarray(1 + (0.1 + weights @ WORTH.T) ** -0.4)


def frames(runs: int = RUNS, seed: int = 0) -> tuple[pl.DataFrame, pl.DataFrame]:
    rng = np.random.default_rng(seed)
    weights = rng.dirichlet(np.full(4, 0.8), runs)
    losses = truth(weights)
    losses = losses + 0.03 * losses.std(axis=0) * rng.normal(size=losses.shape)
    ids = pl.Series("run", [f"run-{row:02d}" for row in range(runs)])
    mixtures = pl.DataFrame(weights, schema=list(DOMAINS), orient="row").insert_column(0, ids)
    metrics = pl.DataFrame(losses, schema=["prose", "program"], orient="row").insert_column(0, ids)
    return mixtures, metrics


Run = Callable[..., Path]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Writes the tables and runs the command in this process; its errors come as exceptions."""

    def fit(mixtures: pl.DataFrame | str | None = None, metrics: pl.DataFrame | str | None = None, *options: str, out: str = "out") -> Path:
        default = frames()
        for name, table, usual in (("mixtures", mixtures, default[0]), ("metrics", metrics, default[1])):
            path = tmp_path / f"{name}.csv"
            if isinstance(table, str):
                path.write_text(table, encoding="utf-8")
            else:
                (usual if table is None else table).write_csv(path)
        arguments = ["fit", "--mixtures", str(tmp_path / "mixtures.csv"), "--metrics", str(tmp_path / "metrics.csv")]
        surrogate = [] if "--surrogate" in options else ["--surrogate", "ridge"]
        answer = CliRunner().invoke(app, [*arguments, *surrogate, *options, "--out", str(tmp_path / out)], catch_exceptions=True)
        if answer.exception is not None and not isinstance(answer.exception, SystemExit):
            raise answer.exception
        assert answer.exit_code == 0, answer.output
        (tmp_path / f"{out}.log").write_text(answer.output, encoding="utf-8")
        return tmp_path / out

    return fit


def said(folder: Path) -> str:
    """What the command printed."""
    return " ".join(folder.with_name(f"{folder.name}.log").read_text(encoding="utf-8").split())


def test_two_tables_give_all_four_files(run: Run, tmp_path: Path) -> None:
    unseen = np.random.default_rng(9).dirichlet(np.ones(4), 6)
    asked = pl.DataFrame(unseen, schema=list(DOMAINS), orient="row").insert_column(0, pl.Series("run_id", range(100, 106)))
    asked.write_csv(tmp_path / "asked.csv")
    folder = run(None, None, "--surrogate", "auto", "--predict", str(tmp_path / "asked.csv"))
    assert {path.name for path in folder.iterdir()} == {"predictions.csv", "proposal.yaml", "diagnostics.json", "report.html"}

    predicted = pl.read_csv(folder / "predictions.csv")
    assert set(predicted.columns) == {
        *("run_id", "prose_mean", "prose_std", "program_mean", "program_std", "objective_mean", "objective_std"),
    }
    assert predicted["run_id"].to_list() == list(range(100, 106))
    expected = truth(unseen)
    spread = expected.std(axis=0)
    for column, name in enumerate(("prose", "program")):
        assert np.abs(predicted[f"{name}_mean"].to_numpy() - expected[:, column]).max() < spread[column]
        assert (predicted[f"{name}_std"].to_numpy() > 0).all()

    proposal = yaml.safe_load((folder / "proposal.yaml").read_text(encoding="utf-8"))
    assert sum(proposal["mixture"].values()) == pytest.approx(1, abs=1e-5)
    assert set(proposal["mixture"]) == set(DOMAINS)

    found = json.loads((folder / "diagnostics.json").read_text(encoding="utf-8"))
    for judged in (found["objective"], *found["metrics"].values()):
        assert {"spearman", "pairwise_accuracy", "regret_at_1_percent", "lower_tail_optimism", "r2", "coverage90", "baselines"} <= set(
            judged
        )
        assert set(judged["baselines"]) == {"best_single_weight", "most_diverse", "linear"}
    assert found["metrics"]["prose"]["spearman"] > 0.9
    assert found["surrogate"]["members"] == ["gaussian_process", "ridge", "power_law"]
    assert sum(found["surrogate"]["metrics"]["prose"]["weights"].values()) == pytest.approx(1, abs=1e-3)

    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "http://" not in re.sub(r'xmlns(:\w+)?="http://[^"]*"', "", page)
    assert "uniform" in said(folder), "the prior is not known, and that is said"


def test_order_of_rows_and_columns_changes_no_byte(run: Run) -> None:
    mixtures, metrics = frames()
    straight = run(mixtures, metrics, out="straight")
    turned = run(
        mixtures.sample(fraction=1.0, shuffle=True, seed=1).select("books", "run", "web", "math", "code"),
        metrics.sample(fraction=1.0, shuffle=True, seed=2).select("program", "prose", "run"),
        out="turned",
    )
    one, other = (yaml.safe_load((folder / "proposal.yaml").read_text()) for folder in (straight, turned))
    assert one["mixture"].keys() == other["mixture"].keys()
    for name, weight in one["mixture"].items():
        assert other["mixture"][name] == pytest.approx(weight, abs=1e-6)
    texts = [(folder / "diagnostics.json").read_text() for folder in (straight, turned)]
    assert json.loads(texts[0])["metrics"] == json.loads(texts[1])["metrics"]


def test_a_maximized_metric_is_turned_back_everywhere(run: Run, tmp_path: Path) -> None:
    mixtures, metrics = frames()
    turned = metrics.with_columns(accuracy=5 - pl.col("program")).drop("program")
    mixtures.head(3).write_csv(tmp_path / "asked.csv")
    plain = pl.read_csv(run(mixtures, metrics, "--predict", str(tmp_path / "asked.csv"), out="plain") / "predictions.csv")
    folder = run(mixtures, turned, "--maximize", "accuracy", "--predict", str(tmp_path / "asked.csv"), out="turned")
    found = pl.read_csv(folder / "predictions.csv")
    np.testing.assert_allclose(found["accuracy_mean"].to_numpy(), 5 - plain["program_mean"].to_numpy(), atol=1e-6)
    np.testing.assert_allclose(found["accuracy_std"].to_numpy(), plain["program_std"].to_numpy(), rtol=1e-4)
    np.testing.assert_allclose(found["objective_mean"].to_numpy(), plain["objective_mean"].to_numpy(), atol=1e-4)


def test_caps_floors_and_epochs_of_the_file_hold(run: Run, tmp_path: Path) -> None:
    text = """
budget_tokens: 10B
domains:
  web: {tokens: 20B}
  code: {tokens: 1B}
  math: {tokens: 500M, max_epochs: 2}
  books: {tokens: 2B, bounds: [0.05, 0.5]}
objective: {kind: mean, metrics: {prose: 1, program: 3}, pull: 0, floors: [{metric: prose, baseline: natural, by: 2%}]}
"""
    (tmp_path / "fit.yaml").write_text(text, encoding="utf-8")
    folder = run(None, None, "--config", str(tmp_path / "fit.yaml"))
    proposal = yaml.safe_load((folder / "proposal.yaml").read_text(encoding="utf-8"))
    mixture = proposal["mixture"]
    assert mixture["code"] <= 0.4 + 1e-6
    assert mixture["math"] <= 0.1 + 1e-6
    assert 0.05 - 1e-6 <= mixture["books"] <= 0.5 + 1e-6
    assert re.search("raised from|lowered from|loosened", json.dumps(proposal)), "what relaxing would bring"


def test_several_sizes_are_one_swarm_and_the_answer_is_for_the_largest(run: Run) -> None:
    mixtures, metrics = frames(24)
    big = 8
    sizes = pl.Series("size", ["10M"] * (24 - big) + ["40M"] * big)
    scaled = metrics.with_columns(
        pl.when(sizes == "40M").then(pl.col(name) * 0.8).otherwise(pl.col(name)).alias(name) for name in ("prose", "program")
    )
    folder = run(mixtures.with_columns(sizes), scaled, "--surrogate", "multi_source_gp")
    found = json.loads((folder / "diagnostics.json").read_text(encoding="utf-8"))
    assert found["judged_on"]["size"] == "40M"
    assert found["judged_on"]["runs"] == big
    alone = run(mixtures.with_columns(sizes), scaled, "--surrogate", "ridge", out="alone")
    assert "not used" in said(alone)


def test_from_python() -> None:
    mixtures, metrics = frames()
    swarm = Swarm.from_arrays(
        DOMAINS,
        mixtures.select(DOMAINS).to_numpy()[:, None],
        ("prose", "program"),
        metrics.select("prose", "program").to_numpy(),
        Source("trained", "nano", 10),
    )
    result = mixopt.fit(swarm, surrogate="ridge")
    assert sum(result.proposal.mixture.as_dict().values()) == pytest.approx(1)
    table = result.predict(swarm.points())
    assert table.columns[:2] == ["prose_mean", "prose_std"] or set(table.columns) >= {"prose_mean", "objective_std"}
    assert len(table) == RUNS


def changed(**columns: object) -> Callable[[pl.DataFrame], pl.DataFrame]:
    """A frame with the values of its first row replaced."""

    def apply(frame: pl.DataFrame) -> pl.DataFrame:
        rows = frame.to_dicts()
        rows[0] |= columns
        return pl.DataFrame(rows, infer_schema_length=None, strict=False)

    return apply


BAD: dict[str, tuple[Callable[[pl.DataFrame], pl.DataFrame | str], Callable[[pl.DataFrame], pl.DataFrame | str], str]] = {
    "repeated id": (lambda m: pl.concat([m, m.head(1)]), lambda t: t, r"run-00"),
    "text in a number column": (lambda m: m, changed(prose="good"), r"prose.*'good'|'good'.*prose"),
    "negative weight": (changed(web=-0.2, code=1.0, math=0.2, books=0.0), lambda t: t, r"web.*negative.*run-00"),
    "weights that do not sum to 1": (changed(web=0.9, code=0.9), lambda t: t, r"run-00.*sum|sum.*run-00"),
    "no id in common": (lambda m: m.with_columns(run=pl.lit("x") + pl.col("run")), lambda t: t, r"id|run"),
    "no id column": (lambda m: m.rename({"run": "name"}), lambda t: t, r"run_id"),
    "one run": (lambda m: m.head(1), lambda t: t.head(1), r"at least 4 runs|needs at least"),
    "empty table": (lambda m: "", lambda t: t, r"empty|no rows|nothing"),
    "no metric": (lambda m: m, lambda t: t.select("run"), r"metric"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_table_is_an_error_that_says_what_and_where(what: str, run: Run) -> None:
    change_mixtures, change_metrics, pattern = BAD[what]
    mixtures, metrics = frames()
    with pytest.raises(MixoptError) as raised:
        run(change_mixtures(mixtures), change_metrics(metrics))
    assert re.search(pattern, str(raised.value)), str(raised.value)
    assert raised.value.hint, "a remedy"


@pytest.mark.parametrize("value", [float("inf"), float("nan"), None])
def test_a_run_whose_metric_is_not_finite_is_left_out_and_named(value: float | None, run: Run) -> None:
    """A crashed run is no reason to lose the others."""
    mixtures, metrics = frames()
    folder = run(mixtures, changed(prose=value)(metrics))
    assert "run-00" in said(folder)
    assert json.loads((folder / "diagnostics.json").read_text())["runs"] == RUNS - 1


def test_rows_missing_on_either_side_are_left_out_and_named(run: Run) -> None:
    mixtures, metrics = frames()
    folder = run(mixtures.tail(26), metrics.head(27))
    words = said(folder)
    assert "run-00" in words
    assert "run-27" in words
    assert json.loads((folder / "diagnostics.json").read_text())["runs"] == 25


def test_a_domain_never_sampled_a_constant_metric_and_few_runs_are_said(run: Run) -> None:
    mixtures, metrics = frames(6)
    folder = run(mixtures.with_columns(law=pl.lit(0.0), tax=pl.lit(0.0), news=pl.lit(0.0)), metrics.with_columns(flat=pl.lit(2.0)))
    words = said(folder)
    assert "law" in words
    assert "flat" in words
    assert re.search(r"[Ff]ewer runs|6 runs", words)


def test_an_unknown_domain_in_predict_names_the_nearest(run: Run, tmp_path: Path) -> None:
    frames()[0].rename({"books": "bookz"}).write_csv(tmp_path / "asked.csv")
    with pytest.raises(MixoptError) as raised:
        run(None, None, "--predict", str(tmp_path / "asked.csv"))
    assert "bookz" in str(raised.value)
    assert "books" in str(raised.value)


def test_caps_that_cannot_be_met_say_which_and_by_how_much(run: Run, tmp_path: Path) -> None:
    text = "budget_tokens: 10B\ndomains:\n" + "".join(f"  {name}: {{tokens: 500M}}\n" for name in DOMAINS)
    (tmp_path / "fit.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(MixoptError) as raised:
        run(None, None, "--config", str(tmp_path / "fit.yaml"))
    assert raised.value.exit_code == 4
    assert re.search(r"0\.8|8e\+09|8B|2e\+09", str(raised.value)), str(raised.value)


def test_an_unknown_metric_to_maximize_names_the_nearest(run: Run) -> None:
    with pytest.raises(MixoptError) as raised:
        run(None, None, "--maximize", "prosa")
    assert "prose" in str(raised.value)


def test_a_slip_in_a_table_is_pointed_at(run: Run) -> None:
    mixtures, metrics = frames()
    folder = run(mixtures, changed(prose=2500.0)(metrics))
    assert "Run run-00 has 2500 of 'prose'" in said(folder)


def test_losses_that_have_nothing_to_do_with_mixtures_are_no_evidence(run: Run) -> None:
    """Pulled to the prior, and said."""
    mixtures, _ = frames(30)
    noise = pl.DataFrame(np.random.default_rng(3).normal(2, 0.1, (30, 2)), schema=["prose", "program"], orient="row")
    folder = run(mixtures, noise.insert_column(0, mixtures["run"]), "--surrogate", "gaussian_process")
    found = json.loads((folder / "diagnostics.json").read_text())
    if found["objective"]["spearman"] <= 0:
        mixture = yaml.safe_load((folder / "proposal.yaml").read_text())["mixture"]
        assert max(abs(weight - 0.25) for weight in mixture.values()) < 0.1
    assert found["objective"]["spearman"] < 0.4
    assert "no evidence for a mixture" in said(folder)
