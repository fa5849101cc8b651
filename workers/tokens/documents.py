"""Documents of prepared domains, compared by what they hold.

By their ids, which are in token files of one tokenizer, so nothing is read again but what was prepared. The main trade-off: of a domain that was read in
part (`max_documents`, `max_bytes`) only that part is seen, on either side.
"""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from proxy_models.token_store import DamagedTokenFile, TokenStore

DIGEST_BYTES = 8
"""Among 10^8 documents two differing ones have the same digest with a chance of 3 in 10^4."""
Digests = NDArray[np.uint64]


def document_digests(file: Path) -> Digests:
    """A digest of every distinct document of a token file, ascending.

    Raises:
        DamagedTokenFile: it is no token file.
    """
    store = TokenStore.open(file)
    begin, found = 0, bytearray()
    for end in store.document_ends.tolist():
        found += hashlib.blake2b(store.tokens[begin:end].tobytes(), digest_size=DIGEST_BYTES).digest()
        begin = end
    return np.unique(np.frombuffer(bytes(found), dtype=np.uint64))


def prepared_file(folder: Path, name: str, content_hash: str, tokenizer_hash: str) -> Path | None:
    """The training tokens of a domain of that name and content under `folder`; None where they are not, or no longer, there."""
    for file in sorted(folder.glob(f"{glob.escape(name)}.train.*.tokens")):
        try:
            info = TokenStore.open(file).info
        except (DamagedTokenFile, OSError):
            continue
        if (info.content_hash, info.tokenizer_hash) == (content_hash, tokenizer_hash):
            return file
    return None


def shared_documents(new: Mapping[str, Path], old: Mapping[str, Path]) -> dict[str, dict[str, float]]:
    """New domain -> old domain -> the part of the new one's distinct documents that are in the old one, of those that share any."""
    known = {name: document_digests(file) for name, file in old.items()}
    shares: dict[str, dict[str, float]] = {}
    for name, file in new.items():
        ours = document_digests(file)
        parts = {other: float(np.isin(ours, theirs, assume_unique=True).mean()) for other, theirs in known.items()}
        shares[name] = {other: part for other, part in parts.items() if part > 0}
    return shares
