"""The tokenizer: a byte-level BPE trained on an even sample of the domains, or one loaded from a tokenizer.json.

Byte-level, so that any text has tokens and decoding gives the text back; small (4k to 8k entries), because the embedding of a larger one
would be most of a small proxy. Its identity is the SHA-256 of its file. Text is never read as special tokens: a document that contains the
characters of the end token gets ordinary tokens for them.
"""

from __future__ import annotations

import hashlib
import heapq
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixopt.errors import ConfigError, DataError

END_TOKEN = "<|end|>"
# End-of-document tokens of common tokenizers, most specific first; the first that a loaded tokenizer knows is used.
KNOWN_END_TOKENS = (END_TOKEN, "<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>")
# Token files hold two bytes per token up to here, and the embedding of a larger vocabulary would dwarf any proxy.
LARGEST_VOCAB = 1 << 16
# Letters, case, spaces, tabs, line ends, accents, other scripts, emoji, controls, and the characters of an end token. Composed forms only:
# canonical normalization (NFC), which some published tokenizers apply, changes bytes but loses no meaning and passes.
PROBE = "  Probe: x\t= 1;\r\n\n    return 'naïve';  # 数据 Ελλ Ж 👩\u200d🚀 \x07<|end|> \n"


@dataclass(frozen=True)
class CorpusTokenizer:
    """A checked tokenizer.

    Attributes:
        path, hash: its file and the SHA-256 of the file's bytes.
        vocab_size: one more than the largest id.
        end_token, end_id: what ends every document.
    """

    path: Path
    hash: str
    vocab_size: int
    end_token: str
    end_id: int
    _encoder: Any

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, without an end token; an empty text has none."""
        return [encoding.ids for encoding in self._encoder.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._encoder.decode(list(ids), skip_special_tokens=False))


def sample_by_bytes(texts: Iterable[str], limit_bytes: int) -> list[str]:
    """A uniform sample of distinct texts, of at least `limit_bytes` bytes of UTF-8 if there are as many, else all.

    Texts are ordered by hash and taken from the front, so the sample depends on the set of texts only; one pass, memory of the sample's size.
    """
    kept: list[tuple[int, int, str]] = []  # a heap whose top is the text that leaves next: the largest hash, negated
    hashes: set[int] = set()
    total = 0
    for text in texts:
        encoded = text.encode("utf-8")
        rank = int.from_bytes(hashlib.blake2b(encoded, digest_size=8, person=b"mixopt/sample").digest(), "big")
        if not encoded or rank in hashes or (total >= limit_bytes and -rank < kept[0][0]):
            continue
        heapq.heappush(kept, (-rank, len(encoded), text))
        hashes.add(rank)
        total += len(encoded)
        while total - kept[0][1] >= limit_bytes:
            removed, size, _ = heapq.heappop(kept)
            hashes.discard(-removed)
            total -= size
    return [text for _, _, text in sorted(kept, key=lambda item: -item[0])]


def train_tokenizer(texts: Iterable[str], vocab_size: int, path: Path) -> None:
    """Trains a byte-level BPE (arXiv 1508.07909 on bytes) and writes it to `path` atomically; the same texts give the same file.

    Fewer than `vocab_size` entries come out when the texts hold too few pairs to merge.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[AddedToken(END_TOKEN, special=True, normalized=False)],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer=trainer)
    write_atomically(path, tokenizer.to_str(pretty=True).encode("utf-8"))


def load_tokenizer(path: Path) -> CorpusTokenizer:
    """Loads and checks a tokenizer.json.

    Raises:
        DataError: the file is missing or not a tokenizer.
        ConfigError: it has no known end token, more than 65,536 entries, or does not give text back (lowercases, drops spaces, has gaps).
    """
    from tokenizers import Tokenizer

    if not path.is_file():
        found = "is a folder" if path.is_dir() else "does not exist"
        raise DataError(f"Tokenizer {path} {found}.", "Name a tokenizer.json, or leave `tokenizer.path` out to train one.")
    content = path.read_bytes()
    try:
        tokenizer = Tokenizer.from_str(content.decode("utf-8"))
    except Exception as error:  # the library raises plain Exception for every malformed file
        raise DataError(f"{path} is not a tokenizer: {error}.", "Name a tokenizer.json as the tokenizers library saves it.") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True  # text is text, whatever it looks like
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    end_token = next((token for token in KNOWN_END_TOKENS if token in vocabulary), None)
    if end_token is None:
        raise ConfigError(f"Tokenizer {path} has no end-of-document token.", f"Add one of {', '.join(KNOWN_END_TOKENS)} to it.")
    vocab_size = max(vocabulary.values()) + 1
    if vocab_size > LARGEST_VOCAB:
        raise ConfigError(
            f"Tokenizer {path} has {vocab_size:,} entries, more than {LARGEST_VOCAB:,}.",
            "Leave `tokenizer.path` out to train a small one; proxies rank mixtures best with 4k to 8k entries.",
        )
    checked = CorpusTokenizer(path, hashlib.sha256(content).hexdigest(), vocab_size, end_token, vocabulary[end_token], tokenizer)
    returned = checked.decode(checked.encode_batch([PROBE])[0])
    if returned != PROBE:
        raise ConfigError(
            f"Tokenizer {path} does not give text back: {PROBE!r} became {returned!r}.",
            "Use a byte-level tokenizer without lossy normalization, or leave `tokenizer.path` out to train one.",
        )
    return checked


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file that is either whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)
