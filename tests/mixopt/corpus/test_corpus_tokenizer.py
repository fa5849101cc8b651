"""The tokenizer gives text back, is deterministic, and refuses files that would not do."""

import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from mixopt.corpus.tokenizer import END_TOKEN, CorpusTokenizer, load_tokenizer, sample_by_bytes, train_tokenizer
from mixopt.errors import ConfigError, DataError

SAMPLE = [f"def function_{index % 7}(value):\n    return value + {index}  # adds\n" for index in range(400)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> CorpusTokenizer:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    train_tokenizer(SAMPLE, 512, path)
    return load_tokenizer(path)


def without(tokenizer: CorpusTokenizer, path: Path, **changes: object) -> Path:
    body = json.loads(tokenizer.path.read_text())
    path.write_text(json.dumps(body | changes))
    return path


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=80) | st.sampled_from([END_TOKEN, f" {END_TOKEN}\n", "\r\n\t  \x00"])


@given(st.lists(texts, max_size=5))
def test_text_comes_back_and_no_text_is_an_end(tokenizer: CorpusTokenizer, batch: list[str]) -> None:
    encoded = tokenizer.encode_batch(batch)
    assert [tokenizer.decode(ids) for ids in encoded] == batch
    assert all(tokenizer.end_id not in ids and all(0 <= i < tokenizer.vocab_size for i in ids) for ids in encoded)
    assert [len(ids) == 0 for ids in encoded] == [text == "" for text in batch]


def test_training_is_deterministic_and_the_hash_is_of_the_file(tokenizer: CorpusTokenizer, tmp_path: Path) -> None:
    train_tokenizer(iter(SAMPLE), 512, tmp_path / "again.json")
    again = load_tokenizer(tmp_path / "again.json")
    assert again.hash == tokenizer.hash == hashlib.sha256(tokenizer.path.read_bytes()).hexdigest()


def test_frequent_words_become_single_tokens(tokenizer: CorpusTokenizer) -> None:
    assert tokenizer.end_token == END_TOKEN
    assert 257 < tokenizer.vocab_size <= 512
    (ids,) = tokenizer.encode_batch(["return value"])
    assert len(ids) < len("return value") / 3


def test_truncation_and_padding_in_a_file_do_not_apply(tokenizer: CorpusTokenizer, tmp_path: Path) -> None:
    truncation = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    loaded = load_tokenizer(without(tokenizer, tmp_path / "t.json", truncation=truncation))
    assert loaded.decode(loaded.encode_batch(SAMPLE[:1])[0]) == SAMPLE[0]


def test_lossy_normalization_is_refused(tokenizer: CorpusTokenizer, tmp_path: Path) -> None:
    lossy = Tokenizer.from_file(str(tokenizer.path))
    lossy.normalizer = normalizers.Lowercase()
    lossy.save(str(tmp_path / "t.json"))
    with pytest.raises(ConfigError, match="does not give text back"):
        load_tokenizer(tmp_path / "t.json")


def test_words_without_bytes_are_refused(tmp_path: Path) -> None:
    words = Tokenizer(models.WordLevel({"[UNK]": 0, "</s>": 1, "Probe": 2}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.save(str(tmp_path / "t.json"))
    with pytest.raises(ConfigError, match="does not give text back"):
        load_tokenizer(tmp_path / "t.json")


def test_a_tokenizer_without_an_end_is_refused(tokenizer: CorpusTokenizer, tmp_path: Path) -> None:
    content = tokenizer.path.read_text().replace(END_TOKEN, "<|start|>")
    (tmp_path / "t.json").write_text(content)
    with pytest.raises(ConfigError, match="no end-of-document token"):
        load_tokenizer(tmp_path / "t.json")


def test_an_end_token_of_another_name_is_found(tokenizer: CorpusTokenizer, tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text(tokenizer.path.read_text().replace(END_TOKEN, "<|endoftext|>"))
    assert load_tokenizer(tmp_path / "t.json").end_token == "<|endoftext|>"


def test_a_vocabulary_that_does_not_fit_is_refused(tokenizer: CorpusTokenizer, tmp_path: Path) -> None:
    body = json.loads(tokenizer.path.read_text())
    body["model"]["vocab"] |= {f"filler{index}": 10_000 + index for index in range(60_000)}
    (tmp_path / "t.json").write_text(json.dumps(body))
    with pytest.raises(ConfigError, match="more than 65,536"):
        load_tokenizer(tmp_path / "t.json")


@pytest.mark.parametrize("content", [b"{}", b"not json", b"\xff"])
def test_files_that_are_no_tokenizer_are_told(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "t.json").write_bytes(content)
    with pytest.raises(DataError, match="is not a tokenizer"):
        load_tokenizer(tmp_path / "t.json")


def test_a_missing_tokenizer_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        load_tokenizer(tmp_path / "t.json")
    with pytest.raises(DataError, match="is a folder"):
        load_tokenizer(tmp_path)


words = st.lists(st.text("abcd é", min_size=0, max_size=12), max_size=40)


@given(words, st.integers(1, 120), st.randoms(use_true_random=False))
def test_a_sample_is_even_bounded_and_independent_of_order(texts: list[str], limit: int, random: object) -> None:
    sample = sample_by_bytes(texts, limit)
    distinct = {text for text in texts if text}
    assert set(sample) <= distinct
    assert len(set(sample)) == len(sample)
    sizes = [len(text.encode()) for text in sample]
    if sum(len(text.encode()) for text in distinct) <= limit:
        assert set(sample) == distinct
    else:
        assert sum(sizes) >= limit > sum(sizes[:-1])
    shuffled = [*texts, *texts]
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert sample_by_bytes(shuffled, limit) == sample
