"""`mixopt reuse` as a user runs it: an earlier search, a file with other domains, and the search that goes on from both.

In this process, over text of our own, with proxies of a few steps.
"""

from __future__ import annotations

import json
import random
import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from mixopt.cli import app
from mixopt.errors import ConfigError, DataError
from mixopt.history import History
from mixopt.proposal import Proposal
from workers.compose import record_location

WORDS = {
    "code": "def return if else for while import class self none true x y z print",
    "prose": "the river ran past an old house where nobody had lived for years and grass grew",
    "math": "let x be prime then the sum over n of one half equals two and hence a proof ends",
    "law": "whereas the party shall herein under this contract clause be liable pursuant to court",
}
STEP, TRIALS = 128, 8
SOURCE, CHEAP = f"trained/nano/{16 * STEP}", f"trained/nano/{8 * STEP}"
TOKENS = {"code": "6B", "prose": "8B", "math": "3B", "maths": "3B", "law": "4B"}


def experiment(name: str, domains: dict[str, str], **changes: Any) -> dict[str, Any]:
    """`domains`: name -> file."""
    raw = {
        "name": name,
        "output": "run",
        "budget_tokens": "10B",
        "domains": [
            {"name": name, "path": f"{file}.jsonl", "tokens": TOKENS.get(name, "4B"), "held_out": 0.2} for name, file in domains.items()
        ],
        "targets": [{"name": f"more-{name}", "path": f"more-{name}.jsonl"} for name in ("code", "prose")],
        "tokenizer": {"vocab_size": 512},
        "proxy": {"tokens": 16 * STEP, "window": 64, "tokens_per_step": STEP, "seeds": 2},
        "search": {"trials": TRIALS, "surrogate": "ridge"},
        "verification": {"enabled": False},
        "ray": {"address": "in-process", "pack_size": 8},
        "tracking": {"enabled": False},
    }
    return raw | changes


def mixopt(*arguments: str | Path) -> str:
    """What a command printed, on one line; its errors come as exceptions."""
    answer = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=True)
    if answer.exception is not None and not isinstance(answer.exception, SystemExit):
        raise answer.exception
    assert answer.exit_code == 0, answer.output
    return " ".join(answer.output.split())


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with documents and a finished search over code, prose and math."""
    folder = tmp_path_factory.mktemp("reuse")
    for name, words in WORDS.items():
        for file, count in ((name, 150), (f"more-{name}", 30)):
            chosen = random.Random(file)
            texts = [" ".join(chosen.choices(words.split(), k=60)) + ".\n" for _ in range(count)]
            (folder / f"{file}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (folder / "old.yaml").write_text(yaml.safe_dump(experiment("old", {"code": "code", "prose": "prose", "math": "math"})))
    mixopt("search", folder / "old.yaml")
    return folder


@pytest.fixture
def write(place: Path) -> Callable[..., Path]:
    def file(name: str, domains: dict[str, str], **changes: Any) -> Path:
        path = place / f"{name}.yaml"
        path.write_text(yaml.safe_dump(experiment(name, domains, **changes)))
        return path

    return file


GROWN = {"code": "code", "prose": "prose", "maths": "math", "law": "law"}


def searches(place: Path) -> dict[str, str]:
    with History.open(record_location(place / "run")) as history:
        return {record.name: record.search_id for record in history.searches()}


def proposal_of(place: Path, name: str) -> Proposal:
    with History.open(record_location(place / "run")) as history:
        return Proposal.from_json(history.document(searches(place)[name], "proposal") or {})


def trained(place: Path) -> int:
    return len(list((place / "run" / "trials").glob("*/result.json")))


def test_an_added_domain_is_measured_and_the_rest_keeps_its_shares(place: Path, write: Callable[..., Path]) -> None:
    file, plan, comparison = write("grown", GROWN), place / "plan.yaml", place / "comparison.json"
    before = trained(place)
    said = mixopt(
        "reuse", place / "run", file, "--search", searches(place)["old"], "--reuse", "full", "--write", plan, "--json", comparison
    )
    assert trained(place) == before, "nothing is trained"
    assert "renamed" in said
    assert "law added" in said
    body = json.loads(comparison.read_text())
    assert {change["kind"] for change in body["changes"]} == {"unchanged", "renamed", "added"}
    full = next(entry for entry in body["plans"] if entry["name"] == "full")
    assert (full["units"], full["proxies"], full["measured"]) == (2, 9, ["law"])
    assert body["trials"] == {"earlier": TRIALS, "valid": TRIALS, "gone": 0, "usable": TRIALS}
    assert next(entry for entry in body["plans"] if entry["name"] == "none")["proxies"] == 15
    raw = yaml.safe_load(plan.read_text())
    assert raw["search"]["trials"] == 9
    assert raw["domains"][0]["path"] == "code.jsonl", "as it was written"

    said = mixopt("search", plan)
    assert f"{TRIALS} of its {TRIALS} runs are trials like this search's own" in said
    assert f"{TRIALS} kept proxies are scored on the held-out sets that they lack" in said
    assert trained(place) == before + 9
    old, new = proposal_of(place, "old").mixture.as_dict(), proposal_of(place, "grown")
    weights = new.mixture.as_dict()
    rest = 1 - weights["law"]
    assert {name: weights[name] / rest for name in ("code", "prose")} == pytest.approx(
        {name: old[name] for name in ("code", "prose")}, abs=1e-6
    )
    assert new.evidence["earlier_runs"] == {"like_trials": TRIALS, "other_sources": 0, "by_source": {SOURCE: TRIALS}}
    assert new.evidence["trials"] == 9 + TRIALS
    again = mixopt("search", plan)
    assert "0 trained now, 9 already in the record" in again
    assert trained(place) == before + 9


def test_a_rename_costs_nothing(place: Path, write: Callable[..., Path]) -> None:
    before = trained(place)
    file = write("renamed", {"code": "code", "prose": "prose", "maths": "math"})
    plan = place / "renamed-plan.yaml"
    said = mixopt("reuse", place / "run", file, "--search", searches(place)["old"], "--write", plan)
    assert "Nothing but names changed, and nothing has to be trained." in said
    assert "full reuse 0 0 0 0 12" in said
    mixopt("search", plan)
    assert trained(place) == before
    assert proposal_of(place, "renamed").mixture.as_dict()["maths"] == pytest.approx(
        proposal_of(place, "old").mixture.as_dict()["math"], abs=0.02
    )


def test_where_everything_changed_all_is_recomputed(place: Path, write: Callable[..., Path]) -> None:
    file = write("other", {"law": "law", "more": "more-math"})
    said = mixopt("reuse", place / "run", file, "--search", searches(place)["old"])
    assert "Full recompute: everything changed." in said
    with pytest.raises(ConfigError, match="There is no plan 'full' here"):
        mixopt("reuse", place / "run", file, "--search", searches(place)["old"], "--reuse", "full")


@pytest.mark.slow
def test_another_output_takes_the_tokenizer_along_and_needs_a_surrogate_over_sources(place: Path, write: Callable[..., Path]) -> None:
    domains = {"code": "code", "prose": "prose", "maths": "math", "more": "more-law"}
    file, plan = write("elsewhere", domains, output="elsewhere"), place / "plans" / "elsewhere.yaml"
    mixopt("reuse", place / "run", file, "--search", searches(place)["old"], "--reuse", "full", "--write", plan)
    raw = yaml.safe_load(plan.read_text())
    assert raw["tokenizer"]["path"].startswith(str(place / "run" / "tokens"))
    assert raw["domains"][0]["path"] == str(place / "code.jsonl"), "written into another folder"
    # The weights of the earlier proxies are not here, so they cannot be scored on what is new, and `ridge` cannot fit them beside others.
    assert "warm_start" not in raw["search"]
    several = {"trials": TRIALS, "surrogate": "multi_source_gp"}
    file = write("elsewhere", domains, output="elsewhere", search=several)
    mixopt("reuse", place / "run", file, "--search", searches(place)["old"], "--reuse", "full", "--write", plan)
    assert yaml.safe_load(plan.read_text())["search"]["warm_start"][0]["folder"] == str(place / "run")
    lame = yaml.safe_load(plan.read_text())
    lame["search"]["surrogate"] = "ridge"
    (place / "plans" / "lame.yaml").write_text(yaml.safe_dump(lame))
    with pytest.raises(ConfigError, match="does not fit them beside its own"):
        mixopt("search", place / "plans" / "lame.yaml")
    said = mixopt("search", plan)
    assert f"{TRIALS} are taken as runs of a source of their own" in said


def halves(place: Path) -> None:
    """The documents of prose, in two files; those of math with some of the second."""
    lines = (place / "prose.jsonl").read_text().splitlines(keepends=True)
    math = (place / "math.jsonl").read_text().splitlines(keepends=True)
    for name, part in (("early", lines[:70]), ("late", lines[70:]), ("mixed", [*math[:60], *lines[70:110]])):
        (place / f"{name}.jsonl").write_text("".join(part))


def test_a_split_is_told_by_documents(place: Path, write: Callable[..., Path]) -> None:
    halves(place)
    old = ("--search", searches(place)["old"])
    file = write("halves", {"code": "code", "prose": "early", "later": "late", "math": "math", "law": "law"})
    said = mixopt("reuse", place / "run", file, *old)
    assert "prose, later split" in said
    assert "law added" in said
    assert "Note: prose (100%), later (100%) come from 'prose', as their documents say" in said
    by_names = mixopt("reuse", place / "run", file, *old, "--split", "none")
    assert "prose revised" in by_names
    assert "later added" in by_names
    # Merged with another that is gone: what it is a part of is for its user to say.
    file = write("merged", {"code": "code", "early": "early", "mixed": "mixed"})
    with pytest.raises(
        ConfigError, match=r"'mixed' has documents of 'math' \(\d+%\) and 'prose' \(\d+%\), and 'prose' went into early too"
    ) as found:
        mixopt("reuse", place / "run", file, *old)
    (option, *_) = re.findall(r"--split (\S+)`", found.value.hint)
    assert option == "prose=early,mixed"
    assert "early, mixed split" in mixopt("reuse", place / "run", file, *old, "--split", option)


def test_documents_that_are_no_longer_there_are_missed_aloud(place: Path, write: Callable[..., Path], tmp_path: Path) -> None:
    halves(place)
    copy = tmp_path / "copy"
    shutil.copytree(place / "run", copy, ignore=lambda folder, names: [name for name in names if name.startswith("prose.train")])
    file = write("halves-of-copy", {"code": "code", "early": "early", "late": "late", "math": "math"})
    said = mixopt("reuse", copy, file, "--search", searches(place)["old"])
    assert "early added" in said
    assert re.search(r"The documents of prose are no longer in .*: where they went, only `--split` can say", said)


def test_a_split_and_a_removal_are_told(place: Path, write: Callable[..., Path]) -> None:
    file = write("split", {"code": "code", "left": "law", "right": "more-law"})
    said = mixopt("reuse", place / "run", file, "--search", searches(place)["old"], "--split", "prose=left,right")
    assert "left, right split" in said
    assert "math removed" in said


@pytest.fixture(scope="module")
def several(place: Path) -> str:
    """The name of a finished search with 2 runs where its answer is wanted, and 12 at half the tokens."""
    domains = {"code": "code", "prose": "prose", "math": "math"}
    (place / "several.yaml").write_text(yaml.safe_dump(experiment("several", domains, search=SEVERAL)))
    mixopt("search", place / "several.yaml")
    return "several"


SEVERAL = {"trials": 8, "strategy": "scaling", "surrogate": "multi_source_gp", "sources": [{"size": "nano", "tokens": 8 * STEP}]}


def sources_of(place: Path, name: str) -> Counter[str]:
    with History.open(record_location(place / "run")) as history:
        return Counter(record.trial.source.key for record in history.trials(searches(place)[name], "search"))


def test_runs_of_cheaper_sources_are_own_or_earlier_ones_like_them(place: Path, several: str, write: Callable[..., Path]) -> None:
    domains = {"code": "code", "prose": "prose", "maths": "math"}
    file = write("again", domains, search={**SEVERAL, "trials": 4, "warm_start": [searches(place)[several]]})
    count = sources_of(place, several).total()
    said = mixopt("search", file)
    assert f"{count} of its {count} runs are trials like this search's own." in said
    with History.open(record_location(place / "run")) as history:
        ours, theirs = ({r.trial.trial_id: r.trial.source.key for r in history.trials(searches(place)[n])} for n in ("again", several))
    both = ours.keys() & theirs.keys()
    assert both, "both begin alike, so some of the earlier runs are its own"
    left = Counter(source for trial_id, source in theirs.items() if trial_id not in both)
    assert left[SOURCE] > 0, "runs of both sources are earlier ones, or nothing is tested"
    assert left[CHEAP] > 0
    told = proposal_of(place, "again").evidence["earlier_runs"]
    assert told == {"like_trials": left.total(), "other_sources": 0, "by_source": dict(left)}


def test_too_few_runs_where_the_answer_is_wanted_are_said_with_what_to_do(place: Path, several: str, write: Callable[..., Path]) -> None:
    search_id = searches(place)[several]
    runs = sources_of(place, several)
    assert runs[SOURCE] == 2
    assert runs[CHEAP] > 4
    with pytest.raises(DataError) as found:
        mixopt("reuse", place / "run", write("from-several", GROWN), "--search", search_id)
    assert f"(several) has 2 runs of {SOURCE}, where its answer is wanted, and reuse needs 4" in found.value.message
    assert f"the other {runs[CHEAP]} are of {CHEAP}" in found.value.message
    assert "`search.trials`" in found.value.hint
    entry = re.search(r"`search\.warm_start: (\[.*\])`", found.value.hint)
    assert entry, found.value.hint
    # What it advises works.
    advised = yaml.safe_load(entry[1].replace("OLD_DIR", str(place / "run")))
    assert advised == [{"folder": str(place / "run"), "search": search_id[:8]}]
    file = write("advised", GROWN, search={"trials": 4, "surrogate": "multi_source_gp", "warm_start": advised})
    mixopt("search", file)
    told = proposal_of(place, "advised").evidence["earlier_runs"]
    assert (told["like_trials"], told["other_sources"]) == (2, runs[CHEAP])


def test_trials_of_every_source_are_valid_where_the_new_search_has_that_source(place: Path, write: Callable[..., Path]) -> None:
    enough = {**SEVERAL, "strategy": "bayes", "trials": 6}
    mixopt("search", write("enough", {"code": "code", "prose": "prose", "math": "math"}, search=enough))
    runs, comparison = sources_of(place, "enough"), place / "enough.json"
    assert runs[SOURCE] >= 4
    assert runs[CHEAP] > 0
    for sources, valid in ((enough["sources"], runs.total()), ([], runs[SOURCE])):
        file = write("of-enough", GROWN, search={**enough, "sources": sources})
        said = mixopt("reuse", place / "run", file, "--search", searches(place)["enough"], "--json", comparison)
        assert json.loads(comparison.read_text())["trials"] == {
            "earlier": runs.total(),
            "valid": valid,
            "gone": 0,
            "usable": runs[SOURCE],
        }
        assert "Proxies are of another source" not in said


def test_what_cannot_be_compared_is_said(place: Path, write: Callable[..., Path]) -> None:
    file = write("grown-again", GROWN)
    with pytest.raises(DataError, match="holds no record"):
        mixopt("reuse", place, file)
    with pytest.raises(ConfigError, match="--split prose is not OLD"):
        mixopt("reuse", place / "run", file, "--split", "prose")
    with pytest.raises(ConfigError, match="is the file that the plan is made from"):
        mixopt("reuse", place / "run", file, "--search", searches(place)["old"], "--write", file)
    lost = write("lost", GROWN, search={"trials": TRIALS, "warm_start": ["nowhere"]})
    with pytest.raises(ConfigError, match="holds no record of a search"):
        mixopt("search", lost)
