"""The held-out targets of the embedded corpus: functions to complete, and explanations to go on with.

Both come from modules that no training text was taken from, and an example that shares 13 words in a row with any training text is left out:
the overlap rule of GPT-3 (arXiv 2005.14165, appendix C).
"""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from mixopt.corpus.demo.installation import Installation, name_hash
from mixopt.corpus.demo.sources import definitions, docstrings, is_reserved, package_modules, parse_quietly

OVERLAP_WORDS = 13
# So that prompt and completion together fit a window of 256 tokens (about three characters per token).
LARGEST_PROMPT = 400
LARGEST_COMPLETION = 400
SMALLEST_PROMPT = 40
SMALLEST_COMPLETION = 60


# Lines of lists and directives, of parameters ("x : int"), and headings of sections ("Args:").
_NOT_PROSE = re.compile(r"^\s*(?:[-:]|\.\.)|^\s*\S+ : |^\s*\w+:\s*$|^\s*[\w ()]+: [A-Z]", re.MULTILINE)


@dataclass(frozen=True)
class Example:
    """A prompt, the completion that is scored after it, and the module they stand in."""

    prompt: str
    completion: str
    source: str
    origin: str


@dataclass(frozen=True)
class TargetSource:
    """A target of the embedded corpus, or a domain of pairs: how its examples are read, and in words what they are."""

    name: str
    description: str
    read: Callable[[Installation], Iterator[Example]]


def function_examples(source: str) -> Iterator[tuple[str, str]]:
    """(signature and docstring, body) of the functions of a module that are short enough."""
    tree = parse_quietly(source)
    lines = source.splitlines(keepends=True)
    for node in definitions(tree) if tree else ():
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or ast.get_docstring(node) is None or len(node.body) < 2:
            continue
        docstring_end, end = node.body[0].end_lineno or 0, node.end_lineno or 0
        if node.body[1].lineno <= docstring_end:
            continue  # the body starts on the last line of the docstring
        function = textwrap.dedent("".join(lines[node.lineno - 1 : end])).splitlines(keepends=True)
        if not function[0].startswith(("def ", "async def ")):
            continue  # a string inside stands left of the function, so that dedenting failed
        cut = docstring_end - node.lineno + 1
        prompt, completion = "".join(function[:cut]), "".join(function[cut:])
        if _has_right_size(prompt, completion):
            yield prompt, completion


def explanation_examples(source: str) -> Iterator[tuple[str, str]]:
    """(first sentences, the sentences after them) of the docstrings of a module."""
    for text in docstrings(source):
        sentences = re.split(r"(?<=[a-z)`][.!?])(?=\s)", _leading_prose(text))
        if len(sentences) < 3:
            continue
        # The prompt takes about a third of what there is; sentences keep the white space before them, so the two join as they are.
        share = sum(map(len, sentences)) / 3
        prompt, rest = sentences[0], sentences[1:]
        while len(prompt) < share and len(rest) > 1:
            prompt += rest.pop(0)
        completion = ""
        while rest and len(completion) + len(rest[0]) <= LARGEST_COMPLETION:
            completion += rest.pop(0)
        if _has_right_size(prompt, completion):
            yield prompt, completion


def without_overlap(examples: Iterable[Example], training_texts: Iterable[str]) -> list[Example]:
    """The examples that share no 13 words in a row with any training text."""
    candidates = list(examples)
    owners: dict[str, set[int]] = {}
    for index, example in enumerate(candidates):
        for span in word_spans(f"{example.prompt}{example.completion}", OVERLAP_WORDS):
            owners.setdefault(span, set()).add(index)
    overlapping: set[int] = set()
    for text in training_texts:
        for span in owners.keys() & word_spans(text, OVERLAP_WORDS):
            overlapping |= owners[span]
    return [example for index, example in enumerate(candidates) if index not in overlapping]


def word_spans(text: str, length: int) -> set[str]:
    """Every `length` words in a row, in lower case and without punctuation."""
    words = re.findall(r"\w+", text.lower())
    return {" ".join(words[start : start + length]) for start in range(len(words) - length + 1)}


def choose(examples: Sequence[Example], count: int) -> list[Example]:
    """At most `count` examples with distinct completions, an even sample by hash, in a fixed order."""
    distinct = {example.completion: example for example in reversed(examples)}
    return sorted(distinct.values(), key=lambda example: name_hash(example.prompt + example.completion))[:count]


def _functions(installation: Installation) -> Iterator[Example]:
    for file in installation.standard_library:
        if is_reserved(file.name) and (text := file.read_text()) is not None:
            for prompt, completion in function_examples(text):
                yield Example(prompt, completion, file.name, file.origin)


def _explanations(installation: Installation) -> Iterator[Example]:
    for file in package_modules(installation):
        if is_reserved(file.name) and (text := file.read_text()) is not None:
            for prompt, completion in explanation_examples(text):
                yield Example(prompt, completion, file.name, file.origin)


TARGET_SOURCES = (
    TargetSource("functions", "functions of the standard library: signature and docstring, then the body", _functions),
    TargetSource("explanations", "documentation of Python packages: first sentences, then the next", _explanations),
)


def _leading_prose(text: str) -> str:
    """The paragraphs before the first that is not plain sentences (a list, a table, a section, an example)."""
    paragraphs = []
    for paragraph in text.split("\n\n"):
        whole = re.fullmatch(r"[A-Z`][^>|=\\*]+\.", paragraph.strip())
        if whole is None or _NOT_PROSE.search(paragraph):
            break
        paragraphs.append(paragraph)
    return "\n\n".join(paragraphs)


def _has_right_size(prompt: str, completion: str) -> bool:
    return SMALLEST_PROMPT <= len(prompt) <= LARGEST_PROMPT and SMALLEST_COMPLETION <= len(completion) <= LARGEST_COMPLETION
