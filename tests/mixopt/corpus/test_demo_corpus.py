"""The embedded corpus: real, deterministic, and with targets that no training text gives away."""

import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from mixopt.corpus.demo import DemoCorpus, build_demo_corpus
from mixopt.corpus.demo.installation import Installation, InstalledFile
from mixopt.corpus.demo.pairs import PAIR_SOURCES, collect_pairs, description_examples
from mixopt.corpus.demo.sources import DOCUMENT_BYTES, DOMAIN_SOURCES, Text, docstrings, pieces
from mixopt.corpus.demo.targets import Example, TargetSource, explanation_examples, function_examples, without_overlap, word_spans
from mixopt.corpus.splits import Side, side_of
from mixopt.domains import Domain, DomainSet
from mixopt.errors import DataError
from mixopt.experiment_file import load_experiment

MODULE = '''"""About the module. It has two sentences."""

import os


class Box:
    """A box.

    >>> Box()
    <Box>

    Holds things.
    """

    def total(self, items, factor=2):
        """Sum of the items, each multiplied by a factor."""
        result = 0
        for item in items:
            result += item * factor
        return result

    def bare(self):
        return os.sep


if True:

    async def wait():
        """Waits for something that never comes, patiently."""
        while os.getpid():
            pass  # there is nothing to see here, and it stays like that
'''


def rows(path: Path) -> list[dict[str, str]]:
    return list(pq.read_table(path).to_pylist())


def test_docstrings_come_in_order_without_indentation() -> None:
    assert docstrings(MODULE) == [
        "About the module. It has two sentences.",
        "A box.\n\n>>> Box()\n<Box>\n\nHolds things.",
        "Sum of the items, each multiplied by a factor.",
        "Waits for something that never comes, patiently.",
    ]
    assert docstrings("def broken(:") == []


def test_functions_split_after_their_docstring() -> None:
    examples = list(function_examples(MODULE))
    assert len(examples) == 2
    prompt, completion = examples[0]
    assert prompt == 'def total(self, items, factor=2):\n    """Sum of the items, each multiplied by a factor."""\n'
    assert completion == "    result = 0\n    for item in items:\n        result += item * factor\n    return result\n"
    assert examples[1][0].startswith("async def wait():\n")


def test_a_function_is_described_by_its_docstring() -> None:
    examples = list(description_examples(MODULE))
    assert examples[0] == (
        "def total(self, items, factor=2):\n    result = 0\n    for item in items:\n        result += item * factor\n    return result\n\n"
        "What does it do?\n",
        "Sum of the items, each multiplied by a factor.\n",
    )
    assert [completion for _, completion in examples[1:]] == ["Waits for something that never comes, patiently.\n"]


def test_pairs_are_distinct_and_share_no_run_of_words_with_what_is_held_out() -> None:
    words = [f"word{number}" for number in range(40)]
    pairs = [Example(f"Prompt {start}: ", " ".join(words[start : start + 14]), "s", "o") for start in (0, 0, 10, 20)]
    source = TargetSource("x", "of a test", lambda _: iter(pairs))
    held_out = [Example("other", " ".join(["no", *words[18:33]]), "s", "o")]
    assert collect_pairs(source, Installation(), 10**6, held_out) == [pairs[0], pairs[2]]
    assert collect_pairs(source, Installation(), 1, held_out) == [pairs[0]]


def test_explanations_split_between_sentences_and_join_as_they_are() -> None:
    text = "Finds the root of a function of one variable. It needs a bracket. The bracket has to change sign.\n\nIt halves the bracket each time."
    source = f'def f():\n    """{text}\n\n    Args:\n        x: A number.\n    """'
    ((prompt, completion),) = explanation_examples(source)
    assert prompt + completion == text
    assert prompt == "Finds the root of a function of one variable."


def test_long_texts_are_cut_between_lines_and_blobs_left_out() -> None:
    line = "words that someone wrote by hand\n"
    text = line * 700
    parts = list(pieces(Text(text, "a.txt", "a 1")))
    assert "".join(part.text for part in parts) == text
    assert all(len(part.text) <= DOCUMENT_BYTES and part.text.endswith("\n") for part in parts)
    assert len({part.source for part in parts}) == len(parts) > 2
    for blob in ("x" * 5000, "0x1f, 0x2e, 17, 3.14,\n" * 200, "short\n"):
        assert list(pieces(Text(blob, "a.js", "a 1"))) == []


def test_examples_that_share_thirteen_words_with_training_text_leave() -> None:
    words = [f"word{index}" for index in range(30)]
    examples = [Example(f"Prompt {index}: ", " ".join(words[index : index + 14]), "s", "o") for index in (0, 10)]
    training = ["before " + ", ".join(words[:13]).upper() + " after", " ".join(words[12:24])]  # 13 shared words, and 12
    assert without_overlap(examples, training) == [examples[1]]


def test_the_installation_is_the_same_whatever_else_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    origins = {file.origin.split()[0] for file in Installation().dependencies}
    assert {"torch", "ray", "mlflow", "numpy"} <= origins
    assert not {"pytest", "hypothesis", "mypy", "ruff", "mixopt"} & origins
    monkeypatch.setattr("mixopt.corpus.demo.installation.ROOT_DISTRIBUTION", "no-such-distribution")
    with pytest.raises(DataError, match="not installed"):
        _ = Installation().dependencies


def test_an_environment_that_holds_too_little_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = tmp_path / "module.py"
    small.write_text("# a line of python\n" * 100)
    monkeypatch.setattr(Installation, "standard_library", [InstalledFile("stdlib/module.py", small, "Python")])
    with pytest.raises(DataError, match="embedded domain 'python'"):
        build_demo_corpus(tmp_path / "out")
    assert not (tmp_path / "out" / "experiment.yaml").exists()


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DemoCorpus]:
    out = tmp_path_factory.mktemp("demo")
    return out, build_demo_corpus(out)


@pytest.mark.slow
def test_domains_are_real_and_large_enough(demo: tuple[Path, DemoCorpus]) -> None:
    out, corpus = demo
    parts = {part.name: part for part in corpus.parts}
    seen: set[str] = set()
    for source in DOMAIN_SOURCES:
        train, valid = (rows(out / side / f"{source.name}.parquet") for side in Side)
        size = sum(len(row["text"].encode()) for row in train)
        assert (parts[source.name].documents, parts[source.name].bytes) == (len(train), size)
        assert 1_000_000 <= size <= 3_000_000
        assert sum(len(row["text"].encode()) for row in valid) >= 24_000, "the 8K tokens that the demo's verification scores"
        assert re.search(r"\d", parts[source.name].taken_from), "says which versions it was taken from"
        for side, texts in ((Side.TRAIN, train), (Side.VALID, valid)):
            for row in texts:
                assert row["text"] not in seen
                seen.add(row["text"])
                assert side_of(row["source"].split("#")[0], 0.05) is side, "pieces of one file are on one side"
                assert not row["source"].startswith(("/", ".."))
                assert len(row["text"].encode()) <= DOCUMENT_BYTES
    assert len(DOMAIN_SOURCES) >= 6


@pytest.mark.slow
def test_targets_are_held_out(demo: tuple[Path, DemoCorpus]) -> None:
    out, _ = demo
    training = [row for source in DOMAIN_SOURCES for row in rows(out / "train" / f"{source.name}.parquet")]
    files = {row["source"].split("#")[0] for row in training}
    spans = set().union(*(word_spans(row["text"], 13) for row in training))
    for target in ("functions", "explanations"):
        examples = rows(out / "targets" / f"{target}.parquet")
        assert 200 <= len(examples) <= 400
        assert len({example["completion"] for example in examples}) == len(examples)
        for example in examples:
            assert example["source"] not in files
            assert not word_spans(example["prompt"] + example["completion"], 13) & spans
            assert len(example["completion"]) <= 600
            assert len(example["prompt"]) <= 800


@pytest.mark.slow
def test_pairs_keep_clear_of_the_targets(demo: tuple[Path, DemoCorpus]) -> None:
    out, corpus = demo
    targets = [row for target in ("functions", "explanations") for row in rows(out / "targets" / f"{target}.parquet")]
    spans = set().union(*(word_spans(row["prompt"] + row["completion"], 13) for row in targets))
    files = {row["source"] for row in targets}
    parts = {part.name: part for part in corpus.parts}
    for source in PAIR_SOURCES:
        sides = {side: rows(out / "pairs" / side / f"{source.name}.parquet") for side in Side}
        size = sum(len((row["prompt"] + row["completion"]).encode()) for row in sides[Side.TRAIN])
        assert (parts[source.name].documents, parts[source.name].bytes) == (len(sides[Side.TRAIN]), size)
        assert 200_000 <= size <= 700_000
        for side, pairs in sides.items():
            assert pairs
            for pair in pairs:
                assert pair["source"] not in files
                assert side_of(pair["source"], 0.05) is side
                assert spans.isdisjoint(word_spans(pair["prompt"] + pair["completion"], 13))


@pytest.mark.slow
def test_two_builds_give_the_same_files(demo: tuple[Path, DemoCorpus], tmp_path: Path) -> None:
    out, _ = demo
    # Another process with another hash seed, so that an order taken from a set would show.
    script = "import sys, pathlib, mixopt.corpus.demo as demo; demo.build_demo_corpus(pathlib.Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True, env={**os.environ, "PYTHONHASHSEED": "12345"})
    names = sorted(path.relative_to(out) for path in out.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file())
    assert all((out / name).read_bytes() == (tmp_path / name).read_bytes() for name in names)


@pytest.mark.slow
def test_the_experiment_file_fits_the_corpus(demo: tuple[Path, DemoCorpus]) -> None:
    _, corpus = demo
    experiment = load_experiment(corpus.experiment)
    assert [domain.name for domain in experiment.domains] == [source.name for source in DOMAIN_SOURCES]
    for paths in [*(domain.path for domain in experiment.domains), *(target.path for target in experiment.targets)]:
        assert all(Path(path).is_file() for path in paths)


def test_two_epoch_caps_can_bind() -> None:
    """In UniMax, the most even mixture that the caps allow, the two domains closest to the targets are at theirs."""
    import mixopt.corpus.demo.build as build

    experiment = load_experiment(Path(build.__file__).with_name("experiment.yaml"))
    domains = tuple(Domain(d.name, d.name, 10**6, d.tokens, d.group, d.max_epochs) for d in experiment.domains)
    inventory = DomainSet(domains, experiment.budget_tokens)
    epochs = inventory.epochs(inventory.unimax())
    capped = {d.name for d in domains if epochs[d.name] == pytest.approx(d.max_epochs)}
    assert capped == {"python", "docstrings"}
    assert max(inventory.epochs(inventory.natural()).values()) < 1.01


def test_packages_vendored_by_others_do_not_count() -> None:
    """Ray puts its vendored packages on the path when it is imported; what was found before must be found again."""
    before = {(file.name, file.origin) for file in Installation().dependencies}
    vendored = next((Path(entry) for entry in sysconfig.get_paths().values() if (Path(entry) / "ray" / "thirdparty_files").is_dir()), None)
    assert vendored is not None, "this Ray vendors nothing: the test can go"
    sys.path.insert(0, str(vendored / "ray" / "thirdparty_files"))
    try:
        after = {(file.name, file.origin) for file in Installation().dependencies}
    finally:
        sys.path.pop(0)
    assert after == before
