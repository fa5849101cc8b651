"""`mixopt proxies` as a user runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from typer.testing import CliRunner

from mixopt.cli import app

COMMAND = [sys.executable, "-c", "from mixopt.cli import main; main()", "proxies"]


def proxies(*arguments: str | Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    ended = subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == code, ended.stderr
    assert "Traceback" not in ended.stderr
    return ended


def test_it_lists_every_size_and_the_rules(tmp_path: Path) -> None:
    ended = proxies("--vocab", "4096", "--window", "256", "--json", tmp_path / "sizes.json")
    assert ended.stderr == ""
    for words in (
        "nano",
        "large-dense",
        "64/8/2",
        "4,096 entries",
        "window 256",
        "assumed, not measured on this machine",
        "arXiv 2401.06066",
    ):
        assert words in ended.stdout
    body = json.loads((tmp_path / "sizes.json").read_text())
    assert (body["vocab_size"], body["window"], body["tokens_per_step"]) == (4096, 256, 1024)
    assert {row["size"] for row in body["sizes"]} >= {"nano", "medium", "large", "medium-dense"}
    assert {row["speed"]["origin"] for row in body["sizes"]} == {"assumed"}


def test_it_shows_the_rules_of_mup() -> None:
    ended = proxies("--parametrization", "mup")
    for words in ("router: initial scale 1 / width, rate 1 / width", "arXiv 2601.20205"):
        assert words in ended.stdout
    assert "--parametrization mup" in proxies().stdout


def test_sizes_may_be_named_and_help_is_there() -> None:
    runner = CliRunner()
    assert "4,096 entries" in runner.invoke(app, ["proxies", "sizes", "--vocab", "4096"]).output
    assert "export" in runner.invoke(app, ["proxies", "--help"]).output
    assert runner.invoke(app, ["proxies", "--nonsense"]).exit_code == 2


def test_losses_of_the_base_that_trials_begin_with_have_names_too() -> None:
    from mixopt.commands.proxies import _metric_names

    contexts = {
        "other": {"metrics": {"a": "valid/old", "e": "valid/else"}},
        "this": {"metrics": {"a": "valid/a"}, "metrics_verification": {"b": "valid/a"}, "metrics_base": {"c": "valid/a"}},
    }
    searches = [SimpleNamespace(search_id=name) for name in contexts]
    history: Any = SimpleNamespace(searches=lambda: searches, document=lambda search_id, _: contexts[search_id])
    this: Any = searches[1]
    assert _metric_names(history, this) == {"a": "valid/a", "b": "valid/a", "c": "valid/a", "e": "valid/else"}


def test_a_trained_proxy_is_exported_by_name_id_and_folder(undisturbed: Any, tmp_path: Path) -> None:
    """The mixture's name means the larger proxies of the verification; the folder of a trial says where it lies."""
    records = undisturbed.records()
    natural = next(r.trial.trial_id for r in records if r.stage == "verification" and "natural" in r.trial.label and r.trial.seed == 0)
    ended = undisturbed.run("proxies", "export", "natural", "--to", "transformers", "--from", str(undisturbed.file), "--no-verify")
    folder = Path(ended.output.strip())
    assert folder == undisturbed.output / "proxies" / f"nano-{natural[:8]}"
    assert f"Trial {natural}: natural" in ended.errors
    assert (folder / "model.safetensors").exists()
    card = (folder / "README.md").read_text()
    assert "| target/more-code |" in card
    assert "have not been compared" in card
    again = undisturbed.run("proxies", "export", natural[:10], "--from", str(undisturbed.output))
    assert again.output == ended.output
    assert "already" in again.errors
    searched = records[0].trial.trial_id
    by_folder = undisturbed.run(
        "proxies", "export", str(undisturbed.output / "trials" / searched), "--no-verify", "--out", str(tmp_path / "it")
    )
    assert by_folder.output.strip() == str(tmp_path / "it")
    assert searched in (tmp_path / "it" / "README.md").read_text()


def test_slips_of_an_export(undisturbed: Any, tmp_path: Path) -> None:
    def slip(*arguments: str, code: int) -> str:
        return undisturbed.run("proxies", "export", *arguments, code=code).errors

    place = ("--from", str(undisturbed.output))
    assert "Did you mean 'natural'" in slip("naturel", *place, code=3)
    assert "Did you mean 'transformers'" in slip("natural", "--to", "transformer", *place, code=2)
    assert "does not exist" in slip("natural", "--from", str(tmp_path / "nowhere"), code=2)
    assert "no record of a search" in slip("natural", "--from", str(tmp_path), code=3)


def test_a_slip_is_told_in_a_sentence() -> None:
    assert "not a multiple of the window" in proxies("--tokens-per-step", "1000", code=2).stderr
    assert "nothere.yaml" in proxies("nothere.yaml", code=2).stderr
