"""What the file of `--config` may say, what follows from it, and what every slip in it is answered with."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mixopt.errors import ConfigError, DataError
from mixopt.fitting.file import FitFile, load_fit_file, parse_fit_file
from mixopt.fitting.runs import Runs, join_tables
from mixopt.fitting.tables import Table
from mixopt.fitting.where import answer_at, parameters, sources_by_cost, spoken
from mixopt.trial import Source

Make = Callable[..., Table]
COUNTED = {"web": {"tokens": "6B"}, "code": {"tokens": "3B"}, "books": {"tokens": 1e9}}


def test_nothing_need_be_said(runs: Runs) -> None:
    config = parse_fit_file({})
    assert config == FitFile()
    domains = config.domain_set(runs)
    assert domains.natural().as_dict() == {name: pytest.approx(1 / 3) for name in runs.swarm.domains}
    assert all(domain.max_epochs == math.inf for domain in domains.domains)
    assert config.weights(runs.swarm.metrics) == dict.fromkeys(runs.swarm.metrics, 1.0)
    assert not config.counted


def test_a_file_that_says_everything(tmp_path: Path, runs: Runs) -> None:
    (tmp_path / "fit.yaml").write_text(
        """
        budget_tokens: 10B
        domains:
          web: {tokens: 6B, max_epochs: 2, group: prose/web}
          code: {tokens: 3B, repeats: 2, bounds: [0.1, 0.5], group: code}
          books: {tokens: 1B, group: prose/books}
        groups: {prose: {bounds: [0.2, 0.8]}}
        objective:
          kind: worst_case
          metrics: [code_loss]
          floors: [{metric: web_loss, by: 0.02, baseline: 2.5}]
          confidence: 1
          pull: 0.1
        maximize: [code_loss]
        target: {size: 1B, tokens: 3e9}
        sizes: {nano: 3M}
        surrogate: ridge
        seed: 7
        """,
        encoding="utf-8",
    )
    config = load_fit_file(tmp_path / "fit.yaml")
    domains = config.domain_set(runs)
    found = {domain.name: domain for domain in domains.domains}
    assert (found["web"].max_epochs, found["code"].max_epochs, found["code"].bounds) == (2, 4, (0.1, 0.5))
    assert domains.natural().as_dict()["books"] == pytest.approx(0.1)
    assert domains.rules[0].path == "prose"
    assert config.weights(runs.swarm.metrics) == {"code_loss": 1.0}
    (floor,) = config.floors(runs)
    assert (floor.metric, floor.baseline) == ("web_loss", 2.5)
    assert (config.objective.pull, config.seed, config.sizes) == (0.1, 7, {"nano": 3_000_000})


def test_a_floor_on_a_maximized_metric_is_in_its_own_sign(runs: Runs) -> None:
    flipped = Runs(runs.swarm, frozenset({"web_loss"}))
    config = parse_fit_file({"objective": {"floors": [{"metric": "web_loss", "by": 0.1, "baseline": 2.5}]}})
    assert config.floors(flipped)[0].baseline == -2.5
    assert config.floors(runs)[0].baseline == 2.5


def test_bare_numbers_are_names(runs: Runs) -> None:
    assert list(parse_fit_file({"domains": {2024: None}}).domains) == ["2024"]
    assert parse_fit_file({"target": {"size": 70}}).target.size == "70"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("raw", "parts"),
    [
        ({"objectiv": {}}, ["objectiv", "'objective'"]),
        ({"objective": {"kinds": "mean"}}, ["kinds", "'kind'"]),
        ({"objective": {"kind": "average"}}, ["objective.kind", "worst_case"]),
        ({"objective": {"kind": "weighted"}}, ["needs weights", "or use 'mean'"]),
        ({"objective": {"kind": "weighted", "metrics": ["a"]}}, ["needs weights"]),
        ({"objective": {"metrics": ["a", "a"]}}, ["'a' is listed twice"]),
        ({"objective": {"metrics": []}}, ["write a list of metrics"]),
        ({"objective": {"metrics": "a"}}, ["write a list of metrics"]),
        ({"objective": {"metrics": {"a": -1}}}, ["objective.metrics"]),
        ({"objective": {"pull": -1}}, ["objective.pull"]),
        ({"domains": {"web": {"tokns": 3}}}, ["tokns", "'tokens'"]),
        ({"domains": {"web": {"tokens": "plenty"}}}, ["domains.web.tokens", "plenty"]),
        ({"domains": {"web": {"tokens": 1}, "code": {}}}, ["omain 'code' has no tokens, but 'web' has"]),
        ({"domains": {"web": {"tokens": 1, "max_epochs": 3}}}, ["`max_epochs` of domain 'web' needs its tokens and budget_tokens"]),
        ({"domains": {"web": {"bounds": [0.5, 0.2]}}}, ["domains.web.bounds"]),
        ({"budget_tokens": "1B"}, ["`budget_tokens` needs the tokens of the domains"]),
        ({"seed": -1}, ["seed"]),
        ({"target": {"token": 3}}, ["token", "'tokens'"]),
    ],
)
def test_slips(raw: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(ConfigError) as failed:
        parse_fit_file(raw)
    for part in parts:
        assert part in str(failed.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.yaml"):
        load_fit_file(tmp_path / "absent.yaml")
    (tmp_path / "fit.yaml").write_text("domains: [", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"fit\.yaml"):
        load_fit_file(tmp_path / "fit.yaml")
    (tmp_path / "fit.yaml").write_text("- web\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"fit\.yaml"):
        load_fit_file(tmp_path / "fit.yaml")


def test_names_that_the_tables_do_not_have(runs: Runs) -> None:
    with pytest.raises(ConfigError, match="names 'boks', which is no domain of the table") as failed:
        parse_fit_file({"domains": {"boks": {}}}).domain_set(runs)
    assert failed.value.hint == "Did you mean 'books'?"
    with pytest.raises(ConfigError, match="names 'code_los', which is no metric of the runs") as failed:
        parse_fit_file({"objective": {"metrics": ["code_los"]}}).weights(runs.swarm.metrics)
    assert failed.value.hint == "Did you mean 'code_loss'?"
    with pytest.raises(ConfigError, match="names 'web', which is no metric of the runs"):
        parse_fit_file({"objective": {"floors": [{"metric": "web", "by": 0.1}]}}).floors(runs)


def test_tokens_of_some_domains_only(runs: Runs) -> None:
    with pytest.raises(ConfigError, match="gives tokens, but not of books"):
        parse_fit_file({"domains": {name: COUNTED[name] for name in ("web", "code")}}).domain_set(runs)


def test_tokens_of_a_domain_that_no_run_had_do_not_matter(runs: Runs) -> None:
    without = Runs(runs.swarm, left_out_domains=("law",))
    domains = parse_fit_file({"domains": {**COUNTED, "law": {"tokens": "90B"}}}).domain_set(without)
    assert domains.natural().as_dict() == {"books": pytest.approx(0.1), "code": pytest.approx(0.3), "web": pytest.approx(0.6)}


def test_bounds_without_tokens(runs: Runs) -> None:
    domains = parse_fit_file({"domains": {"web": {"bounds": [0.2, 0.4]}}}).domain_set(runs)
    assert {domain.name: domain.bounds for domain in domains.domains} == {"books": (0, 1), "code": (0, 1), "web": (0.2, 0.4)}


# Where the answer is wanted.


@pytest.fixture
def at_sources(table: Make) -> Callable[..., Runs]:
    def of(sizes: str, tokens: str, **columns: object) -> Runs:
        count = len(sizes.split())
        shares = [row / count for row in range(count)]
        ids = [f"r{row}" for row in range(count)]
        return join_tables(
            table("mixtures.csv", run=ids, size=sizes, tokens=tokens, web=shares, code=[1 - share for share in shares], **columns),
            table("metrics.csv", run=ids, loss=list(range(count))),
        )

    return of


def test_the_answer_is_for_the_largest_source(at_sources: Callable[..., Runs]) -> None:
    swarm = at_sources("1M 1M 60M 10M", "1B 2B 1B 3B").swarm
    assert answer_at(swarm, FitFile()) == Source("given", "60M", 10**9)
    assert [source.size for source in sources_by_cost(swarm, FitFile())] == ["1M", "1M", "10M", "60M"]
    assert spoken(answer_at(swarm, FitFile())) == "size 60M, 1B tokens"


def test_a_target_may_leave_something_open(at_sources: Callable[..., Runs]) -> None:
    swarm = at_sources("1M 1M 60M 60M", "1B 2B 1B 2B").swarm
    for raw, source in (
        ({"size": "1M"}, Source("given", "1M", 2 * 10**9)),
        ({"tokens": "1B"}, Source("given", "60M", 10**9)),
        ({"size": "1M", "tokens": "1B"}, Source("given", "1M", 10**9)),
        ({"tokens": "9B"}, Source("given", "60M", 9 * 10**9)),
    ):
        assert answer_at(swarm, parse_fit_file({"target": raw})) == source


def test_a_target_that_one_source_cannot_tell(runs: Runs) -> None:
    with pytest.raises(ConfigError, match="asks for size 1B and any tokens, and all runs are at size unknown"):
        answer_at(runs.swarm, parse_fit_file({"target": {"size": "1B"}}))


def test_sizes_need_parameters_or_costs(at_sources: Callable[..., Runs]) -> None:
    swarm = at_sources("nano nano large large", "1B 1B 1B 1B").swarm
    with pytest.raises(ConfigError, match="How many parameters the size 'nano' has is not known") as failed:
        answer_at(swarm, FitFile())
    assert "sizes: {nano: 70M}" in failed.value.hint
    config = parse_fit_file({"sizes": {"nano": "90M", "large": "3M"}})
    assert answer_at(swarm, config).size == "nano"
    assert parameters("nano", config) == 90_000_000
    costed = at_sources("nano nano large large", "1B 1B 1B 1B", cost=[1.0, 1.0, 5.0, 5.0]).swarm
    assert answer_at(costed, FitFile()).size == "large"
    assert answer_at(at_sources("nano nano nano nano", "1B 1B 2B 2B").swarm, FitFile()).tokens == 2 * 10**9


def test_a_missing_size_is_no_size(at_sources: Callable[..., Runs]) -> None:
    with pytest.raises(DataError, match="a run has no size"):
        at_sources("1M 1M NA 1M", "1 1 1 1")
