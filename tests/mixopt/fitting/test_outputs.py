"""The files of a fit: what they hold, that they agree with each other, and that a folder never mixes two fits."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml

import mixopt
from mixopt.errors import ConfigError
from mixopt.fitting.file import parse_fit_file
from mixopt.fitting.fit import FitResult
from mixopt.fitting.outputs import FILES, check_folder, plain, proposal_yaml, signed_effect
from mixopt.fitting.page import fit_report
from mixopt.fitting.runs import Runs, join_tables
from mixopt.fitting.tables import table_of
from mixopt.proposal import Effect

CONFIG: dict[str, Any] = {
    "budget_tokens": 1000,
    "domains": {"web": {"tokens": 600, "max_epochs": 0.8}, "code": {"tokens": 300}, "books": {"tokens": 100}},
    "objective": {"metrics": {"web_loss": 1, "code_loss": 2}},
}
ASKED = pl.DataFrame({"index": ["007", "b, c"], "web": [0.5, 1.0], "code": [0.25, 0.0], "books": [0.25, 0.0]})


@pytest.fixture(scope="module")
def result(frames: tuple[pl.DataFrame, pl.DataFrame]) -> FitResult:
    """Of a loss and a score, with a budget and a cap that binds."""
    mixtures, metrics = (table_of(frame, name) for frame, name in zip(frames, ("mixtures.csv", "metrics.csv"), strict=True))
    return mixopt.fit(join_tables(mixtures, metrics, ("code_loss",)), config=parse_fit_file(CONFIG), surrogate="ridge")


@pytest.fixture(scope="module")
def folder(result: FitResult, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fit") / "not" / "there" / "yet"
    assert result.write(folder, ASKED) == [folder / name for name in FILES]
    return folder


@pytest.fixture(scope="module")
def proposal(folder: Path) -> dict[str, Any]:
    body = yaml.safe_load((folder / "proposal.yaml").read_text(encoding="utf-8"))
    assert isinstance(body, dict)
    return body


def test_nothing_else_is_left_in_the_folder(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == set(FILES)


def test_predictions_have_exactly_the_columns_of_the_issue(folder: Path, result: FitResult) -> None:
    lines = (folder / "predictions.csv").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "index,code_loss_mean,code_loss_std,web_loss_mean,web_loss_std,objective_mean,objective_std"
    assert lines[1].startswith("007,")
    written = pl.read_csv(folder / "predictions.csv", schema_overrides={"index": pl.String})
    assert written["index"].to_list() == ["007", "b, c"]
    assert written.equals(result.predict(ASKED))
    assert (written.select(pl.selectors.ends_with("_std")) > 0).to_numpy().all()


def test_a_maximized_metric_has_its_own_sign_everywhere(folder: Path, proposal: dict[str, Any]) -> None:
    """`code_loss` of the swarm, taken for a score: as given it lies between 2 and 3, and the proposal raises it."""
    predicted = pl.read_csv(folder / "predictions.csv")
    assert predicted["code_loss_mean"].is_between(2, 3.1).all()
    assert proposal["predicted"]["metrics"]["code_loss"]["mean"] > 0
    assert proposal["objective"]["maximized"] == ["code_loss"]
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "more is better" in page
    assert "maximize:" in page  # in what was asked for, though the file did not say it


def test_printed_weights_sum_to_exactly_1(proposal: dict[str, Any]) -> None:
    for weights in (proposal["mixture"], proposal["natural"], proposal["best_measured"]["mixture"]):
        assert math.fsum(weights.values()) == pytest.approx(1, abs=1e-12)
        assert sum(round(1e6 * weight) for weight in weights.values()) == 1_000_000


def test_the_proposal_says_what_a_reader_needs(proposal: dict[str, Any], result: FitResult) -> None:
    expected = ("mixture", "predicted", "near_optimal", "epochs", "natural", "best_measured", "compared_with_best_measured", "binding")
    assert [key for key in proposal if key in expected] == list(expected)
    assert {"objective", "trust", "surrogate", "relaxations"} <= set(proposal)
    mixture, near = proposal["mixture"], proposal["near_optimal"]
    for name, weight in mixture.items():
        assert weight == pytest.approx(result.proposal.mixture.as_dict()[name], abs=1e-6)
        low, high = near[name]
        assert low - 1e-4 <= weight <= high + 1e-4
        assert proposal["epochs"][name] == pytest.approx(weight * 1000 / CONFIG["domains"][name]["tokens"], rel=1e-3)
    assert mixture["web"] == pytest.approx(0.48)
    assert any("web" in line for line in proposal["binding"])
    assert proposal["natural"] == {"web": 0.6, "code": 0.3, "books": 0.1}
    assert proposal["best_measured"]["run"] in {f"r{row}" for row in range(28)}
    objective = proposal["objective"]
    assert objective["metrics"] == {"code_loss": pytest.approx(2 / 3, abs=1e-4), "web_loss": pytest.approx(1 / 3, abs=1e-4)}
    effect = proposal["predicted"]["objective"]
    assert effect["interval90"][0] <= effect["mean"] <= effect["interval90"][1]


def test_the_uniform_mixture_is_called_what_it_is(runs: Runs) -> None:
    plain_result = mixopt.fit(runs, surrogate="ridge")
    text = proposal_yaml(plain_result)
    body = yaml.safe_load(text)
    assert "uniform mixture (no token counts were given)" in text
    assert "natural" not in body
    assert "epochs" not in body
    assert body["uniform"] == {name: pytest.approx(1 / 3, abs=1e-6) for name in ("web", "code", "books")}
    page = fit_report(plain_result)
    assert "Against uniform, predicted" in page
    assert "<th>epochs" not in page


def test_diagnostics_are_json_without_holes(folder: Path, result: FitResult) -> None:
    def no_constant(text: str) -> None:
        raise AssertionError(text)

    body = json.loads((folder / "diagnostics.json").read_text(encoding="utf-8"), parse_constant=no_constant)
    assert body == plain(result.diagnostics)
    assert set(body["metrics"]) == {"web_loss", "code_loss"}
    assert set(body["objective"]) >= {"spearman", "pairwise_accuracy", "regret_at_1_percent", "lower_tail_optimism", "r2", "coverage90"}


class Page(HTMLParser):
    """Texts, and whatever a page would load from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.headings: list[str] = []
        self._heading = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._heading = tag == "h2"
        for name, value in attrs:
            if (name == "src" or (name == "href" and tag == "link")) and not (value or "").startswith(("data:", "#")):
                self.loads.append(str(value))

    def handle_data(self, data: str) -> None:
        if self._heading and data.strip():
            self.headings.append(data.strip())
            self._heading = False


def test_the_report_is_one_self_contained_page(folder: Path) -> None:
    text = (folder / "report.html").read_text(encoding="utf-8")
    page = Page()
    page.feed(text)
    assert page.loads == []
    assert not re.findall(r"url\((?!['\"]?(?:data:|#))|@import", text)
    wanted = [
        "The answer",
        "Mixture",
        "What holds the proposal back",
        "Effects on every metric",
        "How far predictions can be trusted",
        "The data",
    ]
    assert [heading for heading in page.headings if heading in wanted] == wanted
    assert text.count("<svg") >= 3
    for words in ("best single weight", "most diverse", "linear", "near-optimal", "best measured"):
        assert words in text


def test_names_cannot_break_the_page(frames: tuple[pl.DataFrame, pl.DataFrame]) -> None:
    hostile = "<script>alert(1)</script>&\"'"
    mixtures, metrics = (frame.rename({old: hostile}) for frame, old in zip(frames, ("books", "web_loss"), strict=True))
    found = mixopt.fit(join_tables(table_of(mixtures, "mixtures.csv"), table_of(metrics, "metrics.csv")), surrogate="ridge")
    assert "<script>alert" not in fit_report(found)
    body = yaml.safe_load(proposal_yaml(found))
    assert hostile in body["mixture"]
    assert hostile in body["predicted"]["metrics"]


def test_the_files_of_an_earlier_fit_are_replaced(result: FitResult, tmp_path: Path) -> None:
    result.write(tmp_path, ASKED)
    (tmp_path / "mine.txt").write_text("kept", encoding="utf-8")
    (tmp_path / "proposal.yaml").write_text("old", encoding="utf-8")
    result.write(tmp_path)
    # Predictions of another fit would be taken for this one's.
    assert {path.name for path in tmp_path.iterdir()} == {"mine.txt", *FILES} - {"predictions.csv"}
    assert "old" not in (tmp_path / "proposal.yaml").read_text(encoding="utf-8")[:4]


def test_nothing_is_written_where_something_fails(result: FitResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(result: FitResult) -> str:
        raise RuntimeError("no page")

    monkeypatch.setattr("mixopt.fitting.page.fit_report", fail)
    with pytest.raises(RuntimeError, match="no page"):
        result.write(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(RuntimeError, match="no page"):
        result.write(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(ConfigError, match="cannot be written") as failed:
        check_folder(tmp_path / "file")
    assert failed.value.hint == "Name another folder."


def test_a_second_time_gives_the_same_bytes(folder: Path, result: FitResult, tmp_path: Path) -> None:
    result.write(tmp_path, ASKED)
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes(), name


def test_effects_are_turned_with_their_intervals() -> None:
    assert signed_effect(Effect(-1.0, -3.0, -0.5), -1.0) == Effect(1.0, 0.5, 3.0)
    assert signed_effect(Effect(-1.0, -3.0, -0.5), 1.0) == Effect(-1.0, -3.0, -0.5)


def test_plain_values() -> None:
    value = plain({1: np.float64(0.5), "none": math.nan, "inf": [math.inf, (np.int64(3), "x", True)]})
    assert value == {"1": 0.5, "none": None, "inf": [None, [3, "x", True]]}


def test_a_fit_that_was_not_judged_is_written_and_says_so(runs: Runs, tmp_path: Path) -> None:
    few = mixopt.fit(runs.swarm.select(("r5", "r6", "r7", "r8")), surrogate="ridge")
    few.write(tmp_path)
    assert "not_judged" in yaml.safe_load((tmp_path / "proposal.yaml").read_text())["trust"]
    assert "Not judged:" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "diagnostics.json").read_text())["objective"] is None
