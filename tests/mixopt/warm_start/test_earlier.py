"""Earlier runs as a search over other domains sees them: what is a trial like its own, what is a run of another source, and what is left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from mixopt.domains import Domain, DomainSet
from mixopt.errors import ConfigError, DataError
from mixopt.factory import TrialFactory
from mixopt.history import History
from mixopt.mixture import Mixture, Schedule
from mixopt.surrogates import get_surrogate
from mixopt.trial import Measurement, Outcome, Source, Trial
from mixopt.warm_start.config import EarlierRuns
from mixopt.warm_start.earlier import Earlier, Wanted, joined, read_search, refuse_unless_fitting
from mixopt.warm_start.given import read_given

SOURCE = Source("trained", "nano", 1000)
OLD = {"web": "hash-web", "code": "hash-code", "law": "hash-law"}
NEW = {"crawl": "hash-web", "code": "hash-code", "math": "hash-math"}
MIXTURES = ((0.5, 0.5, 0.0), (0.25, 0.75, 0.0), (1.0, 0.0, 0.0), (0.2, 0.3, 0.5), (0.0, 1.0, 0.0))
"""Of the old search, over web, code and law; the fourth gives weight to what is gone."""
METRICS = {"key-target": "target/t", "key-web": "valid/web"}
SEARCH = "0123456789abcdef0123"


def factory(contents: dict[str, str], tokens: float = 1e6, **recipe: Any) -> TrialFactory:
    domains = tuple(Domain(name, content, 10**6, tokens) for name, content in contents.items())
    return TrialFactory(DomainSet(domains, 1e6), SOURCE, {"window": 10, "learning_rate": 0.01, **recipe}, "tokenizer", "engine")


def outcome(trial: Trial, keys: dict[str, str], level: float = 1.0) -> Outcome:
    realized = {d.content_hash: (w,) for d, w in zip(trial.domains, trial.schedule.mixtures[0].weights, strict=True) if w}
    points = [(key, tokens) for key in keys for tokens in (500, 1000)]
    measured = tuple(Measurement(key, tokens, level, level + 1e3 / tokens + len(key) / 100) for key, tokens in points)
    return Outcome(trial.trial_id, realized, measured, 1000, 5e9, 1.0)


def context(contents: dict[str, str], metrics: dict[str, str], target: str = "text-t") -> dict[str, Any]:
    return {
        "domains": [{"name": name, "kind": "text", "held_out": {"content_hash": f"valid-{content}"}} for name, content in contents.items()],
        "targets": [{"name": "t", "kind": "completion", "content_hash": target}],
        "metrics": metrics,
    }


@dataclass
class Record:
    history: History

    def search(self, made: TrialFactory, keys: dict[str, str] | None = None, target: str = "text-t") -> list[str]:
        """A finished earlier search; returns the ids of its trials."""
        keys = keys or METRICS
        self.history.add_search(SEARCH, "old", "name: old\n")
        names = made.domains.names
        trials = [made.make(Schedule.constant(Mixture(names, row)), seed, "design") for seed, row in enumerate(MIXTURES)]
        self.history.add_trials(SEARCH, trials, "search")
        for number, trial in enumerate(trials):
            self.history.complete(outcome(trial, keys, 1 + number / 10))
        self.history.save_document(SEARCH, "context", context(OLD, keys, target))
        return [trial.trial_id for trial in trials]


@pytest.fixture
def record(tmp_path: Path) -> Iterator[Record]:
    with History.open(tmp_path / "record.db") as history:
        yield Record(history)


def wanted(metrics: dict[str, str] | None = None, counted: tuple[str, ...] = ("target/t",), **changes: Any) -> Wanted:
    held_out = {"target/t": ("text-t", "completion"), "valid/crawl": ("valid-hash-web", "text"), "valid/math": ("valid-hash-math", "text")}
    keys = {"key-target": "target/t", "key-web": "valid/crawl"} if metrics is None else metrics
    return Wanted(factory(NEW, **changes), keys, {}, held_out, counted)


def never(_: str) -> bool:
    return False


def test_runs_are_mapped_by_content_and_are_trials_of_the_new_search(record: Record) -> None:
    ids = record.search(factory(OLD))
    earlier = read_search(record.history, SEARCH, wanted(), never)
    assert earlier.swarm.domains == ("crawl", "code", "math")
    assert set(earlier.swarm.trial_ids) == set(ids) - {ids[3]}
    assert set(earlier.swarm.points().sources) == {SOURCE}
    assert earlier.swarm.metrics == ("target/t", "valid/crawl")
    rows = dict(zip(earlier.swarm.trial_ids, earlier.swarm.points(realized=False).averages().tolist(), strict=True))
    assert rows[ids[1]] == [0.25, 0.75, 0.0]
    assert "1 runs give weight to 'law'" in " ".join(earlier.notes)
    assert set(earlier.known) == set(ids) - {ids[3]}


def test_what_lacks_a_new_metric_is_scored_where_its_weights_are_kept(record: Record) -> None:
    ids = record.search(factory(OLD))
    want = wanted({"key-target": "target/t", "key-web": "valid/crawl", "key-math": "valid/math"})
    earlier = read_search(record.history, SEARCH, want, lambda trial_id: trial_id != ids[0])
    assert {trial.trial_id for trial in earlier.unscored} == {ids[1], ids[2], ids[4]}
    assert all(trial.schedule.domains == ("crawl", "code", "math") for trial in earlier.unscored)
    # The one whose weights are gone is told apart from this search's own, for it lacks a metric of theirs.
    assert earlier.swarm.trial_ids == (ids[0],)
    assert earlier.swarm.points().sources[0] == Source("earlier-01234567", "nano", 1000)
    before = earlier.identity
    for trial in earlier.unscored:
        record.history.complete(outcome(trial, {**METRICS, "key-math": ""}))
    scored = read_search(record.history, SEARCH, want, lambda trial_id: trial_id != ids[0])
    assert not scored.unscored
    assert len(scored.swarm.at_source(SOURCE)) == 3
    assert scored.identity == before, "what is scored later moves no identity"


@pytest.mark.parametrize("changes", [{"learning_rate": 0.02}, {"tokens": 5e8}])
def test_another_recipe_or_other_epochs_make_a_source_of_their_own(record: Record, changes: dict[str, Any]) -> None:
    record.search(factory(OLD))
    earlier = read_search(record.history, SEARCH, wanted(**changes), lambda _: True)
    assert {source.evaluator for source in earlier.swarm.points().sources} == {"earlier-01234567"}
    assert not earlier.unscored
    assert "are taken as runs of a source of their own" in earlier.notes[0]
    with pytest.raises(ConfigError, match="brings 4 runs that are not like this search's trials") as error:
        refuse_unless_fitting(get_surrogate("gaussian_process"), "gaussian_process", earlier, (SOURCE,))
    assert "multi_source_gp" in error.value.hint
    refuse_unless_fitting(get_surrogate("multi_source_gp"), "multi_source_gp", earlier, (SOURCE,))


SMALL = Source("trained", "nano", 500)
SMALL_METRICS = {"small-key-target": "target/t", "small-key-web": "valid/web"}


def small_wanted() -> Wanted:
    """A search that runs trials at a cheaper source too, where it scores on other rows."""
    here = wanted()
    keys = {"small-key-target": "target/t", "small-key-web": "valid/crawl"}
    small = Wanted(replace(factory(NEW), source=SMALL), keys, {}, here.held_out, here.counted)
    return replace(here, cheaper=(small,))


def test_runs_at_a_cheaper_source_of_the_search_are_like_its_own_there(record: Record) -> None:
    ids = record.search(replace(factory(OLD), source=SMALL), SMALL_METRICS)
    alone = read_search(record.history, SEARCH, wanted(), never)
    assert {source.key for source in alone.swarm.points().sources} == {"earlier-01234567/nano/500"}, "of no source of that search"
    earlier = read_search(record.history, SEARCH, small_wanted(), never)
    assert set(earlier.swarm.trial_ids) == set(ids) - {ids[3]}
    assert set(earlier.swarm.points().sources) == {SMALL}
    assert earlier.swarm.metrics == ("target/t", "valid/crawl")
    assert "4 of its 5 runs are trials like this search's own." in earlier.notes[0]
    refuse_unless_fitting(get_surrogate("scaling_additive"), "scaling_additive", earlier, (SMALL, SOURCE))
    with pytest.raises(ConfigError, match="brings 4 runs that are not like"):
        refuse_unless_fitting(get_surrogate("scaling_additive"), "scaling_additive", alone, (SMALL, SOURCE))


def test_kept_runs_at_a_cheaper_source_are_scored_on_what_is_scored_there(record: Record) -> None:
    ids = record.search(replace(factory(OLD), source=SMALL), {"small-key-target": "target/t"})
    earlier = read_search(record.history, SEARCH, small_wanted(), lambda _: True)
    assert {trial.trial_id for trial in earlier.unscored} == set(ids) - {ids[3]}
    assert {trial.source for trial in earlier.unscored} == {SMALL}


def test_other_held_out_text_is_left_out_and_said(record: Record) -> None:
    record.search(factory(OLD), {"other-key": "target/t", "key-web": "valid/web"}, target="other text")
    earlier = read_search(record.history, SEARCH, wanted(), never)
    assert not len(earlier.swarm)
    assert "4 runs were not scored on all held-out text that counts here" in " ".join(earlier.notes)


def test_other_rows_of_the_same_text_are_a_source_of_their_own(record: Record) -> None:
    record.search(factory(OLD), {"fewer-rows": "target/t"})
    earlier = read_search(record.history, SEARCH, wanted(), never)
    assert len(earlier.swarm) == 4
    assert earlier.swarm.metrics == ("target/t",)
    assert {source.evaluator for source in earlier.swarm.points().sources} == {"earlier-01234567"}


def test_a_run_in_two_entries_counts_once(record: Record) -> None:
    record.search(factory(OLD))
    one = read_search(record.history, SEARCH, wanted(), never)
    both = joined([one, one], one.swarm.domains)
    assert both.swarm.trial_ids == one.swarm.trial_ids
    assert len(both.swarm.losses) == len(one.swarm.losses)
    assert both.identity == one.identity


@pytest.fixture
def table(tmp_path: Path) -> Callable[..., Path]:
    def write(name: str = "runs.csv", **columns: list[Any]) -> Path:
        path = tmp_path / name
        pl.DataFrame(columns).write_csv(path)
        return path

    return write


def rows(count: int = 6) -> dict[str, list[Any]]:
    rng = np.random.default_rng(0)
    weights = rng.dirichlet(np.ones(3), count).round(6)
    weights[:, 0] = (1 - weights[:, 1:].sum(axis=1)).round(6)
    losses = 1 + (0.1 + weights[:, 0]) ** -0.3
    return {
        "run": list(range(count)),
        **{name: weights[:, column].tolist() for column, name in enumerate(("crawl", "code", "math"))},
        "t": losses.tolist(),
        "other": list(range(count)),
    }


def test_one_table_is_read_by_the_names_of_domains_and_metrics(table: Callable[..., Path]) -> None:
    columns = rows()
    columns["crawl"][2] = columns["crawl"][2] / 2  # the rest of it was on a domain that is not here
    earlier = read_given(EarlierRuns(runs=str(table(**columns))), wanted())
    assert earlier.swarm.domains == ("crawl", "code", "math")
    assert len(earlier.swarm) == 5
    assert earlier.swarm.metrics == ("target/t",)
    (source,) = set(earlier.swarm.points().sources)
    assert source.evaluator.startswith("table-")
    said = " ".join(earlier.notes)
    assert "1 runs of runs.csv give weight to domains that this search does not have" in said
    assert "not read: other" in said


def test_two_tables_are_matched_to_the_search(table: Callable[..., Path]) -> None:
    columns = rows()
    weights = table("m.csv", run=columns["run"], web=columns["math"], crawl=columns["crawl"], code=columns["code"])
    losses = table("l.csv", run=columns["run"], score=columns["t"])
    entry = EarlierRuns(mixtures=str(weights), metrics=str(losses), names={"score": "target/t"})
    with pytest.raises(DataError, match="gives weight to domains that this search lacks"):
        read_given(entry, wanted())
    good = table("m2.csv", run=columns["run"], math=columns["math"], crawl=columns["crawl"], code=columns["code"])
    earlier = read_given(EarlierRuns(mixtures=str(good), metrics=str(losses), names={"score": "target/t"}), wanted())
    assert earlier.swarm.points().averages()[:, 0] == pytest.approx(columns["crawl"])
    assert earlier.swarm.values(("target/t",))[:, 0] == pytest.approx(columns["t"])
    elsewhere = table("again.csv", run=columns["run"], score=columns["t"])
    again = read_given(EarlierRuns(mixtures=str(good), metrics=str(elsewhere), names={"score": "target/t"}), wanted())
    assert again.identity == earlier.identity, "content counts, not the name of the file"


def test_a_table_without_what_counts_is_refused(table: Callable[..., Path]) -> None:
    columns = rows()
    columns["loss"] = columns.pop("t")
    path = str(table(**columns))
    with pytest.raises(DataError, match="has no column for target/t") as error:
        read_given(EarlierRuns(runs=path), wanted())
    assert "`names` which column it is; there are other, loss." in error.value.hint
    for names, said in (({"lost": "target/t"}, "column 'lost'"), ({"loss": "target/tt"}, "metric 'target/tt'")):
        with pytest.raises(DataError, match=said):
            read_given(EarlierRuns(runs=path, names=names), wanted())


def test_too_few_runs_are_told_with_their_table(table: Callable[..., Path]) -> None:
    with pytest.raises(DataError, match=r"at least 4 runs, got 2 of runs\.csv"):
        read_given(EarlierRuns(runs=str(table(**rows(2)))), wanted())


def test_nothing_earlier_moves_no_identity() -> None:
    from mixopt.swarm import Swarm

    assert Earlier(Swarm.empty(("a", "b"))).identity == {}
    assert replace(Earlier(Swarm.empty(("a", "b"))), known=("x",)).identity == {"warm_start": ["x"]}
