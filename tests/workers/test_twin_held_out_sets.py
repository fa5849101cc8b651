"""Held-out sets with the same text are refused before anything trains: their measurements could not be told apart."""

from __future__ import annotations

from pathlib import Path

import pytest

from mixopt.corpus.manifest import DomainFiles, Manifest, TargetFile, TokenFile
from mixopt.errors import ConfigError
from workers.evaluations import refuse_twin_evaluations


def file(content: str) -> TokenFile:
    return TokenFile(f"{content}.tokens", content, 1000, 3000, 10)


def manifest(valid: tuple[str, str], **targets: TargetFile) -> Manifest:
    domains = {name: DomainFiles(file(f"train-{name}"), file(content)) for name, content in zip("ab", valid, strict=True)}
    return Manifest(Path("/nowhere"), "tokenizer.json", "hash", 512, domains, targets)


def test_two_domains_that_share_a_held_out_set_are_refused() -> None:
    with pytest.raises(ConfigError, match="held-out set of domain 'a' and the held-out set of domain 'b' hold the same text"):
        refuse_twin_evaluations(manifest(("x", "x")))


def test_a_target_that_is_a_held_out_set_is_refused() -> None:
    with pytest.raises(ConfigError, match="domain 'b' and target 'news' hold the same text"):
        refuse_twin_evaluations(manifest(("x", "y"), news=TargetFile("text", file("y"))))


def test_the_same_text_scored_in_another_way_is_another_set() -> None:
    refuse_twin_evaluations(manifest(("x", "y"), pairs=TargetFile("completion", file("y"))))
