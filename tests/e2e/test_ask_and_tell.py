"""`mixopt ask` and `mixopt tell` as a user runs them: mixtures go out, losses come back by id, and the answer follows.

Losses are made up: a power law of the mixture with noise of 2%.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from mixopt.cli import app
from mixopt.errors import ConfigError, DataError, MixoptError, RunError
from mixopt.history import History
from mixopt.proposal import Proposal
from workers.compose import record_location

DOMAINS = {"web": "60B", "code": "20B", "math": "10B"}
TRIALS = 12
Row = dict[str, str]


def losses(row: Row) -> dict[str, float]:
    """Code serves `code`, everything but the web serves `accuracy`."""
    shares = {name: float(row[name]) for name in DOMAINS}
    noise = 1 + 0.02 * np.random.default_rng(int(row["seed"])).normal(size=2)
    return {
        "loss/code": float((0.1 + shares["code"] + 0.3 * shares["math"]) ** -0.3 * noise[0]),
        "accuracy": float((0.2 + 0.5 * shares["code"] + 0.4 * shares["math"]) * noise[1]),
    }


class Desk:
    """One experiment file, and the commands on it; their errors come as exceptions."""

    def __init__(self, folder: Path, file: str = "experiment.yaml", **changes: Any) -> None:
        self.folder, self.file, self.output = folder, folder / file, folder / "run"
        raw = {
            "name": "elsewhere",
            "output": str(self.output),
            "budget_tokens": "50B",
            "domains": [{"name": name, "tokens": tokens} for name, tokens in DOMAINS.items()],
            "trainer": {
                "kind": "elsewhere",
                "name": "olmo-30m",
                "tokens": "1B",
                "metrics": ["loss/code", {"name": "accuracy", "weight": 2, "maximize": True}],
            },
            "search": {"surrogate": "ridge", "trials": TRIALS},
            "tracking": {"enabled": False},
        }
        self.file.write_text(yaml.safe_dump(raw | changes))

    def run(self, command: str, *arguments: str, stdin: str | None = None) -> Any:
        answer = CliRunner().invoke(app, [command, str(self.file), *arguments], input=stdin)
        if answer.exception is not None and not isinstance(answer.exception, SystemExit):
            raise answer.exception
        assert answer.exit_code == 0, answer.output
        return answer

    def ask(self, *arguments: str) -> list[Row]:
        return list(csv.DictReader(io.StringIO(self.run("ask", *arguments).stdout)))

    def tell(self, rows: Sequence[dict[str, Any]], *options: str) -> str:
        path = self.folder / "results.csv"
        columns = list(dict.fromkeys(column for row in rows for column in row))
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)
        return str(self.run("tell", str(path), *options).stdout)

    def states(self) -> dict[str, str]:
        with History.open(record_location(self.output)) as history:
            (search,) = history.searches()
            return {record.trial.trial_id: record.state.value for record in history.trials(search.search_id)}

    def proposal(self) -> Proposal | None:
        with History.open(record_location(self.output)) as history:
            (search,) = history.searches()
            body = history.document(search.search_id, "proposal")
        return None if body is None else Proposal.from_json(body)

    def record(self) -> list[Any]:
        """All that the record says of trials."""
        with History.open(record_location(self.output)) as history:
            (search,) = history.searches()
            return [(r.trial.trial_id, r.state, r.attempts, r.outcome, r.failure) for r in history.trials(search.search_id)]


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def measured(rows: Sequence[Row]) -> list[dict[str, Any]]:
    return [{"trial_id": row["trial_id"], **losses(row)} for row in rows]


def test_mixtures_go_out_losses_come_back_and_the_answer_follows(desk: Desk) -> None:
    first = desk.ask("-n", "5")
    assert len(first) == 5
    assert {row["label"] for row in first} >= {"natural", "uniform"}
    assert all(sum(float(row[name]) for name in DOMAINS) == pytest.approx(1) for row in first)
    assert set(desk.states().values()) == {"running"}
    with pytest.raises(RunError, match="0 of 12 trials are told, 5 are handed out, 7 can be asked for"):
        desk.run("search")
    said = desk.tell(measured(first[1:]))
    assert "4 outcomes recorded" in said
    assert "1 are handed out" in said
    more = desk.ask("-n", "50")
    assert len(more) == TRIALS - 5
    assert not {row["trial_id"] for row in more} & {row["trial_id"] for row in first}
    assert [row["trial_id"] for row in desk.ask("--again")] == [row["trial_id"] for row in (first[0], *more)]
    assert desk.ask() == []
    said = desk.tell(measured([first[0], *more]))
    assert "8 outcomes recorded" in said
    assert "Proposed mixture" in said
    proposal = desk.proposal()
    assert proposal is not None
    natural = 60 / 90, 20 / 90, 10 / 90
    weights = proposal.mixture.array(list(DOMAINS))
    assert losses({"seed": "0", **dict(zip(DOMAINS, map(str, weights), strict=True))})["accuracy"] > 1.1 * (
        0.2 + 0.5 * natural[1] + 0.4 * natural[2]
    )
    # Nothing more to do, and the answer speaks the trainer's language.
    assert "trained now" in desk.run("search").stdout
    (answer,) = desk.output.glob("searches/*/answer.md")
    text = answer.read_text(encoding="utf-8")
    assert "bits per byte" not in text
    assert "the metric's own unit" in text
    assert "accuracy" in text
    assert "negated" in text
    exported = CliRunner().invoke(app, ["export", str(desk.output), "--to", "megatron", "--out", str(desk.folder / "out")])
    assert exported.exit_code == 0, exported.output
    assert (desk.folder / "out" / "megatron_blend.txt").exists()


def test_values_are_stored_as_losses_and_the_schedule_counts_as_realized(desk: Desk) -> None:
    (row, *_) = desk.ask()
    desk.tell([{"trial_id": row["trial_id"], "loss/code": 1.25, "accuracy": 0.5, "seconds": 12, "flops": 3e9}])
    outcome = desk.record()[0][3]
    assert sorted(m.bits_per_byte for m in outcome.measurements) == [-0.5, 1.25]
    assert (outcome.seconds, outcome.flops, outcome.tokens) == (12, 3e9, 10**9)
    assert sorted(shares[0] for shares in outcome.realized.values()) == sorted(float(row[name]) for name in DOMAINS)


def test_a_table_told_twice_changes_nothing(desk: Desk) -> None:
    rows = desk.ask()
    table = [*measured(rows[:6]), {"trial_id": rows[6]["trial_id"], "status": "failed", "reason": "node lost"}]
    desk.tell(table)
    before = desk.record()
    assert "7 known already" in desk.tell(table)
    assert desk.record() == before


def test_metrics_may_come_one_by_one(desk: Desk) -> None:
    (row, *_) = desk.ask()
    values = losses(row)
    desk.tell([{"trial_id": row["trial_id"], "accuracy": values["accuracy"]}])
    assert row["trial_id"] in {other["trial_id"] for other in desk.ask("--again")}
    desk.tell([{"trial_id": row["trial_id"], "loss/code": values["loss/code"]}])
    assert row["trial_id"] not in {other["trial_id"] for other in desk.ask("--again")}
    assert len(desk.record()[0][3].measurements) == 2


def test_the_table_that_was_handed_out_can_be_filled_in(desk: Desk) -> None:
    rows = desk.ask()
    said = desk.tell([{**row, **(losses(row) if place < 2 else {"loss/code": "", "accuracy": ""})} for place, row in enumerate(rows)])
    assert "2 outcomes recorded, 10 rows without a metric left out" in said


def test_another_value_than_before_needs_a_word(desk: Desk) -> None:
    (row, *_) = desk.ask()
    desk.tell(measured([row]))
    changed = {"trial_id": row["trial_id"], "accuracy": 0.123456}
    before = desk.record()
    with pytest.raises(
        DataError, match=rf"Trial {row['trial_id']} was told with 'accuracy' 0\.\d+ before, and with 0\.123456 now"
    ) as found:
        desk.tell([changed])
    assert "--replace" in found.value.hint
    assert desk.record() == before
    desk.tell([changed], "--replace")
    assert -0.123456 in {m.bits_per_byte for m in desk.record()[0][3].measurements}
    assert len(desk.record()[0][3].measurements) == 2


def test_failures_count_once_per_handing_out_and_end_in_another_trial(desk: Desk) -> None:
    rows = desk.ask()
    bad = rows[3]["trial_id"]
    failed = [{"trial_id": bad, "status": "failed", "reason": "out of memory"}]
    desk.tell(measured([row for row in rows if row["trial_id"] != bad]))
    for attempt in (1, 2):
        desk.tell(failed)
        desk.tell(failed)  # told again, not failed again
        assert desk.record()[3][2] == attempt
        assert [row["trial_id"] for row in desk.ask("--again")] == [bad]
    desk.tell(failed)
    assert desk.states()[bad] == "abandoned"
    assert "out of memory" in desk.record()[3][4].message
    (instead,) = desk.ask()
    assert "Proposed mixture" in desk.tell(measured([instead]))


def test_giving_up_and_divergence_are_final(desk: Desk) -> None:
    rows = desk.ask("-n", "4")
    desk.tell([{"trial_id": rows[0]["trial_id"], "status": "failed"}], "--give-up")
    desk.tell([{"trial_id": rows[1]["trial_id"], "loss/code": "nan", "accuracy": 0.1}])
    assert [desk.states()[row["trial_id"]] for row in rows[:3]] == ["abandoned", "abandoned", "running"]
    assert "'loss/code' is nan" in desk.record()[1][4].message


@pytest.mark.parametrize(
    ("table", "message", "hint"),
    [
        ("", "holds no row", "one row per trial"),
        ("loss/code\n1\n", "has no column trial_id", "Its columns are loss/code"),
        ("trial_id;loss/code\nx;1\n", "has no column trial_id", "separates columns by semicolons"),
        ("trial_id\nID0\n", "has no column of a metric", "loss/code, accuracy"),
        ("trial_id,loss/cod\nID0,1\n", "line 2: column 'loss/cod' is no metric", "Did you mean 'loss/code'?"),
        ("trial_id,accuracy,accuracy\nID0,1,1\n", "column 'accuracy' occurs twice", "name of its own"),
        ("trial_id,accuracy\nID0,1,2\n", "line 2 has 3 cells, the header has 2", "Mend"),
        ("trial_id,accuracy\nID0,many\n", "line 2: 'accuracy' is 'many', which is no number", "leave it empty"),
        ("trial_id,accuracy\n,1\n", "line 2 has no trial_id", "never by position"),
        ("trial_id,accuracy\nIDX,1\n", "there is no trial 'IDX' in this search", "Did you mean 'ID0'?"),
        ("trial_id,accuracy\nID0,1\nID0,2\n", "has 'accuracy' 1 in results.csv, line 2 and 2 in results.csv, line 3", "Keep"),
        ("trial_id,accuracy,status\nID0,,ok\n", "is ok and has no metric", "leave its status empty"),
        ("trial_id,accuracy,status\nID0,1,perhaps\n", "status is 'perhaps'", "ok or failed"),
        ("trial_id,accuracy,status\nID0,1,failed\n", "is said to have failed, and has values in the table", "Take out"),
        ("trial_id,accuracy,seconds\nID0,1,-4\n", "seconds is -4", "at least 0"),
        ('trial_id,accuracy\nID0,"1\n', "is not valid CSV", "Mend the quotes"),
        ('{"trial_id": "ID0", "accuracy": 1}\n{"trial_id"\n', "line 2 is not JSON", "one object per line"),
        ('{"trial_id": "ID0", "accuracy": [1]}\n', "'accuracy' is '[1]', which is no number", "Mend"),
        ('{"trial_id": "ID0", "metrics": 3}\n', "`metrics` of line 1 is no object", "metrics"),
        ('{"trial_id": "ID0", "accuracy": 2, "accuracy": 1}\n', "line 1 has 'accuracy' twice", "Keep"),
        ('{"trial_id": "ID0", "metrics": {"accuracy": 2}, "accuracy": 1}\n', "line 1 has 'accuracy' twice", "Keep"),
        ('{"trial_id": "ID0", "weights": 3, "accuracy": 1}\n', "`weights` of line 1 are no objects", "Leave them out"),
        ('[{"trial_id": "ID0", "accuracy": 1}]\n', "is one JSON array", "one object per line"),
        # Natural has .667 of web: the row is another mixture's, or of one that nobody asked for.
        (
            "trial_id,web,accuracy\nID0,0.5,1\n",
            "was handed out with 'web' 0.666667, and the row has 0.5",
            "leave the columns of domains out",
        ),
        ('{"trial_id": "ID0", "weights": [{"web": 0.5}], "accuracy": 1}\n', "was handed out with 'web' 0.666667", "Mend the table".lower()),
    ],
)
def test_a_wrong_table_is_one_sentence_and_changes_nothing(desk: Desk, table: str, message: str, hint: str) -> None:
    rows = desk.ask("-n", "2")
    desk.tell(measured(rows[1:]))
    before, path = desk.record(), desk.folder / "results.csv"
    unknown = "f" + rows[0]["trial_id"][1:] if rows[0]["trial_id"][0] != "f" else "e" + rows[0]["trial_id"][1:]
    names = {"ID0": rows[0]["trial_id"], "IDX": unknown}
    for name, trial_id in names.items():
        table, message, hint = (text.replace(name, trial_id) for text in (table, message, hint))
    # A right row before the wrong ones must not count either.
    path.write_text(table, encoding="utf-8")
    with pytest.raises(DataError) as found:
        desk.run("tell", str(path))
    assert message in found.value.message
    assert hint in found.value.hint
    assert desk.record() == before


def test_results_come_from_standard_input_and_as_json_lines(desk: Desk) -> None:
    asked = [json.loads(line) for line in desk.run("ask", "-n", "3", "--to", "jsonl").stdout.splitlines()]
    assert [sorted(request["weights"][0]) for request in asked] == [sorted(DOMAINS)] * 3
    told = "".join(json.dumps({"trial_id": r["trial_id"], "metrics": {"loss/code": 1.0, "accuracy": 0.4}}) + "\n" for r in asked)
    assert "3 outcomes recorded" in desk.run("tell", "-", stdin=told).stdout


def test_the_requests_that_were_handed_out_can_be_filled_in(desk: Desk) -> None:
    asked = [json.loads(line) for line in desk.run("ask", "-n", "3", "--to", "jsonl").stdout.splitlines()]
    told = "".join(json.dumps({**request, "metrics": {"loss/code": 1.0, "accuracy": 0.4}}) + "\n" for request in asked)
    assert "3 outcomes recorded" in desk.run("tell", "-", stdin=told).stdout


def test_a_strategy_that_waits_for_results_says_so(tmp_path: Path) -> None:
    desk = Desk(tmp_path, search={"strategy": "climb", "surrogate": "ridge", "trials": TRIALS})
    first = desk.ask("-n", "50")
    answer = desk.run("ask")
    assert answer.stdout == ""
    assert f"Nothing to hand out: 0 of {TRIALS} trials are told, {len(first)} are handed out" in answer.stderr
    assert f"{TRIALS - len(first)} follow once these are." in answer.stderr
    assert "gives more" not in answer.stderr


def test_trials_are_written_in_the_syntax_of_a_trainer(desk: Desk, tmp_path: Path) -> None:
    out = tmp_path / "blends"
    desk.run("ask", "-n", "4", "--to", "megatron", "--out", str(out), "--option", "prefix=/data/{domain}")
    index = list(csv.DictReader((out / "index.csv").open(encoding="utf-8")))
    assert len(index) == 4
    for row in index:
        words = (out / row["folder"] / "megatron_blend.txt").read_text(encoding="utf-8").split()
        blend = dict(zip(words[1::2], map(float, words[::2]), strict=True))
        assert blend == pytest.approx({f"/data/{name}": float(row[name]) for name in DOMAINS if float(row[name]) > 0}, abs=1e-9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--to", "megatronn"], "There is no export format 'megatronn'"),
        (["--to", "megatron", "--option", "prefix=/data"], "Option prefix is '/data'"),
        (["--to", "megatron", "--option", "prefx=/data"], "has no option 'prefx'"),
        (["--option", "prefix=/data"], "format 'csv' has no option 'prefix'"),
        (["--out", "FILE/x.csv"], "cannot be written"),
    ],
)
def test_what_cannot_be_written_is_not_handed_out(desk: Desk, options: list[str], message: str) -> None:
    (desk.folder / "FILE").write_text("no folder")
    options = [option.replace("FILE", str(desk.folder / "FILE")) for option in options]
    with pytest.raises(ConfigError, match=message):
        desk.run("ask", *options)
    assert not record_location(desk.output).exists() or desk.record() == []


@pytest.mark.parametrize("command", [["ask"], ["tell", "results.csv"]])
def test_proxies_of_mixopt_are_not_handed_out(tmp_path: Path, command: list[str]) -> None:
    domains = [{"name": name, "path": "none.jsonl", "tokens": tokens} for name, tokens in DOMAINS.items()]
    desk = Desk(tmp_path, domains=domains, trainer=None)
    (tmp_path / "results.csv").write_text("trial_id,loss\nx,1\n")
    with pytest.raises(ConfigError, match="is for a trainer of your own"):
        desk.run(command[0], *(str(tmp_path / name) for name in command[1:]))


@pytest.mark.parametrize("command", ["prepare", "domains", "calibrate", "submit"])
def test_commands_about_proxies_say_that_there_are_none(desk: Desk, command: str) -> None:
    with pytest.raises(MixoptError) as found:
        desk.run(command)
    assert "`trainer` of your own" in found.value.message or "run elsewhere" in found.value.message


def test_the_plan_says_what_will_be_asked(desk: Desk) -> None:
    said = desk.run("plan").stdout
    assert "12 trials of olmo-30m, 1,000,000,000 tokens each" in said
    assert "web" in said


def test_a_search_that_is_not_told_yet_can_be_looked_at(desk: Desk) -> None:
    rows = desk.ask("-n", "6")
    desk.tell(measured(rows[:3]))
    shown = CliRunner().invoke(app, ["show", str(desk.output)])
    assert shown.exit_code == 0, shown.output
    assert "No proposal yet" in shown.output
    assert "3 completed, 3 running" in shown.output
    report = CliRunner().invoke(app, ["report", str(desk.output)])
    assert report.exit_code == 0, report.output


def test_floors_and_z_scores_work_with_metrics_that_are_maximized(tmp_path: Path) -> None:
    floors = [{"metric": "accuracy", "baseline": 0.3, "by": 0}, {"metric": "loss/code", "baseline": "natural", "by": "1%"}]
    desk = Desk(tmp_path, objective={"kind": "z_scored", "floors": floors}, search={"surrogate": "ridge", "trials": 16})
    desk.tell(measured(desk.ask()))
    proposal = desk.proposal()
    assert proposal is not None
    sentences = [floor["sentence"] for floor in proposal.evidence["floors"]]
    assert any("accuracy" in sentence and "0.3" in sentence and "-0.3" not in sentence for sentence in sentences)
    weights = dict(zip(DOMAINS, map(str, proposal.mixture.array(list(DOMAINS))), strict=True))
    assert losses({"seed": "0", **weights})["accuracy"] > 0.28


def test_two_at_once_hand_out_different_trials(desk: Desk) -> None:
    import subprocess
    import sys

    command = [sys.executable, "-c", "from mixopt.cli import main; main()", "ask", str(desk.file), "-n", "4"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) for _ in range(2)]
    texts = [process.communicate()[0] for process in both]
    ids = [row["trial_id"] for text in texts for row in csv.DictReader(io.StringIO(text))]
    assert len(ids) == len(set(ids)) == 8


def test_what_another_search_of_the_output_was_told_is_not_handed_out_again(desk: Desk) -> None:
    first = desk.ask("-n", "5")
    told, partly = measured(first[:4]), measured(first[4:])
    said = desk.tell([*told, {"trial_id": partly[0]["trial_id"], "accuracy": partly[0]["accuracy"]}])
    assert "1 are handed out, 1 of them told without loss/code" in " ".join(said.split())
    other = Desk(desk.folder, search={"surrogate": "ridge", "strategy": "random", "trials": TRIALS})
    handed = other.ask("-n", "5")
    assert [row["label"] for row in handed] == ["random"] * 5, "of the fifth a metric is missing, which the first search waits for"
    said = other.tell([{"trial_id": partly[0]["trial_id"], "loss/code": partly[0]["loss/code"]}, *measured(handed)])
    assert f"10 of {TRIALS} trials are told, 2 can be asked for" in " ".join(said.split())


def test_a_metric_that_no_other_search_waits_for_is_asked_for_again(tmp_path: Path) -> None:
    both = {"kind": "elsewhere", "name": "olmo-30m", "tokens": "1B", "metrics": ["loss/code", {"name": "accuracy", "maximize": True}]}
    one = Desk(tmp_path, "one.yaml", trainer=both | {"metrics": ["loss/code"]})
    handed = one.ask("-n", "2")
    one.tell([{"trial_id": row["trial_id"], "loss/code": losses(row)["loss/code"]} for row in handed])
    two = Desk(tmp_path, "two.yaml", trainer=both)
    assert [row["trial_id"] for row in two.ask("-n", "2")] == [row["trial_id"] for row in handed]
    assert "too" not in said_by(two, "--again"), "the first search has all that it wants"


@pytest.fixture
def two(tmp_path: Path) -> tuple[Desk, Desk]:
    """Two searches of one output folder, which begin with the same five trials."""
    random = {"surrogate": "ridge", "strategy": "random", "trials": TRIALS}
    return Desk(tmp_path, "one.yaml", name="one"), Desk(tmp_path, "two.yaml", name="two", search=random)


def said_by(desk: Desk, *arguments: str) -> str:
    return " ".join(desk.run("ask", *arguments).stderr.split())


@pytest.mark.parametrize("teller", [0, 1])
@pytest.mark.parametrize("asker", [0, 1])
def test_what_another_search_has_handed_out_is_waited_for_and_told_to_both(two: tuple[Desk, Desk], asker: int, teller: int) -> None:
    first, second = two[asker], two[1 - asker]
    out = first.ask("-n", "7")
    handed = second.run("ask", "-n", "5")
    rows = list(csv.DictReader(io.StringIO(handed.stdout)))
    assert len(rows) == 5
    assert not {row["trial_id"] for row in rows} & {row["trial_id"] for row in out}, "handed out once"
    name = {0: "one", 1: "two"}[asker]
    assert re.search(rf"5 trials are not handed out again, since search '{name}' \(\w{{8}}\) waits for them too;", handed.stderr)
    assert f"0 of {TRIALS} trials are told, 10 are handed out, 2 can be asked for" in " ".join(handed.stderr.split())
    assert len(second.ask("--again")) == 10, "waiting is counted, and can be looked at"

    shared = [row for row in out if row["trial_id"] in {other["trial_id"] for other in second.ask("--again")}]
    assert len(shared) == 5
    two[teller].tell(measured(shared))
    assert [row["trial_id"] for row in second.ask("--again")] == [row["trial_id"] for row in rows]
    assert [row["trial_id"] for row in first.ask("--again")] == [row["trial_id"] for row in out if row not in shared]
    assert "5 known already" in two[1 - teller].tell(measured(shared))
    assert "too" not in said_by(second), "nothing is shared any more"


def test_both_searches_end_with_every_trial_told_once(two: tuple[Desk, Desk]) -> None:
    one, other = two
    out = one.ask("-n", "50")
    more = other.ask("-n", "50")
    assert (len(out), len(more)) == (TRIALS, TRIALS - 5)
    assert "5 trials are not handed out again" in said_by(other), "said as long as it is so"
    assert "waits for 5 of these too" in said_by(one, "--again")
    assert "Proposed mixture" not in other.tell(measured(more))
    assert "Proposed mixture" in one.tell(measured(out))
    assert "trained now" in other.run("search").stdout


def test_what_fails_for_one_search_fails_for_both_once(two: tuple[Desk, Desk]) -> None:
    one, other = two
    (row, *_) = one.ask("-n", "5")
    other.ask("-n", "1")
    table = [{"trial_id": row["trial_id"], "status": "failed"}]
    assert "1 failures recorded" in one.tell(table)
    assert "1 known already" in other.tell(table)


def test_what_another_search_gave_up_is_not_handed_out(two: tuple[Desk, Desk]) -> None:
    one, other = two
    (row, *_) = one.ask("-n", "1")
    one.tell([{"trial_id": row["trial_id"], "status": "failed"}], "--give-up")
    rows = other.ask("-n", "50")
    assert row["trial_id"] not in {handed["trial_id"] for handed in rows}
    assert len(rows) == TRIALS, "another takes its place"
