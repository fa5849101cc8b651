"""A matplotlib figure as SVG inside a page: themed by the page's style, with marks that can be pointed at and reached by keyboard.

The drawing is the one of the PNG. What changes: colours become variables of the page, so that dark and light are one drawing; text is text,
in the page's font; the head (title, subtitle) is cut off, because the page writes it where it can wrap; ids are made unique in the page.
The main trade-off: positions of labels were computed for another font; DejaVu Sans is wider than what browsers use, so nothing collides.
"""

from __future__ import annotations

import io
import re
import threading
from functools import partial
from typing import Any
from xml.etree import ElementTree

from mixopt.tracking.canvas import BLUE, FAINT, GREEN, HEAD_INCHES, INK, LINE_BREAK, MARK, MUTED, ORANGE, PAPER, PURPLE, VERMILION

# Colour of the palette -> variable of the page's style.
VARIABLES = {
    colour.lower(): name
    for colour, name in (
        (BLUE, "blue"),
        (ORANGE, "orange"),
        (GREEN, "green"),
        (VERMILION, "vermilion"),
        (PURPLE, "purple"),
        (INK, "ink"),
        (MUTED, "muted"),
        (FAINT, "faint"),
        (PAPER, "paper"),
    )
}
POINTS_PER_INCH = 72
_NAMESPACE = re.compile(r"\{[^}]*\}")
_COLOUR = re.compile(r"#[0-9a-fA-F]{6}")
_FONT_FAMILY = re.compile(r"font-family:[^;]*;?\s*")
_REFERENCE = re.compile(r"url\(#([^)]*)\)")
# Spaces and more digits than a screen has pixels: a tenth of a point is the fourteenth part of a millimetre.
_LONG_NUMBER = re.compile(r"(\d+\.\d{2})\d+")
# rcParams are the process's; two threads that borrow them at once would give each other's back.
_BORROWING = threading.Lock()


def inline_svg(figure: Any, prefix: str, alt: str) -> str:
    """The figure as an `<svg>` element.

    Args:
        prefix: begins every id in it; unique in the page.
        alt: what the figure shows, for those who do not see it.
    """
    root = ElementTree.fromstring(_drawn(figure))
    for element in root.iter():
        element.tag = _NAMESPACE.sub("", element.tag)
        element.attrib = {_NAMESPACE.sub("", name): value for name, value in element.attrib.items()}
    _remove(root)
    marks = _fasten_marks(root)
    _rename(root, prefix)
    _theme(root)
    width, height = (float(size) for size in root.attrib["viewBox"].split()[2:])
    head = HEAD_INCHES * POINTS_PER_INCH - 4
    # A picture for those who hear the page; where marks can be reached in it, a group of them. Both bear the same words.
    root.attrib = {
        "viewBox": f"0 {head:.1f} {width:g} {height - head:.1f}",
        "role": "group" if marks else "img",
        "aria-label": alt,
        "style": f"max-width: {width * 1.43:.0f}px",
    }
    return ElementTree.tostring(root, encoding="unicode")


def _drawn(figure: Any) -> str:
    import matplotlib

    text = io.StringIO()
    with _BORROWING, matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "mixopt"}):
        figure.savefig(text, format="svg", metadata={"Date": None}, transparent=True)
    return text.getvalue()


def _remove(root: ElementTree.Element) -> None:
    """Everything that the page says itself: metadata, matplotlib's style, title and subtitle."""
    for parent in list(root.iter()):
        for child in list(parent):
            if (
                child.tag == "metadata"
                or child.attrib.get("id") in ("title", "subtitle")
                or (child.tag == "defs" and child.find("style") is not None)
            ):
                parent.remove(child)
        if parent.text is not None and not parent.text.strip():
            parent.text = None
        if parent.tail is not None and not parent.tail.strip():
            parent.tail = None


def _fasten_marks(root: ElementTree.Element) -> int:
    """Makes groups that were marked reachable: the first by Tab, from there the others by arrow keys (the page's script)."""
    marked = []
    for element in root.iter("g"):
        if element.attrib.get("id", "").startswith(MARK):
            order, _, text = element.attrib.pop("id")[len(MARK) :].partition(":")
            marked.append((int(order), element, text.split(LINE_BREAK)))
    for number, (_, element, lines) in enumerate(sorted(marked, key=lambda found: found[0])):
        element.attrib |= {
            "class": "mark",
            "role": "img",
            "tabindex": "-1" if number else "0",
            "aria-label": "; ".join(lines),
            "data-tip": LINE_BREAK.join(lines),
            "data-at": str(number),
        }
    return len(marked)


def _rename(root: ElementTree.Element, prefix: str) -> None:
    """Keeps the ids that something refers to, with the prefix."""
    used = set()
    for element in root.iter():
        for name, value in element.attrib.items():
            if name == "href" and value.startswith("#"):
                used.add(value[1:])
                element.attrib[name] = f"#{prefix}-{value[1:]}"
            elif name in ("clip-path", "style") and (found := _REFERENCE.search(value)):
                used.add(found[1])
                element.attrib[name] = _REFERENCE.sub(rf"url(#{prefix}-\1)", value)
    for element in root.iter():
        known = element.attrib.pop("id", None)
        if known in used:
            element.attrib["id"] = f"{prefix}-{known}"


def _theme(root: ElementTree.Element) -> None:
    """Colours to variables, fonts to the page's, coordinates to what can be seen."""
    for element in root.iter():
        for name in ("d", "x", "y", "transform", "points"):
            if name in element.attrib:
                element.attrib[name] = _LONG_NUMBER.sub(r"\1", " ".join(element.attrib[name].split()))
        style = element.attrib.get("style")
        if style is None:
            continue
        # Words need more contrast than dots do, so they have shades of their own.
        kind = "-text" if element.tag == "text" else ""
        themed = _FONT_FAMILY.sub("", _COLOUR.sub(partial(_variable, kind), style))
        element.attrib["style"] = _LONG_NUMBER.sub(r"\1", themed).replace(": ", ":").replace("; ", ";")


def _variable(kind: str, colour: re.Match[str]) -> str:
    name = VARIABLES.get(colour[0].lower())
    return colour[0] if name is None else f"var(--{name}{kind})"
