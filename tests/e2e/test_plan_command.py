"""`mixopt plan` as a user runs it: an answer on standard output, whatever fits or not, and nothing left behind but the output folder."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

COMMAND = [sys.executable, "-c", "from mixopt.cli import main; main()"]


def mixopt(*arguments: str | Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    ended = subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == code, ended.stderr
    assert "Traceback" not in ended.stderr
    return ended


@pytest.fixture
def file(tmp_path: Path) -> Path:
    for name in ("web", "code"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": f"{name} {number} " * 50}) + "\n" for number in range(100)))
    raw = {
        "name": "plan-me",
        "output": "run",
        "budget_tokens": "1B",
        "domains": [{"name": name, "path": f"{name}.jsonl", "tokens": "1B"} for name in ("web", "code")],
        "proxy": {"tokens": 8192, "window": 64, "tokens_per_step": 128},
        "search": {"trials": 9},
        "ray": {"cpus": 2},
    }
    path = tmp_path / "search.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


def test_it_answers_without_spending_anything(file: Path) -> None:
    ended = mixopt("plan", file, "--no-probe", "--json", file.parent / "plans" / "plan.json")
    assert ended.stderr == ""
    assert "Plan of plan-me: 2 domains" in ended.stdout
    assert "assumed, not measured on this machine" in ended.stdout
    body = json.loads((file.parent / "plans" / "plan.json").read_text())
    assert body["stages"][0]["trials"] == 9
    assert body["machine"]["slots"] == 2
    assert body["totals"]["trials"] == 9 + body["stages"][1]["trials"]
    assert list((file.parent / "run").iterdir()) == []


@pytest.mark.slow
def test_the_probe_says_where_the_speed_comes_from(file: Path) -> None:
    ended = mixopt("plan", file)
    assert "Measuring the speed of training" in ended.stderr
    speeds = [line for line in ended.stdout.splitlines() if line.startswith("Speed of ")]
    assert len(speeds) == 2
    # On a machine too busy for the probe's time it falls back, and says so.
    assert all("measured by a probe" in line for line in speeds) or "came to no result" in ended.stdout or "scaled by FLOPs" in ended.stdout


@pytest.mark.parametrize("command", ["plan", "proxies", "domains"])
def test_a_json_file_that_cannot_be_written_is_told_before_any_work(file: Path, command: str) -> None:
    """Even before documents are looked for, of which one is missing here; a probe would take up to a minute."""
    (file.parent / "web.jsonl").unlink()
    for unwritable in (file.parent, file / "below-a-file.json"):
        assert f"--json {unwritable} cannot be written" in mixopt(command, file, "--json", unwritable, code=2).stderr
    assert mixopt(command, file, "--json", file.parent / "new" / "rows.json", code=3).stdout == ""
    assert list((file.parent / "new").iterdir()) == []


def test_a_wrong_file_is_refused_as_by_every_command(file: Path) -> None:
    file.write_text(file.read_text().replace("web.jsonl", "wep.jsonl"))
    assert "wep.jsonl" in mixopt("plan", file, "--no-probe", code=3).stderr
    file.write_text(file.read_text().replace("budget_tokens", "budget_token"))
    assert "Did you mean 'budget_tokens'?" in mixopt("plan", file, code=2).stderr
