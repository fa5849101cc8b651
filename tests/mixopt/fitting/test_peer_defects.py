"""Inputs on which the closest peer (Olmix at 9586977, methods/surrogates-measured.md, C5) fails or silently gives another mixture, and what is right.

Tables are of 40 runs of four synthetic domains, of which each of three metrics likes one best; their columns and rows are in no alphabetical order.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from itertools import islice, permutations
from pathlib import Path

import numpy as np
import pytest
import yaml

from mixopt.cli import main
from mixopt.domains import Domain, DomainSet
from mixopt.errors import ConfigError, InfeasibleError
from mixopt.fitting.file import load_fit_file, parse_fit_file
from mixopt.fitting.fit import fit
from mixopt.fitting.outputs import FILES
from mixopt.fitting.runs import read_runs
from mixopt.simplex import sample_dirichlet, temper
from mixopt.strategies.design import draws

DOMAINS = ("web", "code", "arxiv", "books")
METRICS = ("web_loss", "code_loss", "arxiv_loss")
RUNS = 40
WRITTEN = [name for name in FILES if name != "predictions.csv"]


def write_table(path: Path, names: Sequence[str], values: np.ndarray, rows: Sequence[int]) -> Path:
    lines = [",".join(["run", *names])] + [",".join([f"r{row}", *map(str, values[row, : len(names)].tolist())]) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def arrays() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    weights = rng.dirichlet(np.full(len(DOMAINS), 0.8), RUNS)
    worth = np.array([[-1.5, 0.2, 0.1, -0.3], [0.3, -2.0, 0.2, 0.2], [0.2, 0.1, -1.8, 0.1]])
    return weights, 2 + np.exp(weights @ worth.T) + rng.normal(0, 0.01, (RUNS, len(METRICS)))


@pytest.fixture
def tables(arrays: tuple[np.ndarray, np.ndarray], tmp_path: Path) -> dict[str, Path]:
    weights, losses = arrays
    shuffled = np.random.default_rng(1).permutation(RUNS).tolist()
    return {
        "mixtures": write_table(tmp_path / "mixtures.csv", DOMAINS, weights, range(RUNS)),
        "metrics": write_table(tmp_path / "metrics.csv", METRICS, losses, range(RUNS)),
        "shuffled": write_table(tmp_path / "shuffled.csv", METRICS, losses, shuffled),
        "two": write_table(tmp_path / "two.csv", METRICS[:2], losses, range(RUNS)),
    }


@pytest.fixture
def run_fit(tables: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """`mixopt fit` at the command line, in this process; returns the folder of results."""

    def run(folder: str, metrics: str = "metrics", config: str | None = None) -> Path:
        command = [
            "mixopt",
            "fit",
            "--mixtures",
            str(tables["mixtures"]),
            "--metrics",
            str(tables[metrics]),
            "--out",
            str(tmp_path / folder),
        ]
        if config is not None:
            (tmp_path / "fit.yaml").write_text(config, encoding="utf-8")
            command += ["--config", str(tmp_path / "fit.yaml")]
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [*command, "--surrogate", "power_law"])
        with pytest.raises(SystemExit) as end:
            main()
        assert end.value.code in (None, 0)
        return tmp_path / folder

    return run


def test_rows_are_joined_by_id_and_not_by_position(run_fit: Callable[..., Path]) -> None:
    """1. The peer pairs row 1 with row 1: shuffled metrics give another mixture, exit 0."""
    straight, shuffled = run_fit("straight"), run_fit("shuffled", "shuffled")
    assert [(straight / name).read_bytes() for name in WRITTEN] == [(shuffled / name).read_bytes() for name in WRITTEN]
    assert json.loads((shuffled / "diagnostics.json").read_text())["objective"]["spearman"] > 0.9


def test_a_domain_is_drawn_by_its_own_prior_wherever_it_is_listed() -> None:
    """2. The peer's `generate` gives weights of the alphabetical order to the names in the order of the file: .05 and .8 change places."""
    tokens = {"web": 80e9, "code": 15e9, "arxiv": 5e9}
    drawn = []
    for order in permutations(tokens):
        domains = DomainSet(tuple(Domain(name, name, 10**6, tokens[name]) for name in order), 100e9)
        drawn.append([point.mixture.as_dict() for point in islice(draws(domains, seed=0), 120)])
    assert all(mixtures == drawn[0] for mixtures in drawn[1:])
    means = {name: np.mean([mixture[name] for mixture in drawn[0]]) for name in tokens}
    assert means["web"] > means["code"] > means["arxiv"]


def test_token_counts_belong_to_their_domains_wherever_they_are_listed(tables: dict[str, Path]) -> None:
    """2, in the file of a fit."""
    runs = read_runs(tables["mixtures"], tables["metrics"])
    counts = dict(zip(DOMAINS, (600, 200, 150, 50), strict=True))
    for order in permutations(DOMAINS):
        config = parse_fit_file({"domains": {name: {"tokens": counts[name]} for name in order}})
        natural = config.domain_set(runs).natural().as_dict()
        assert natural == {name: pytest.approx(counts[name] / 1000) for name in DOMAINS}


def test_two_tables_are_enough(run_fit: Callable[..., Path]) -> None:
    """3. The peer's minimal documented file fits every metric and then dies: kl_reg must be provided."""
    folder = run_fit("minimal")
    assert {path.name for path in folder.iterdir()} == set(WRITTEN)
    assert sum(yaml.safe_load((folder / "proposal.yaml").read_text())["mixture"].values()) == pytest.approx(1, abs=1e-9)


def test_caps_that_cannot_be_met_are_an_error_before_anything_is_fitted(tables: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """4. The peer does not look at its solver's status: TypeError, 'NoneType' object is not iterable, after the fit."""

    def must_not_fit(*arguments: object) -> None:
        raise AssertionError("fitted although no mixture is feasible")

    monkeypatch.setattr("mixopt.surrogates.power_law.PowerLawSurrogate.fit", must_not_fit)
    entries = {name: {"tokens": count, "max_epochs": 4} for name, count in zip(DOMAINS, (600, 200, 100, 100), strict=True)}
    config = parse_fit_file({"budget_tokens": 10_000, "domains": entries})
    with pytest.raises(InfeasibleError) as failed:
        fit(read_runs(tables["mixtures"], tables["metrics"]), config=config, surrogate="power_law")
    assert "sum to 0.4, 0.6 short of 1" in failed.value.message
    assert "6e+03 of the 1e+04 budget tokens" in failed.value.message
    assert all(f"{name} {cap:g}" in failed.value.message for name, cap in zip(DOMAINS, (0.24, 0.08, 0.04, 0.04), strict=True))
    assert failed.value.hint == "Raise `max_epochs` of 'web' from 4 to 14."


def test_a_metric_can_be_left_out_while_others_are_weighted(run_fit: Callable[..., Path]) -> None:
    """5. The peer's drop_metrics with obj_weights: shapes (3,) and (2,) do not match, after the full fit."""
    folder = run_fit("weighted", config="objective: {kind: weighted, metrics: {web_loss: 2, code_loss: 1}}")
    proposal = yaml.safe_load((folder / "proposal.yaml").read_text())
    assert proposal["objective"]["metrics"] == {"web_loss": pytest.approx(2 / 3, abs=1e-4), "code_loss": pytest.approx(1 / 3, abs=1e-4)}
    assert set(proposal["predicted"]["metrics"]) == set(METRICS)
    assert proposal["mixture"]["arxiv"] < 0.1  # only the metric that does not count likes it


def test_a_fit_of_some_metrics_leaves_nothing_behind_for_a_fit_of_all(run_fit: Callable[..., Path]) -> None:
    """6. The peer's cache does not know the list of metrics: a subset, then all, is KeyError."""
    some = run_fit("same", "two")
    assert set(yaml.safe_load((some / "proposal.yaml").read_text())["predicted"]["metrics"]) == set(METRICS[:2])
    after, alone = run_fit("same"), run_fit("fresh")
    assert [(after / name).read_bytes() for name in WRITTEN] == [(alone / name).read_bytes() for name in WRITTEN]


def test_one_strength_is_a_range_of_strengths() -> None:
    """7. The peer's `generate` with min_strength == max_strength is IndexError. Here the mean is the tempered prior, within 5 sigma."""
    prior, count = np.array([0.8, 0.15, 0.05]), 4000
    base = temper(prior)
    for strengths in ((2.0,), (2.0, 2.0)):
        drawn = sample_dirichlet(np.random.default_rng(0), prior, count, strengths)
        sigma = np.sqrt(base * (1 - base) / (1 + 2.0) / count)  # of a mean of Dirichlet(2 base)
        assert np.all(np.abs(drawn.mean(axis=0) - base) < 5 * sigma)


def test_a_misspelt_section_is_an_error_that_names_the_right_one(tmp_path: Path) -> None:
    """And: the peer takes `regresion:` without a word and fits its default."""
    path = tmp_path / "fit.yaml"
    path.write_text("objectiv: {kind: mean}\n", encoding="utf-8")
    with pytest.raises(ConfigError) as failed:
        load_fit_file(path)
    assert "objectiv" in failed.value.message
    assert "'objective'" in str(failed.value)
