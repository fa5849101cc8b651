"""The example with groups as a user runs it, on the first documents of each of its files, with short trials."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mixopt.history import History
from mixopt.proposal import Proposal
from mixopt.verification import Verification
from workers.compose import record_location

pytestmark = [
    pytest.mark.slow,
    pytest.mark.shared,
    pytest.mark.skipif("MIXOPT_SHARED" not in os.environ, reason="MIXOPT_SHARED is not set"),
]

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-c", "from mixopt.cli import main; main()"]
BYTES = {"train": 60_000, "valid": 8_000, "targets": 4_000}


def shrink(source: Path, target: Path) -> None:
    """The first documents of every file of the shared corpus, by bytes of text; at least two of each."""
    import pyarrow.parquet as pq

    for folder, most in BYTES.items():
        (target / folder).mkdir(parents=True)
        for path in sorted((source / folder).glob("*.parquet")):
            table = pq.read_table(path)
            column = table.column("completion" if folder == "targets" else "text").to_pylist()
            rows, size = 0, 0
            while rows < len(column) and (rows < 2 or size < most):
                size += len(column[rows].encode())
                rows += 1
            pq.write_table(table.slice(0, rows), target / folder / path.name)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("groups")
    shrink(Path(os.environ["MIXOPT_SHARED"]) / "data" / "corpus", folder / "shared" / "data" / "corpus")
    raw = yaml.safe_load((ROOT / "examples" / "groups.yaml").read_text(encoding="utf-8"))
    raw |= {
        "output": "run",
        "tokenizer": {"vocab_size": 512, "sample_bytes": "200K"},
        "proxy": {"size": "nano", "tokens": "10K", "window": 128, "tokens_per_step": 1024, "seeds": 2},
        "search": {"strategy": "regression", "trials": 12},
        "verification": {"size": "nano", "tokens": "9K", "seeds": 2, "evaluation_tokens": 500},
        "ray": {"address": "in-process"},
        "tracking": {"enabled": False},
    }
    (folder / "groups.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    return folder / "groups.yaml"


def mixopt(file: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"MIXOPT_SHARED": str(file.parent / "shared"), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run([*COMMAND, *map(str, arguments)], cwd=file.parent, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def searched(file: Path) -> subprocess.CompletedProcess[str]:
    result = mixopt(file, "search", file)
    assert result.returncode == 0, result.stderr
    return result


def test_the_answer_keeps_the_rules_and_shows_every_level(searched: subprocess.CompletedProcess[str], file: Path) -> None:
    with History.open(record_location(file.parent / "run")) as history:
        (search,) = history.searches()
        proposal = Proposal.from_json(history.document(search.search_id, "proposal") or {})
        verification = Verification.from_json(history.document(search.search_id, "verification") or {})
        context = history.document(search.search_id, "context") or {}
    weights = proposal.mixture.as_dict()
    groups = {group["path"]: group for group in context["groups"]}
    assert context["levels"] == ["source", "topic", "quality"]
    assert groups["code/programs/raw"]["members"] == ["code_c", "code_python", "code_rust"]
    totals = {path: sum(weights[name] for name in group["members"]) for path, group in groups.items()}
    assert 0.2 - 1e-9 <= totals["web"] <= 0.5 + 1e-9
    assert 0.02 - 1e-9 <= totals["law"] <= 0.2 + 1e-9
    assert weights["wiki_en"] == pytest.approx(0.7 * totals["web/encyclopedia/edited"], abs=1e-9)
    assert weights["code_c"] == pytest.approx(24 / 93 * totals["code"], abs=1e-9)
    assert totals["code"] <= 0.3 + 1e-9
    assert all(epochs <= 4 + 1e-6 for epochs in proposal.epochs.values())
    # The inventory is 64% web and its encyclopedias are split otherwise: none of the baselines keeps the rules, and all were measured.
    assert {"natural", "uniform", "unimax"} <= set(verification.infeasible) & set(verification.losses)
    assert verification.recommended not in verification.infeasible
    for text in (searched.stdout, next((file.parent / "run" / "searches").glob("*/answer.md")).read_text(encoding="utf-8")):
        assert "Weights per level" in text
        assert "code/programs/raw" in text.replace("\\_", "_")


@pytest.mark.usefixtures("searched")
def test_what_breaks_a_rule_is_not_exported(file: Path) -> None:
    written = mixopt(file, "export", "run", "--to", "json")
    assert written.returncode == 0, written.stderr
    provenance = json.loads(Path(file.parent, written.stdout.strip()).read_text(encoding="utf-8"))["provenance"]
    assert set(provenance["groups"]) >= {"web", "web/encyclopedia/edited", "code", "law", "math"}
    assert sum(provenance["groups"][path]["weight"] for path in ("web", "library", "law", "code", "math")) == pytest.approx(1)
    refused = mixopt(file, "export", "run", "--to", "json", "--arm", "natural")
    assert refused.returncode == 4
    assert "group 'web' weighs 0.6397, its bounds are 0.2 to 0.5" in refused.stderr


@pytest.mark.usefixtures("searched")
def test_without_rules_the_same_corpus_reuses_the_baselines(file: Path) -> None:
    """Baselines are over domains whatever the groups, so that searches with other groups share them."""
    raw = yaml.safe_load(file.read_text(encoding="utf-8"))
    del raw["groups"]
    other = file.with_name("plain.yaml")
    other.write_text(yaml.safe_dump(raw | {"name": "plain", "verification": {"enabled": False}}, sort_keys=False))
    result = mixopt(file, "search", other, "--trials", "6")
    assert result.returncode == 0, result.stderr
    assert "5 already in the record" in result.stdout
