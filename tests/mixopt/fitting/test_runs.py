"""Two tables joined: exact values, every bad input of the issue with its message."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mixopt.errors import ConfigError, DataError
from mixopt.fitting.runs import Runs, join_tables, read_runs
from mixopt.fitting.tables import Table
from mixopt.fitting.weights import checked_weights

Make = Callable[..., Table]
EIGHT = "a b c d e f g h"
LOSSES = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]
SHARES = [0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0]


def said(runs: Runs, *parts: str) -> bool:
    return any(all(part in note for part in parts) for note in runs.notes)


# What the tables say is what the swarm holds.


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), count=st.integers(4, 12))
def test_values_are_exact_whatever_the_order(data: st.DataObject, count: int, tmp_path: Path) -> None:
    """CSV to swarm, both tables shuffled in rows and columns: weights that sum to 1 and all losses come back bit for bit."""
    eighths = data.draw(
        st.lists(st.integers(0, 8), min_size=count, max_size=count).filter(lambda drawn: any(drawn) and len(set(drawn)) > 1)
    )
    losses = data.draw(st.lists(st.floats(-1e300, 1e300), min_size=count, max_size=count, unique=True))
    ids = data.draw(
        st.lists(st.text("abcXYZ019-_", min_size=1, max_size=6), min_size=count, max_size=count, unique_by=lambda t: t.lstrip("0"))
    )
    ids = [f"r{number}" for number in ids]  # "na" is no id
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    mixtures = pl.DataFrame({"run": ids, "web": [e / 8 for e in eighths], "code": [1 - e / 8 for e in eighths]})
    metrics = pl.DataFrame({"run": ids, "loss": losses, "row": range(count)})
    for name, frame in (("mixtures", mixtures), ("metrics", metrics)):
        frame = frame[rng.permutation(count).tolist()].select(rng.permutation(frame.columns).tolist())
        frame.write_csv(tmp_path / f"{name}.csv")
    swarm = read_runs(tmp_path / "mixtures.csv", tmp_path / "metrics.csv").swarm
    rows = [ids.index(name) for name in swarm.trial_ids]
    assert sorted(rows) == list(range(count))
    weights = swarm.points().averages()[:, swarm.domains.index("web")]
    assert weights.tolist() == [eighths[row] / 8 for row in rows]
    assert swarm.values(("loss",))[:, 0].tolist() == [losses[row] for row in rows]
    assert swarm.values(("row",))[:, 0].tolist() == rows


def test_everything_is_in_the_order_of_names(mixtures: Make, metrics: Make) -> None:
    swarm = join_tables(mixtures(run="10 9 b a 8 7 6 5"), metrics(run="10 9 b a 8 7 6 5", also=LOSSES[::-1])).swarm
    assert swarm.trial_ids == ("5", "6", "7", "8", "9", "10", "a", "b")
    assert swarm.domains == ("code", "web")
    assert swarm.metrics == ("also", "loss")


def test_ids_are_joined_as_people_write_them(mixtures: Make, metrics: Make) -> None:
    runs = join_tables(mixtures(run=[str(row) for row in range(8)]), metrics(run=[float(row) for row in range(8)]))
    assert runs.ids == {str(row): str(row) for row in range(8)}
    assert runs.swarm.values(("loss",))[:, 0].tolist() == LOSSES


def test_the_tables_may_call_their_ids_differently(mixtures: Make, table: Make) -> None:
    runs = join_tables(mixtures(), table("metrics.csv", run_id=EIGHT, loss=LOSSES))
    assert len(runs.swarm) == 8


def test_names_are_shown_and_never_joined_on(mixtures: Make, metrics: Make) -> None:
    names = [f"mix {letter}" for letter in "hgfedcba"]
    runs = join_tables(mixtures(name=names), metrics())
    assert runs.swarm.trials()["label"].to_list() == names
    assert runs.swarm.values(("loss",))[:, 0].tolist() == LOSSES


# Maximized metrics.


def test_a_maximized_metric_is_stored_negated(mixtures: Make, metrics: Make) -> None:
    runs = join_tables(mixtures(), metrics(accuracy=LOSSES[::-1]), ("accuracy",))
    assert runs.maximized == {"accuracy"}
    assert (runs.sign("accuracy"), runs.sign("loss")) == (-1, 1)
    assert runs.swarm.values(("accuracy", "loss")).tolist() == [[-a, b] for a, b in zip(LOSSES[::-1], LOSSES, strict=True)]


def test_a_metric_to_maximize_that_is_not_there(mixtures: Make, metrics: Make, runs: Runs) -> None:
    with pytest.raises(ConfigError) as failed:
        join_tables(mixtures(), metrics(accuracy=LOSSES), ("acuracy",))
    assert failed.value.message == "There is no metric 'acuracy' to maximize."
    assert failed.value.hint == "Did you mean 'accuracy'?"
    with pytest.raises(ConfigError, match="no metric 'web_los'"):
        Runs.of(runs.swarm, ("web_los",))


def test_a_swarm_from_elsewhere_has_its_maximized_metrics_negated(runs: Runs) -> None:
    flipped = Runs.of(runs.swarm, ("web_loss",))
    np.testing.assert_array_equal(flipped.swarm.values(runs.swarm.metrics), runs.swarm.values(runs.swarm.metrics) * [1, -1])
    assert Runs.of(runs.swarm).swarm.digest() == runs.swarm.digest()


# Weights.


def test_sums_within_two_percent_are_renormalized_and_said(mixtures: Make, metrics: Make) -> None:
    web = [*SHARES[:-1], 0.985]
    runs = join_tables(mixtures(web=web), metrics())
    assert runs.swarm.points().averages()[-1].tolist() == [0.0, 1.0]
    np.testing.assert_allclose(runs.swarm.points().averages().sum(axis=1), 1, rtol=1e-15)
    assert said(runs, "1 of 8 mixtures did not sum to 1 (0.985 to 1); they were renormalized.")


def test_float_error_in_sums_is_not_worth_a_note(mixtures: Make, metrics: Make) -> None:
    assert join_tables(mixtures(web=[*SHARES[:-1], 1 - 1e-9]), metrics()).notes == ()


@pytest.mark.parametrize(
    ("weight", "message", "hint"),
    [
        (0.97, "do not sum to 1 in run h (0.97)", "within 2%"),
        (1.03, "do not sum to 1 in run h (1.03)", "every column that is no id"),
        (-0.25, "domain 'web' has a negative weight in run h", "at least 0"),
        (math.inf, "domain 'web' has an infinite weight in run h", "shares of tokens"),
        (math.nan, "domain 'web' has no weight in run h", "Write 0"),
        (None, "domain 'web' has no weight in run h", "Write 0"),
    ],
)
def test_weights_that_are_none(weight: float | None, message: str, hint: str, mixtures: Make, metrics: Make) -> None:
    with pytest.raises(DataError) as failed:
        join_tables(mixtures(web=[*SHARES[:-1], weight]), metrics())
    assert failed.value.message.startswith("mixtures.csv: ")
    assert message in failed.value.message
    assert hint in failed.value.hint


def test_rows_that_do_not_sum_to_1_are_named_up_to_five(mixtures: Make) -> None:
    with pytest.raises(DataError, match=r"in runs a \(2\), b \(2\), c \(2\), d \(2\), e \(2\) and 3 more\."):
        checked_weights(mixtures(web=[1 + share for share in SHARES]), ("code", "web"))


def test_percent_is_recognized(mixtures: Make, metrics: Make) -> None:
    percent = {"web": [100 * share for share in SHARES], "code": [100 - 100 * share for share in SHARES]}
    with pytest.raises(DataError, match="do not sum to 1") as failed:
        join_tables(mixtures(**percent), metrics())
    assert failed.value.hint == "They look like percent: divide them by 100."


def test_text_in_a_number_column(mixtures: Make, metrics: Make) -> None:
    with pytest.raises(DataError, match="'much' in column 'code' of run b is no number"):
        join_tables(mixtures(code=["0.875", "much", *(str(1 - share) for share in SHARES[2:])]), metrics())
    with pytest.raises(DataError, match="'low' in column 'loss' of run a is no number"):
        join_tables(mixtures(), metrics(loss=["low", *map(str, LOSSES[1:])]))


# Rows missing on either side, and ids.


def test_runs_in_one_table_only_are_left_out_and_named(mixtures: Make, metrics: Make) -> None:
    runs = join_tables(mixtures(run="a b c d e f g x"), metrics(run="a b c d e f y z"))
    assert runs.swarm.trial_ids == tuple("abcdef")
    assert said(runs, "Runs g, x have no metrics and are left out.")
    assert said(runs, "Runs y, z have no mixture and are left out.")


@pytest.mark.parametrize(
    ("left", "right", "message"),
    [
        (EIGHT, "a b c d w x y z", "4 of the 8 runs of mixtures.csv are not in metrics.csv (e, f, g, h)."),
        (
            EIGHT,
            "0 1 2 3 4 5 6 7",
            "No run is in both tables: mixtures.csv has a, b, c, d, e and 3 more, metrics.csv has 0, 1, 2, 3, 4 and 3 more.",
        ),
    ],
)
def test_tables_that_hardly_meet(left: str, right: str, message: str, mixtures: Make, metrics: Make) -> None:
    with pytest.raises(DataError) as failed:
        join_tables(mixtures(run=left), metrics(run=right))
    assert failed.value.message == message


def test_a_metrics_table_that_holds_many_other_runs(mixtures: Make, table: Make) -> None:
    ids = [*EIGHT.split(), *(f"other{row}" for row in range(8))]
    with pytest.raises(DataError, match=r"8 of the 16 runs of metrics\.csv are not in mixtures\.csv"):
        join_tables(mixtures(), table("metrics.csv", run=ids, loss=list(range(16))))


def test_repeated_ids(mixtures: Make, metrics: Make) -> None:
    with pytest.raises(DataError) as failed:
        join_tables(mixtures(run="a a b b c d e f"), metrics())
    assert failed.value.message == "mixtures.csv: ids a, b occur more than once."
    assert failed.value.hint == "Give every row another run."
    with pytest.raises(DataError, match=r"metrics\.csv: id 7 occurs more than once"):
        join_tables(mixtures(run="7 1 2 3 4 5 6 8"), metrics(run="7 7.0 1 2 3 4 5 6"))


# Values that are missing.


@pytest.mark.parametrize("hole", [math.nan, math.inf, -math.inf, None])
def test_a_run_without_a_finite_metric_is_left_out(hole: float | None, mixtures: Make, metrics: Make) -> None:
    runs = join_tables(mixtures(), metrics(loss=[*LOSSES[:-1], hole]))
    assert runs.swarm.trial_ids == tuple("abcdefg")
    assert said(runs, "Run h has no finite metric and is left out.")


def test_a_metric_that_many_runs_lack_is_left_out(mixtures: Make, metrics: Make) -> None:
    runs = join_tables(mixtures(), metrics(rare=[1.0, 2.0, *[math.nan] * 6]))
    assert runs.swarm.metrics == ("loss",)
    assert len(runs.swarm) == 8
    assert said(runs, "Metric 'rare' has no finite value in 6 of 8 runs and is left out.")


def test_runs_that_lack_a_metric_of_the_others_are_left_out(table: Make) -> None:
    ids, shares = [f"r{row}" for row in range(20)], [row / 20 for row in range(20)]
    losses = [float(row) for row in range(20)]
    runs = join_tables(
        table("mixtures.csv", run=ids, web=shares, code=[1 - share for share in shares]),
        table("metrics.csv", run=ids, loss=losses, other=[*losses[:-1], math.inf]),
    )
    assert len(runs.swarm) == 19
    assert said(runs, "Run r19 has no finite value of other and is left out.")


def test_hardly_anything_measured(mixtures: Make, metrics: Make) -> None:
    with pytest.raises(DataError, match="Only 3 of 8 runs have finite metrics: Runs d, e, f, g, h have no finite metric"):
        join_tables(mixtures(), metrics(loss=[*LOSSES[:3], *[math.nan] * 5]))
    with pytest.raises(DataError, match="Only 0 of 8 runs have finite metrics"):
        join_tables(mixtures(), metrics(loss=[math.nan] * 8))


# Nothing to learn from.


def test_a_domain_never_sampled_is_left_out(mixtures: Make, metrics: Make) -> None:
    runs = join_tables(mixtures(law=[0.0] * 8), metrics())
    assert runs.swarm.domains == ("code", "web")
    assert runs.left_out_domains == ("law",)
    assert said(runs, "Domain law has no weight in any run: nothing is known of it, so left out.")


def test_a_constant_metric_is_left_out(mixtures: Make, metrics: Make) -> None:
    runs = join_tables(mixtures(), metrics(same=[3.25] * 8), ("same",))
    assert runs.swarm.metrics == ("loss",)
    assert runs.maximized == frozenset()
    assert said(runs, "Metric 'same' is 3.25 in every run")
    assert said(runs, "Metric same to maximize is among those left out.")
    with pytest.raises(DataError, match="No metric differs between runs: Metric 'loss' is 1 in every run"):
        join_tables(mixtures(), metrics(loss=[1.0] * 8))


def test_fewer_runs_than_domains_is_said(table: Make) -> None:
    weights = np.random.default_rng(0).dirichlet(np.ones(9), 8)
    columns = {f"d{column}": weights[:, column].tolist() for column in range(9)}
    runs = join_tables(table("mixtures.csv", run=EIGHT, **columns), table("metrics.csv", run=EIGHT, loss=LOSSES))
    assert said(runs, "There are 8 runs for 9 domains: fewer runs than domains")


@pytest.mark.parametrize("count", [1, 3])
def test_one_run_and_three(count: int, table: Make) -> None:
    ids = EIGHT.split()[:count]
    with pytest.raises(DataError, match=f"A fit needs at least 4 runs, got {count}"):
        join_tables(
            table("mixtures.csv", run=ids, web=SHARES[:count], code=[1 - share for share in SHARES[:count]]),
            table("metrics.csv", run=ids, loss=LOSSES[:count]),
        )


def test_tables_without_domains_or_metrics(mixtures: Make, metrics: Make, table: Make) -> None:
    with pytest.raises(DataError, match=r"mixtures\.csv has only the domain 'web'"):
        join_tables(table("mixtures.csv", run=EIGHT, web=[1.0] * 8), metrics())
    with pytest.raises(DataError, match=r"mixtures\.csv has no domain"):
        join_tables(table("mixtures.csv", run=EIGHT), metrics())
    with pytest.raises(DataError, match=r"metrics\.csv has no metric"):
        join_tables(mixtures(), table("metrics.csv", run=EIGHT))
    with pytest.raises(DataError, match="all runs are of the one domain web"):
        join_tables(mixtures(web=[1.0] * 8, code=[0.0] * 8), metrics())
    with pytest.raises(DataError, match="has a metric 'objective'"):
        join_tables(mixtures(), metrics(objective=LOSSES))


def test_parquet_and_csv_give_the_same_swarm(frames: tuple[pl.DataFrame, pl.DataFrame], tmp_path: Path, runs: Runs) -> None:
    for name, frame in zip(("mixtures", "metrics"), frames, strict=True):
        frame.write_csv(tmp_path / f"{name}.csv")
        frame.write_parquet(tmp_path / f"{name}.parquet")
    found = {kind: read_runs(tmp_path / f"mixtures.{kind}", tmp_path / f"metrics.{kind}").swarm for kind in ("csv", "parquet")}
    assert found["csv"].table.equals(found["parquet"].table)
    assert found["csv"].table.equals(runs.swarm.table)
