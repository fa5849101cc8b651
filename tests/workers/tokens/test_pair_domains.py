"""Domains of prompt/completion pairs from files to a search's domains: split by prompt, never text by mistake, counted whole, scored as completions."""

from __future__ import annotations

import json
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mixopt.config import Experiment
from mixopt.corpus.inventory import take_inventory
from mixopt.corpus.manifest import Manifest
from mixopt.corpus.tokenizer import load_tokenizer
from mixopt.errors import ConfigError, DataError
from mixopt.experiment_file import parse_experiment
from mixopt.progress import Silent
from proxy_models.token_store import TokenStore
from proxy_models.windows import windows_of
from workers.compose import compose, domain_set
from workers.evaluations import plan_evaluations
from workers.planning.expected_corpus import corpus_of
from workers.search_context import context
from workers.tokens.prepare import prepare

WINDOW = 64
SUMS = [{"q": f"What is {a} and {b}?\n", "a": f"It is {a + b}, of course."} for a in range(20) for b in range(20)]
LONG = {"q": "word " * 300, "a": "short"}
NAMES = [{"prompt": f"Who is number {n}?", "completion": f" Person {n} from house {n % 7}."} for n in range(150)]
HELD_OUT_NAMES = [{"prompt": f"And who is {n}?", "completion": f" Somebody from house {n}."} for n in range(20)]
TEXTS = [f"Sentence {n} speaks of {n * n} things that nobody has seen." for n in range(300)]


class Notes(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    @contextmanager
    def stage(self, title: str, total: float | None, unit: str) -> Any:
        with super().stage(title, total, unit) as stage:
            yield stage


def write(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    write(tmp_path / "sums.jsonl", [*SUMS, LONG, {"q": "Empty?", "a": ""}, {"q": "Too long?", "a": "long " * 200}])
    write(tmp_path / "names.jsonl", NAMES)
    write(tmp_path / "names-valid.jsonl", HELD_OUT_NAMES)
    write(tmp_path / "text.jsonl", [{"text": text} for text in TEXTS])
    write(tmp_path / "target.jsonl", [{"q": "Which house does the very last person of the whole long list belong to?", "a": " To none."}])
    return tmp_path


def experiment(folder: Path, **changes: Any) -> Experiment:
    raw: dict[str, Any] = {
        "name": "pairs",
        "output": "run",
        "budget_tokens": "1M",
        "domains": [
            {"name": "sums", "path": "sums.jsonl", "prompt_column": "q", "completion_column": "a", "tokens": "count", "held_out": 0.1},
            {
                "name": "names",
                "path": "names.jsonl",
                "valid": "names-valid.jsonl",
                "prompt_column": "prompt",
                "completion_column": "completion",
                "bytes": "1MB",
            },
            {"name": "text", "path": "text.jsonl", "tokens": "1M", "held_out": 0.1},
        ],
        "targets": [{"name": "t", "path": "target.jsonl", "prompt_column": "q", "completion_column": "a"}],
        "tokenizer": {"vocab_size": 512},
        "proxy": {"window": WINDOW, "tokens_per_step": 128, "tokens": 8192, "seeds": 2},
        "verification": {"enabled": False},
    }
    return parse_experiment(raw | changes, folder)


def decoded(manifest: Manifest, name: str, side: str) -> list[tuple[str, str]]:
    """Prompts and completions of a token file."""
    store = TokenStore.open(manifest.absolute(getattr(manifest.domains[name], side)))
    tokenizer = load_tokenizer(manifest.root / manifest.tokenizer_path)
    ends = store.document_ends.tolist()
    pairs = []
    for start, end, scored in zip([0, *ends[:-1]], ends, store.scored_from.tolist(), strict=True):
        ids = store.tokens[start : end - 1].tolist()
        pairs.append((tokenizer.decode(ids[:scored]), tokenizer.decode(ids[scored:])))
    return pairs


def test_pairs_are_kept_whole_on_the_side_of_their_prompt(corpus: Path) -> None:
    notes = Notes()
    manifest = prepare(experiment(corpus), notes)
    train, valid = decoded(manifest, "sums", "train"), decoded(manifest, "sums", "valid")
    wanted = [(row["q"], row["a"]) for row in [*SUMS, LONG]]
    assert sorted([*train, *valid]) == sorted(wanted)
    assert len(valid) > 10
    assert not {prompt for prompt, _ in train} & {prompt for prompt, _ in valid}
    assert decoded(manifest, "names", "valid") == [(row["prompt"], row["completion"]) for row in HELD_OUT_NAMES]
    dropped = [int(note.split(": ")[1].split(" of ")[0]) for note in notes.notes if "completions are empty or longer than a window" in note]
    cut = [int(note.split(": ")[1].split(" of ")[0]) for note in notes.notes if "cut on the left" in note]
    assert (sum(dropped), sum(cut)) == (2, 1)


def test_training_counts_prompts_and_held_out_pairs_only_what_is_scored(corpus: Path) -> None:
    manifest = prepare(experiment(corpus))
    sums, names, text = (manifest.domains[name] for name in ("sums", "names", "text"))
    assert (sums.kind, names.kind, text.kind) == ("completion", "completion", "text")
    assert names.train.bytes == sum(len(row["prompt"] + row["completion"]) for row in NAMES)
    assert names.valid.bytes == sum(len(row["completion"]) for row in HELD_OUT_NAMES)
    assert sums.packed_tokens == windows_of(manifest.absolute(sums.train), WINDOW).count * WINDOW >= sums.train.tokens - 300
    assert text.packed_tokens == 0
    domains = {domain.name: domain for domain in domain_set(experiment(corpus), manifest).domains}
    assert domains["sums"].target_tokens == sums.train.tokens
    assert domains["names"].target_tokens == pytest.approx(1e6 * names.train.tokens / names.train.bytes)
    # Everything may be seen: as many windows as the pairs fill, which their tokens alone would not tell.
    unique = domain_set(experiment(corpus), manifest).unique_tokens(10**9, WINDOW)
    assert unique["sums"].tokens == sums.packed_tokens
    assert unique["text"].tokens == (text.train.tokens - 1) // WINDOW * WINDOW


def test_the_same_text_is_other_content_as_pairs(corpus: Path) -> None:
    write(corpus / "joined.jsonl", [{"text": row["prompt"] + row["completion"]} for row in NAMES])
    plain = {"name": "names", "path": "joined.jsonl", "tokens": 1000, "held_out": 0.1}
    given = experiment(corpus)
    other = experiment(corpus, domains=[given.domains[0].model_dump(), plain])
    pairs, text = prepare(given).domains["names"], prepare(other).domains["names"]
    assert pairs.train.bytes > text.train.bytes > 0
    assert pairs.train.content_hash != text.train.content_hash
    both = experiment(
        corpus,
        domains=[
            {"name": "joined", "path": "joined.jsonl", "tokens": 1000, "valid": "text.jsonl"},
            given.domains[1].model_dump(),
        ],
    )
    manifest = prepare(both)
    assert manifest.domains["joined"].train.content_hash != manifest.domains["names"].train.content_hash
    assert manifest.domains["joined"].train.bytes == manifest.domains["names"].train.bytes
    domain_set(both, manifest)  # no twins


def test_a_second_run_keeps_the_files_and_another_window_makes_them_anew(corpus: Path) -> None:
    manifest = prepare(experiment(corpus))
    before = {path.name: path.stat().st_mtime_ns for path in manifest.root.iterdir()}
    assert prepare(experiment(corpus)) == manifest == Manifest.load(manifest.root)
    assert {path.name: path.stat().st_mtime_ns for path in manifest.root.iterdir()} == before
    wider = prepare(experiment(corpus, proxy={"window": 128, "tokens_per_step": 128, "tokens": 8192}))
    assert wider.domains["sums"].train.path != manifest.domains["sums"].train.path
    assert wider.domains["text"].train == manifest.domains["text"].train
    assert wider.domains["sums"].packed_tokens % 128 == 0


def test_held_out_pairs_are_scored_as_completions_and_text_keeps_its_keys(corpus: Path) -> None:
    made = experiment(corpus)
    manifest = prepare(made)
    kinds = {evaluation.metric: evaluation.kind for evaluation in plan_evaluations(manifest, 8192, WINDOW, None)}
    assert kinds == {"valid/sums": "completion", "valid/names": "completion", "valid/text": "text", "target/t": "completion"}
    stored = context(compose(made, manifest))
    assert [(domain["name"], domain["kind"]) for domain in stored["domains"]] == [
        ("sums", "completion"),
        ("names", "completion"),
        ("text", "text"),
    ]


def test_a_manifest_of_before_is_read(corpus: Path) -> None:
    manifest = prepare(experiment(corpus))
    path = manifest.root / "manifest.json"
    body = json.loads(path.read_text())
    for files in body["domains"].values():
        del files["kind"], files["packed_tokens"]
    path.write_text(json.dumps(body))
    assert [(files.kind, files.packed_tokens) for files in Manifest.load(manifest.root).domains.values()] == [("text", 0)] * 3
    assert prepare(experiment(corpus)) == manifest == Manifest.load(manifest.root)


def test_an_inventory_counts_pairs_and_finds_them_in_targets(corpus: Path) -> None:
    question = "Which house does the very last person of the whole long list belong to?"
    write(corpus / "names.jsonl", [*NAMES, NAMES[3], {"prompt": f"Say: {question}", "completion": " No."}])
    made = experiment(corpus)
    manifest = prepare(made)
    found = take_inventory(made, Silent())
    names = next(row for row in found.domains if row.name == "names")
    assert (names.train.counted, names.train.tokens) == (True, manifest.domains["names"].train.tokens)
    assert (names.valid.counted, names.valid.tokens) == (True, manifest.domains["names"].valid.tokens)
    assert names.train.bytes == manifest.domains["names"].train.bytes
    assert names.valid.bytes == sum(len(row["prompt"] + row["completion"]) for row in HELD_OUT_NAMES)
    assert (names.train.repeats, names.train.repeats_example) == (1, "names.jsonl:4 and names.jsonl:151")
    (overlap,) = found.overlaps
    assert (overlap.domain, overlap.target, overlap.example.document) == ("names", "t", "names.jsonl:152")


def test_a_plan_before_prepare_expects_pairs(corpus: Path) -> None:
    made = experiment(corpus)
    expected = corpus_of(made)
    assert not expected.prepared
    names = expected.manifest.domains["names"]
    assert names.kind == "completion"
    real = prepare(made)
    assert corpus_of(made).manifest.domains == real.domains
    assert corpus_of(made).prepared


def test_pairs_without_a_held_out_prompt_are_told(corpus: Path) -> None:
    write(corpus / "names.jsonl", [{"prompt": "Say something.", "completion": f" Thing {n}."} for n in range(50)])
    domains = [domain.model_dump() for domain in experiment(corpus).domains]
    domains[1] |= {"valid": None}
    with pytest.raises(DataError, match=r"Splitting the 50 documents of domain 'names' by hash .* leaves no held-out document"):
        prepare(experiment(corpus, domains=domains))


def test_a_wrong_column_is_told_before_anything_is_read(corpus: Path) -> None:
    domains = [domain.model_dump() for domain in experiment(corpus).domains]
    domains[0] |= {"completion_column": "answer"}
    with pytest.raises(ConfigError, match=r"sums\.jsonl of domain 'sums' has no column 'answer'"):
        prepare(experiment(corpus, domains=domains))


def test_no_token_of_a_completion_is_lost_between_file_and_windows(corpus: Path) -> None:
    manifest = prepare(experiment(corpus))
    path = manifest.absolute(manifest.domains["sums"].train)
    store, windows = TokenStore.open(path), windows_of(path, WINDOW)
    completions = np.diff(store.document_ends, prepend=0) - store.scored_from
    tokens_NS, scored_NT = windows.read(np.arange(windows.count))
    assert scored_NT is not None
    assert scored_NT.sum() == completions.sum()
    assert windows.padding(np.arange(windows.count)) < 0.1 * tokens_NS.size
