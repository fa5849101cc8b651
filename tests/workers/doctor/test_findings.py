"""The doctor survives whatever it looks at."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from workers.doctor.findings import Check, Finding, Status, ok, run_checks
from workers.doctor.processes import probe_process


def test_a_check_that_raises_is_a_finding_and_the_others_go_on() -> None:
    def broken() -> list[Finding]:
        raise RuntimeError("no\nsuch thing")

    found = run_checks([Check("a", broken), Check("b", lambda: [ok("b", "fine")])])
    assert [(finding.topic, finding.status) for finding in found] == [("a", Status.PROBLEM), ("b", Status.OK)]
    assert found[0].found == "It could not be looked at: RuntimeError: no such thing"
    assert found[0].remedy


def test_a_check_that_hangs_is_a_finding_and_the_others_go_on() -> None:
    forever = threading.Event()

    def hangs() -> list[Finding]:
        forever.wait()
        return []

    done: list[int] = []
    found = run_checks([Check("a", hangs, seconds=0.05), Check("b", lambda: [ok("b", "fine")])], lambda: done.append(1))
    forever.set()
    assert [(finding.topic, finding.status) for finding in found] == [("a", Status.PROBLEM), ("b", Status.OK)]
    assert found[0].found.startswith("No answer within")
    assert len(done) == 2


@pytest.mark.parametrize(
    ("body", "seconds", "trouble"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", 60.0, "the process was ended by SIGSEGV"),
        ("raise SystemExit('driver lost')", 60.0, "driver lost"),
        ("import time; time.sleep(600)", 0.5, "no answer within 0 seconds"),
        ("print('noise'); print('{\"a\": 1}'); print('more')", 60.0, ""),
    ],
)
def test_what_a_probe_does_to_its_process_stays_there(
    body: str, seconds: float, trouble: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "some_probe.py").write_text(body)
    monkeypatch.syspath_prepend(str(tmp_path))
    probed = probe_process("some_probe", [], {}, seconds)
    assert probed.trouble == trouble
    assert probed.said == ({} if trouble else {"a": 1})


def test_what_a_probe_started_ends_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a Ray that does not come up: its processes must not stay behind."""
    body = (
        "import pathlib, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "pathlib.Path(sys.argv[1]).write_text(str(child.pid))\n"
        "time.sleep(600)\n"
    )
    (tmp_path / "starting_probe.py").write_text(body)
    monkeypatch.syspath_prepend(str(tmp_path))
    file = tmp_path / "pid"
    assert probe_process("starting_probe", [str(file)], {}, 20.0).trouble == "no answer within 20 seconds"
    stat = Path(f"/proc/{int(file.read_text())}/stat")
    assert not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z", "the child is still there"
