"""Fine-tuning data of the embedded corpus: prompts with completions, cut from the same modules as its training text.

Three skills: to write a function that a docstring asks for, to go on with an explanation, and to say in words what a function does. The first two are
what the targets ask for; modules that are reserved for the targets are never read here, and a pair that shares 13 words in a row with a target's
example is left out. The trade-off: pairs are as short as the targets' examples, so that small windows hold them whole.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterable, Iterator

from mixopt.corpus.demo.installation import Installation
from mixopt.corpus.demo.sources import definitions, is_reserved, package_modules, parse_quietly
from mixopt.corpus.demo.targets import (
    LARGEST_COMPLETION,
    LARGEST_PROMPT,
    OVERLAP_WORDS,
    Example,
    TargetSource,
    explanation_examples,
    function_examples,
    word_spans,
)

Read = Callable[[str], Iterator[tuple[str, str]]]

SMALLEST_DESCRIPTION = 30
"""Characters of a description: shorter ones say little more than the name."""


def description_examples(source: str) -> Iterator[tuple[str, str]]:
    """(a function without its docstring, the docstring's first paragraph) of the functions of a module that are short enough."""
    tree = parse_quietly(source)
    lines = source.splitlines(keepends=True)
    for node in definitions(tree) if tree else ():
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or len(node.body) < 2:
            continue
        docstring = ast.get_docstring(node, clean=False)
        first, end = node.body[0], node.end_lineno or 0
        if docstring is None or node.body[1].lineno <= (first.end_lineno or 0) or first.lineno == node.lineno:
            continue  # without one, or with one that shares a line with code
        function = textwrap.dedent("".join([*lines[node.lineno - 1 : first.lineno - 1], *lines[first.end_lineno or 0 : end]]))
        description = " ".join(inspect.cleandoc(docstring).split("\n\n")[0].split()) + "\n"
        prompt = f"{function.rstrip()}\n\nWhat does it do?\n"
        is_whole = function.startswith(("def ", "async def "))  # else a string inside stands left of it, so that dedenting failed
        if is_whole and len(prompt) <= LARGEST_PROMPT and SMALLEST_DESCRIPTION <= len(description) <= LARGEST_COMPLETION:
            yield prompt, description


def _implement(installation: Installation) -> Iterator[Example]:
    return _of_modules(installation, function_examples)


def _explain(installation: Installation) -> Iterator[Example]:
    return _of_modules(installation, explanation_examples)


def _describe(installation: Installation) -> Iterator[Example]:
    return _of_modules(installation, description_examples)


PAIR_SOURCES = (
    TargetSource("implement", "functions of Python packages: signature and docstring, then the body", _implement),
    TargetSource("explain", "documentation of Python packages: first sentences, then the next", _explain),
    TargetSource("describe", "functions of Python packages, then what they do", _describe),
)


def _of_modules(installation: Installation, read: Read) -> Iterator[Example]:
    for file in package_modules(installation):
        if not is_reserved(file.name) and (text := file.read_text()) is not None:
            for prompt, completion in read(text):
                yield Example(prompt, completion, file.name, file.origin)


def collect_pairs(source: TargetSource, installation: Installation, size: int, held_out: Iterable[Example]) -> list[Example]:
    """Distinct pairs of a source, about `size` bytes of them, that share no 13 words in a row with an example that is `held_out`."""
    spans: set[str] = set()
    for example in held_out:
        spans |= word_spans(f"{example.prompt}{example.completion}", OVERLAP_WORDS)
    kept: dict[str, Example] = {}
    total = 0
    for pair in source.read(installation):
        text = f"{pair.prompt}{pair.completion}"
        if pair.completion in kept or not spans.isdisjoint(word_spans(text, OVERLAP_WORDS)):
            continue
        kept[pair.completion] = pair
        total += len(text.encode("utf-8"))
        if total >= size:
            break
    return list(kept.values())
