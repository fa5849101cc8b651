"""Where each domain of the embedded corpus comes from, and which text is worth taking.

Every reader yields whole texts in a fixed order; `pieces` cuts them to document size and leaves out what no one wrote line by line: minified
bundles, tables of numbers. Modules that are reserved for the targets are never read here.
"""

from __future__ import annotations

import ast
import email
import inspect
import json
import re
import string
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from mixopt.corpus.demo.installation import Installation, InstalledFile, name_hash

DOCUMENT_BYTES = 8_000
# No single file makes up much of a domain.
FILE_BYTES = 400_000
SMALLEST_PIECE = 200
# Hand-written source and prose stay far below; minified code, embedded images and unwrapped tables do not.
LONGEST_LINE = 2000
MEAN_LINE = 200
# Least share of letters and white space: code has about 0.8, JSON 0.65, tables of numbers less than half.
LEAST_LETTER_SHARE = 0.55
# One module in so many is kept for the targets.
RESERVED_ONE_IN = 6

# How generated files say so, and within how many characters.
GENERATED = re.compile(r"@generated|(?:auto(?:matically)?|was|is) *-?generated|generated (?:by|from|file)|do not edit", re.IGNORECASE)
GENERATED_WITHIN = 2000

_NOT_LETTERS = (string.digits + string.punctuation).encode("ascii")


Definition = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Text:
    """A text with the relative name of where it stands and what that came with."""

    text: str
    source: str
    origin: str

    @property
    def file(self) -> str:
        """What it was cut from; see `pieces`."""
        return self.source.partition("#")[0]


@dataclass(frozen=True)
class DomainSource:
    """A domain of the embedded corpus: how it is read, and in words what it is."""

    name: str
    description: str
    read: Callable[[Installation], Iterator[Text]]


def is_reserved(name: str) -> bool:
    """Whether a module belongs to the targets and not to training text."""
    return name_hash(name) % RESERVED_ONE_IN == 0


def pieces(text: Text) -> Iterator[Text]:
    """The text in documents of at most `DOCUMENT_BYTES`, cut between lines; not more than `FILE_BYTES` of it, and no piece
    that nobody wrote by hand."""
    for number, piece in enumerate(_cut(text.text), start=1):
        if number * DOCUMENT_BYTES > FILE_BYTES:
            return
        if _is_written_by_hand(piece):
            yield Text(piece, text.source if number == 1 else f"{text.source}#{number}", text.origin)


def docstrings(source: str) -> list[str]:
    """Docstrings of a module, its classes and functions, in order and without indentation; none if it does not parse."""
    tree = parse_quietly(source)
    texts = [ast.get_docstring(node, clean=False) for node in definitions(tree)] if tree else []
    return [inspect.cleandoc(text) for text in texts if text]


def definitions(node: ast.Module | ast.stmt) -> Iterator[Definition]:
    """The module, its classes and functions, in order. Only statements are followed: expressions are most of a tree and define nothing."""
    if isinstance(node, Definition):
        yield node
    for field in ("body", "orelse", "finalbody"):
        for child in getattr(node, field, ()):
            if isinstance(child, ast.stmt):
                yield from definitions(child)


def parse_quietly(source: str) -> ast.Module | None:
    """The syntax tree; None if this Python does not parse it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        try:
            return ast.parse(source)
        except (SyntaxError, ValueError, RecursionError):
            return None


def package_modules(installation: Installation) -> list[InstalledFile]:
    """Python modules of the dependencies that people wrote."""
    return [file for file in installation.with_suffix(".py") if not file.name.endswith(("_pb2.py", "_pb2_grpc.py"))]


def _read(files: list[InstalledFile]) -> Iterator[Text]:
    """The files that are text and do not say that a program wrote them."""
    for file in files:
        text = file.read_text()
        if text is not None and not GENERATED.search(text, 0, GENERATED_WITHIN):
            yield Text(text, file.name, file.origin)


def _python(installation: Installation) -> Iterator[Text]:
    return _read([file for file in installation.standard_library if not is_reserved(file.name)])


def _docstrings(installation: Installation) -> Iterator[Text]:
    """Per module, its docstrings without their interactive examples."""
    for module in _read([file for file in package_modules(installation) if not is_reserved(file.name)]):
        paragraphs = [paragraph for text in docstrings(module.text) for paragraph in text.split("\n\n")]
        prose = "\n\n".join(paragraph for paragraph in paragraphs if ">>>" not in paragraph)
        yield Text(prose, module.source, module.origin)


def _markdown(installation: Installation) -> Iterator[Text]:
    """Descriptions of packages as their indexes show them, and Markdown and reStructuredText files inside packages."""
    for text in _read(installation.with_suffix(".dist-info/METADATA", ".md", ".rst")):
        if text.source.endswith("/METADATA"):
            message = email.message_from_string(text.text)
            yield Text(str(message.get_payload() or message.get("Description", "")), text.source, text.origin)
        elif "licen" not in text.source.lower():
            yield text


def _cpp(installation: Installation) -> Iterator[Text]:
    """Headers of torch, without those that its build generates one per operator."""
    headers = [file for file in installation.with_suffix(".h", ".hpp", ".cuh") if file.name.startswith("torch/include/")]
    return _read([file for file in headers if "/ATen/ops/" not in file.name and "generated" not in file.name.lower()])


def _cython(installation: Installation) -> Iterator[Text]:
    return _read(installation.with_suffix(".pyx", ".pxi", ".pxd"))


def _stubs(installation: Installation) -> Iterator[Text]:
    return _read([file for file in installation.with_suffix(".pyi") if not file.name.endswith("_pb2.pyi")])


def _javascript(installation: Installation) -> Iterator[Text]:
    """What web bundles were built from, as their source maps keep it, and the scripts that are shipped as written."""
    texts = list(_read(installation.with_suffix(".js", ".mjs")))
    for source_map in _read(installation.with_suffix(".js.map")):
        try:
            body = json.loads(source_map.text)
        except json.JSONDecodeError:
            continue
        for name, content in zip(body.get("sources", []), body.get("sourcesContent") or [], strict=False):
            if content and ".min." not in name and name.endswith((".js", ".jsx", ".mjs", ".ts", ".tsx")):
                texts.append(Text(content.replace("\r\n", "\n"), f"{source_map.source}:{name.lstrip('./')}", source_map.origin))
    return iter(sorted(texts, key=lambda text: (name_hash(text.source), text.source)))


def _config(installation: Installation) -> Iterator[Text]:
    """YAML, JSON, TOML, INI and CMake; without bills of materials, price lists and tables of names."""
    files = installation.with_suffix(".yaml", ".yml", ".json", ".toml", ".ini", ".cfg", ".cmake")
    return _read([file for file in files if not any(word in file.name for word in ("/sboms/", "model_catalog", "manifest", "languages"))])


DOMAIN_SOURCES = (
    DomainSource("python", "sources of the standard library", _python),
    DomainSource("docstrings", "English documentation of Python packages", _docstrings),
    DomainSource("markdown", "package descriptions and README files", _markdown),
    DomainSource("cpp", "C++ headers", _cpp),
    DomainSource("cython", "Cython sources", _cython),
    DomainSource("stubs", "type stubs", _stubs),
    DomainSource("javascript", "JavaScript and TypeScript of bundled web pages", _javascript),
    DomainSource("config", "YAML, JSON, TOML and CMake", _config),
)


def _cut(text: str) -> Iterator[str]:
    """The text in runs of whole lines of at most `DOCUMENT_BYTES`; a longer line stands alone."""
    lines: list[str] = []
    size = 0
    for line in text.splitlines(keepends=True):
        line_bytes = len(line.encode("utf-8"))
        if lines and size + line_bytes > DOCUMENT_BYTES:
            yield "".join(lines)
            lines, size = [], 0
        lines.append(line)
        size += line_bytes
    if lines:
        yield "".join(lines)


def _is_written_by_hand(text: str) -> bool:
    lines = text.splitlines()
    encoded = text.encode("utf-8")
    return (
        len(text) >= SMALLEST_PIECE
        and max(map(len, lines)) <= LONGEST_LINE
        and len(text) <= MEAN_LINE * len(lines)
        and len(encoded.translate(None, _NOT_LETTERS)) >= LEAST_LETTER_SHARE * len(encoded)
    )
