"""The corpus manifest: what `mixopt prepare` made, by name and content hash.

One JSON file beside the token files. Paths in it are relative to it, so the folder can be moved. Everything that needs to know about the
corpus without reading tokens (domains, planning, identity) reads this file only.
"""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path

from mixopt.errors import DataError

MANIFEST_NAME = "manifest.json"
MANIFEST_VERSION = 1


@dataclass(frozen=True)
class TokenFile:
    """One prepared token file.

    Attributes:
        path: relative to the manifest.
        content_hash: hash of the documents' text, in order; independent of the tokenizer.
        tokens, bytes, documents: totals; tokens include one end-of-document token per document. Of held-out pairs `bytes` counts the completions only,
            since only they are scored; of pairs to train on, prompts too, since they are seen.
    """

    path: str
    content_hash: str
    tokens: int
    bytes: int
    documents: int


@dataclass(frozen=True)
class DomainFiles:
    """Training and held-out tokens of one domain.

    Attributes:
        kind: "text", or "completion" for prompt/completion pairs.
        packed_tokens: of pairs: tokens of all training windows that they fill, filling included; 0 for text, whose windows follow from its tokens.
    """

    train: TokenFile
    valid: TokenFile
    kind: str = "text"
    packed_tokens: int = 0


@dataclass(frozen=True)
class TargetFile:
    """Tokens of one target; `kind` is "text" or "completion"."""

    kind: str
    file: TokenFile


@dataclass(frozen=True)
class Manifest:
    """What was prepared, and with which tokenizer.

    Attributes:
        root: folder of the manifest; not stored.
        tokenizer_path: relative to the manifest.
        tokenizer_hash: SHA-256 of the tokenizer file.
    """

    root: Path
    tokenizer_path: str
    tokenizer_hash: str
    vocab_size: int
    domains: dict[str, DomainFiles]
    targets: dict[str, TargetFile]

    def absolute(self, file: TokenFile) -> Path:
        return self.root / file.path

    def save(self) -> Path:
        """Writes `manifest.json` atomically; returns its path."""
        body = {"version": MANIFEST_VERSION, **dataclasses.asdict(self)}
        del body["root"]
        self.root.mkdir(parents=True, exist_ok=True)
        path = self.root / MANIFEST_NAME
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(json.dumps(body, indent=1, sort_keys=True), encoding="utf-8")
        os.replace(temporary, path)
        return path

    @classmethod
    def load(cls, root: Path) -> Manifest:
        """Reads `root/manifest.json`.

        Raises:
            DataError: it is missing, not JSON, or of another version.
        """
        path = root / MANIFEST_NAME
        if not path.exists():
            raise DataError(f"No prepared corpus in {root}.", "Run `mixopt prepare FILE` first.")
        try:
            body = json.loads(path.read_text(encoding="utf-8"))
            if body["version"] != MANIFEST_VERSION:
                raise DataError(
                    f"{path} has version {body['version']}, this mixopt reads {MANIFEST_VERSION}.", "Run `mixopt prepare FILE` again."
                )
            domains = {
                name: DomainFiles(
                    TokenFile(**files["train"]), TokenFile(**files["valid"]), files.get("kind", "text"), files.get("packed_tokens", 0)
                )
                for name, files in body["domains"].items()
            }
            targets = {name: TargetFile(target["kind"], TokenFile(**target["file"])) for name, target in body["targets"].items()}
            return cls(root, body["tokenizer_path"], body["tokenizer_hash"], int(body["vocab_size"]), domains, targets)
        except (ValueError, KeyError, TypeError, AttributeError) as error:  # not text, not JSON, or JSON of another shape
            raise DataError(
                f"{path} is damaged ({error}).", "Run `mixopt prepare FILE` again; token files that are intact are kept."
            ) from error
