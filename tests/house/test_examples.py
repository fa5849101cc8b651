"""The examples are experiment files that the loader takes, and what they say of themselves is so."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mixopt.experiment_file import load_experiment
from mixopt.mixture import Schedule
from mixopt.own_trainer.outcome import read_result, request_of
from workers.checks import check_experiment
from workers.compose import compose
from workers.own_trainer.pieces import own_manifest

ROOT = Path(__file__).resolve().parents[2]
OWN_TRAINER = ROOT / "examples" / "own-trainer"
EXAMPLES = [*sorted((ROOT / "examples").glob("*.yaml")), OWN_TRAINER / "experiment.yaml"]


def test_the_examples_that_the_readme_promises_are_there() -> None:
    assert {path.name for path in EXAMPLES} >= {"demo.yaml", "shared-corpus.yaml"}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_passes_every_check_before_documents_are_read(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIXOPT_SHARED", str(tmp_path))
    experiment = load_experiment(path)
    check_experiment(experiment.model_copy(update={"output": str(tmp_path / "run")}))
    assert experiment.output_dir.is_relative_to(ROOT / "runs"), "results belong into a folder that git ignores"


def test_the_demo_file_is_the_demo() -> None:
    """Apart from where its files lie."""

    def without_paths(value: object) -> object:
        if isinstance(value, dict):
            return {key: without_paths(item) for key, item in value.items() if key not in ("path", "valid", "output")}
        return [without_paths(item) for item in value] if isinstance(value, list) else value

    packaged = yaml.safe_load((ROOT / "mixopt" / "corpus" / "demo" / "experiment.yaml").read_text(encoding="utf-8"))
    example = yaml.safe_load((ROOT / "examples" / "demo.yaml").read_text(encoding="utf-8"))
    assert without_paths(example) == without_paths(packaged)


def test_the_trainer_of_ones_own_answers_its_request(tmp_path: Path) -> None:
    experiment = load_experiment(OWN_TRAINER / "experiment.yaml")
    search = compose(experiment, own_manifest(experiment))
    trial = search.factory.make(Schedule.constant(search.domains.natural()), 3, "natural")
    request, result = tmp_path / "request.json", tmp_path / "result.json"
    request.write_text(json.dumps(request_of(trial) | {"tokens": 2048}), encoding="utf-8")
    subprocess.run(
        [sys.executable, str(OWN_TRAINER / "train.py"), str(request), str(result)], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    measured = read_result(result, trial, experiment.metric_names)
    assert all(2 < value < 8 for value in measured.values.values()), "nats per byte after two steps: near those of nothing learned"
    assert len((OWN_TRAINER / "train.py").read_text(encoding="utf-8").splitlines()) < 70


@pytest.mark.shared
@pytest.mark.skipif("MIXOPT_SHARED" not in os.environ, reason="MIXOPT_SHARED is not set")
def test_the_shared_corpus_is_where_its_example_looks() -> None:
    experiment = load_experiment(ROOT / "examples" / "shared-corpus.yaml")
    files = [path for domain in experiment.domains for path in (*domain.path, *(domain.valid or ()))]
    files += [path for target in experiment.targets for path in target.path]
    assert len(files) == 14 + 14 + 11
    assert [path for path in files if not Path(path).is_file()] == []
    limits = {d.name: d.max_epochs * d.tokens / experiment.budget_tokens for d in experiment.domains}
    assert sum(limit < 1 / 14 for limit in limits.values()) >= 1, "an inventory as real ones are: some caps bind below uniform"
