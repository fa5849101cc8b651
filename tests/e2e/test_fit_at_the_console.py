"""`mixopt fit` as the console script: every byte of its files, and of bad input one message, its remedy and an exit code, with nothing left behind.

What the files hold is in test_fit_command.py.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml

from mixopt.cli import main

ROOT = Path(__file__).resolve().parents[2]
FILES = {"predictions.csv", "proposal.yaml", "diagnostics.json", "report.html"}
DOMAINS, METRICS, RUNS = ("web", "code", "books"), ("web_loss", "code_score"), 24
Fit = Callable[..., "Ended"]


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str


@pytest.fixture
def tables(tmp_path: Path) -> dict[str, pl.DataFrame]:
    """24 runs of three domains, a loss and a score; written by `fit`."""
    rng = np.random.default_rng(0)
    weights = rng.dirichlet(np.ones(len(DOMAINS)), RUNS)
    losses = np.exp(-weights @ np.array([[1.5, 0.2], [0.2, 1.8], [0.3, 0.1]])) + rng.normal(0, 0.005, (RUNS, 2))
    frames = {
        "mixtures": pl.DataFrame(weights, schema=list(DOMAINS), orient="row"),
        "metrics": pl.DataFrame(losses * [1, -1], schema=list(METRICS), orient="row"),
    }
    ids = pl.Series("run", [f"r{row}" for row in range(RUNS)])
    asked = pl.DataFrame({"run_id": ["a", "007"], "web": [0.5, 0.2], "books": [0.1, 0.3], "code": [0.4, 0.5]})
    return {name: frame.insert_column(0, ids) for name, frame in frames.items()} | {"asked": asked}


@pytest.fixture
def fit(tables: dict[str, pl.DataFrame], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Fit:
    """Writes the tables and runs the command in this process, as the console script does."""

    def run(*options: str, out: str = "out", config: str | None = None) -> Ended:
        for name, frame in tables.items():
            frame.write_csv(tmp_path / f"{name}.csv")
        command = ["mixopt", "fit", "--mixtures", "mixtures.csv", "--metrics", "metrics.csv", "--surrogate", "ridge", "--out", out]
        if config is not None:
            (tmp_path / "fit.yaml").write_text(config, encoding="utf-8")
            command += ["--config", "fit.yaml"]
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [*command, *options])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        shown = capsys.readouterr()
        assert "Traceback" not in shown.err
        return Ended(int(end.value.code or 0), shown.out, shown.err)

    return run


def refused(ended: Ended, code: int, *parts: str) -> None:
    """That the command ended with `code` and one message that says all of `parts`."""
    assert ended.code == code, ended.err
    assert ended.err.startswith("error: ")
    for part in parts:
        assert part in ended.err
    assert len(ended.err.strip().splitlines()) <= 2  # what is wrong, and the remedy


def test_two_tables_give_four_files(fit: Fit, tmp_path: Path) -> None:
    ended = fit("--predict", "asked.csv", "--maximize", "code_score")
    assert ended.code == 0, ended.err
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES
    for words in (
        "Proposed mixture",
        "near-optimal",
        "uniform",
        "Train on",
        "90% interval",
        "Out of fold",
        "best trivial rule",
        "report.html",
    ):
        assert words in ended.out
    assert "natural mixture is unknown and taken to be uniform" in ended.out + ended.err
    with (tmp_path / "out" / "predictions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    expected = ["code_score_mean", "code_score_std", "web_loss_mean", "web_loss_std", "objective_mean", "objective_std"]
    assert rows[0] == ["run_id", *expected]
    assert [row[0] for row in rows[1:]] == ["a", "007"]
    assert all(-1 < float(row[1]) < 0 for row in rows[1:])  # scores, as given
    assert json.loads((tmp_path / "out" / "diagnostics.json").read_text())["objective"]["spearman"] > 0.8


def test_shuffled_rows_and_columns_give_the_same_bytes(fit: Fit, tables: dict[str, pl.DataFrame], tmp_path: Path) -> None:
    assert fit("--predict", "asked.csv", "--maximize", "code_score").code == 0
    rng = np.random.default_rng(1)
    for name in ("mixtures", "metrics"):
        frame = tables[name]
        tables[name] = frame[rng.permutation(RUNS).tolist()].select(rng.permutation(frame.columns).tolist())
    tables["asked"] = tables["asked"].select("code", "run_id", "web", "books")
    assert fit("--predict", "asked.csv", "--maximize", "code_score", out="shuffled").code == 0
    for name in FILES:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "shuffled" / name).read_bytes(), name


def test_the_console_script_reads_parquet_and_needs_no_terminal(tables: dict[str, pl.DataFrame], tmp_path: Path) -> None:
    for name, frame in tables.items():
        frame.write_parquet(tmp_path / f"{name}.parquet")
    arguments = [
        "--mixtures",
        "mixtures.parquet",
        "--metrics",
        "metrics.parquet",
        "--predict",
        "asked.parquet",
        "--surrogate",
        "ridge",
        "--out",
        "out",
    ]
    code = "import sys; from mixopt.cli import main\ntry: main()\nfinally: print('LOADED', 'ray' in sys.modules, 'torch' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code, "fit", *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "LOADED False False" in ended.stdout
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES


# What the tables, the file and the options may get wrong.


def test_a_table_that_is_not_there(fit: Fit, tmp_path: Path) -> None:
    refused(fit("--mixtures", "absent.csv"), 3, "absent.csv does not exist", "Name a CSV or Parquet file")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("table", "change", "parts"),
    [
        ("metrics", pl.lit("high").alias("web_loss"), ("metrics.csv: 'high' in column 'web_loss' of run r0 is no number", "Mend the cell")),
        ("mixtures", (pl.col("web") - 1).alias("web"), ("mixtures.csv: domain 'web' has a negative weight in runs r0, r1", "at least 0")),
        ("mixtures", pl.col(*DOMAINS) * 100, ("do not sum to 1 in runs r0 (100), r1 (100)", "They look like percent")),
        ("mixtures", pl.lit("r0").alias("run"), ("mixtures.csv: id r0 occurs more than once", "Give every row another run")),
        ("metrics", ("x" + pl.col("run")).alias("run"), ("No run is in both tables", "write the same ids into both")),
    ],
)
def test_bad_tables(table: str, change: pl.Expr, parts: tuple[str, ...], fit: Fit, tables: dict[str, pl.DataFrame], tmp_path: Path) -> None:
    tables[table] = tables[table].with_columns(change)
    refused(fit(), 3, *parts)
    assert not (tmp_path / "out").exists()


def test_what_is_left_out_is_said(fit: Fit, tables: dict[str, pl.DataFrame], tmp_path: Path) -> None:
    tables["metrics"] = tables["metrics"][:-2]
    tables["mixtures"] = tables["mixtures"].with_columns(law=pl.lit(0.0))
    tables["metrics"] = tables["metrics"].with_columns(code_score=pl.lit(2.5))
    ended = fit()
    assert ended.code == 0
    said = " ".join((ended.out + ended.err).split())
    assert "Runs r22, r23 have no metrics and are left out." in said
    assert "Domain law has no weight in any run" in said
    assert "Metric 'code_score' is 2.5 in every run" in said
    notes = yaml.safe_load((tmp_path / "out" / "proposal.yaml").read_text())["notes"]
    assert any("r22, r23" in note for note in notes)


@pytest.mark.parametrize(
    ("config", "options", "code", "parts"),
    [
        ("domains: {boks: {bounds: [0, 1]}}", (), 2, ("names 'boks', which is no domain of the table", "Did you mean 'books'?")),
        ("regresion: {}", (), 2, ("regresion",)),
        ("domains: {web: {bounds: [0, .2]}, code: {bounds: [0, .2]}, books: {bounds: [0, .2]}}", (), 4, ("sum to 0.6, 0.4 short of 1",)),
        (None, ("--maximize", "code_scor"), 2, ("There is no metric 'code_scor' to maximize.", "Did you mean 'code_score'?")),
        (None, ("--surrogate", "rigde"), 2, ("There is no surrogate 'rigde'", "Did you mean 'ridge'?")),
        (None, ("--predict", "metrics.csv"), 3, ("metrics.csv: 'web_loss' is no domain of the runs.",)),
        (None, ("--config", "absent.yaml"), 2, ("absent.yaml",)),
    ],
)
def test_slips_in_options(config: str | None, options: tuple[str, ...], code: int, parts: tuple[str, ...], fit: Fit) -> None:
    refused(fit(*options, config=config), code, *parts)


def test_an_out_that_is_a_file(fit: Fit, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("", encoding="utf-8")
    refused(fit(), 2, "--out out cannot be written", "Name another folder.")


# The example, and real runs.


def test_the_example_runs_as_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = ROOT / "examples" / "fit"
    first = " ".join(line.lstrip("# ") for line in (folder / "fit.yaml").read_text(encoding="utf-8").splitlines()[:2])
    command = first.split("`")[1].split()
    assert command[:2] == ["mixopt", "fit"]
    assert command[-2:] == ["--out", "out/fit"]
    shutil.copytree(folder, tmp_path / "examples" / "fit")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [*command, "--surrogate", "ridge"])
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code
    body = yaml.safe_load((tmp_path / "out" / "fit" / "proposal.yaml").read_text(encoding="utf-8"))
    assert body["objective"]["maximized"] == ["science_accuracy"]
    assert body["epochs"]["papers"] <= 3 + 1e-3
    assert body["mixture"]["forums"] >= 0.02 - 1e-6
    assert body["predicted"]["objective"]["interval90"][1] < 0  # better than natural


def test_the_examples_tables_are_those_of_its_script(tmp_path: Path) -> None:
    folder = ROOT / "examples" / "fit"
    shutil.copy(folder / "make_tables.py", tmp_path)
    subprocess.run([sys.executable, "make_tables.py"], cwd=tmp_path, check=True)
    for name in ("mixtures.csv", "metrics.csv"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


@pytest.mark.shared
@pytest.mark.skipif("MIXOPT_SHARED" not in os.environ, reason="MIXOPT_SHARED is not set")
def test_regmix_tables_as_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """64 of the 512 runs, three of the metrics, long column names, `index` for an id, weights of three digits."""
    folder = Path(os.environ["MIXOPT_SHARED"]) / "data" / "swarms" / "regmix"
    mixtures, metrics = pl.read_csv(folder / "train_mixture_1m.csv"), pl.read_csv(folder / "train_pile_loss_1m.csv")
    mixtures[:64].write_csv(tmp_path / "mixtures.csv")
    kept = [
        metrics.columns[0],
        *[name for name in metrics.columns if any(word in name.lower() for word in ("pile_cc", "pile-cc", "arxiv", "github"))],
    ]
    assert len(kept) == 4
    metrics[:64].select(kept).write_csv(tmp_path / "metrics.csv")
    pl.read_csv(folder / "test_mixture_1m.csv")[:5].write_csv(tmp_path / "asked.csv")
    monkeypatch.chdir(tmp_path)
    command = "mixopt fit --mixtures mixtures.csv --metrics metrics.csv --predict asked.csv --surrogate ridge --out out"
    monkeypatch.setattr(sys, "argv", command.split())
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code
    assert json.loads((tmp_path / "out" / "diagnostics.json").read_text())["objective"]["spearman"] > 0.85
    predicted = pl.read_csv(tmp_path / "out" / "predictions.csv")
    assert predicted.columns == [
        "index",
        *(f"{name}_{what}" for name in sorted(kept[1:]) for what in ("mean", "std")),
        "objective_mean",
        "objective_std",
    ]
    measured = pl.read_csv(folder / "test_pile_loss_1m.csv")[:5]
    for name in kept[1:]:
        np.testing.assert_allclose(predicted[f"{name}_mean"], measured[name], atol=0.6)
