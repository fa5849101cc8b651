"""`mixopt proxies` as a user runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

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


def test_a_slip_is_told_in_a_sentence() -> None:
    assert "not a multiple of the window" in proxies("--tokens-per-step", "1000", code=2).stderr
    assert "nothere.yaml" in proxies("nothere.yaml", code=2).stderr
