"""Token files for `throughput.py`: text that nobody wrote, but that can be learned.

Speed hardly depends on what the tokens are, only routing does. Frequencies follow Zipf's law, and half of the tokens follow from the one before
by a rule of the domain, so that losses fall and experts have something to tell apart. Trade-off: real text would be routed a little less evenly.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from proxy_models.token_store import TokenWriter

DOMAINS = 8
TOKENS_PER_DOMAIN = 1 << 20
DOCUMENT_TOKENS = 2048
LONGEST_CHAIN = 15
"""Tokens that follow from one another before one is drawn anew."""


def write_corpus(folder: Path, vocab_size: int, domains: int = DOMAINS, tokens: int = TOKENS_PER_DOMAIN) -> list[Path]:
    """One token file per domain."""
    paths = []
    for domain in range(domains):
        path = folder / f"domain{domain}"
        stream = domain_tokens(np.random.default_rng([vocab_size, domain]), vocab_size, tokens)
        with TokenWriter(path, vocab_size, "benchmark") as writer:
            for start in range(0, tokens, DOCUMENT_TOKENS):
                document = stream[start : start + DOCUMENT_TOKENS]
                writer.add(document, 4 * len(document))
            writer.close(f"domain {domain}")
        paths.append(path)
    return paths


def domain_tokens(rng: np.random.Generator, vocab_size: int, tokens: int) -> NDArray[np.int64]:
    """A stream of ids, shape (tokens,): each is drawn from a Zipf law, or is the successor of the one before."""
    successor = rng.permutation(vocab_size)
    # after[d][v]: what follows v after d steps.
    after = np.empty((LONGEST_CHAIN + 1, vocab_size), dtype=np.int64)
    after[0] = np.arange(vocab_size)
    for steps in range(LONGEST_CHAIN):
        after[steps + 1] = successor[after[steps]]
    shares = 1.0 / np.arange(1, vocab_size + 1)
    drawn = rng.choice(vocab_size, size=tokens, p=shares / shares.sum())
    index = np.arange(tokens)
    anew = rng.random(tokens) < 0.5
    anew[:: LONGEST_CHAIN + 1] = True
    last = np.maximum.accumulate(np.where(anew, index, 0))
    return after[index - last, drawn[last]]
