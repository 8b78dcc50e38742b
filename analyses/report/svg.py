"""Figures as files, and as SVG that can live inside a page under a strict content policy.

A page whose policy forbids inline styles ignores every `style="..."` attribute, also those inside
an SVG. So each declaration becomes a presentation attribute, and the fixed colours of the house
style also become classes, which the page's one style sheet can redefine for dark paper.
"""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from .plots import INK, MUTED, RULE, SERIES

if TYPE_CHECKING:
    from pathlib import Path

    from .section import Panel

THEME = {INK: "ink", MUTED: "muted", RULE: "rule"} | {c: f"s{i}" for i, c in enumerate(SERIES)}
"""Fixed colour -> the class that stands for it in the page's style sheet."""
_SVG = "{http://www.w3.org/2000/svg}"
_XLINK_HREF = "{http://www.w3.org/1999/xlink}href"
_DROPPED = {"metadata", "style"}


def save_panel(panel: Panel, folder: Path) -> str:
    """Write ``<name>.svg`` and ``<name>.png`` and return the SVG as an element for the page.

    Parameters
    ----------
    panel
        The drawing; every name may be used once per page, since ids are derived from it.
    folder
        An existing folder.

    Returns
    -------
    str
        One ``<svg>`` element: no script, no style, no link, no background, unique ids.
    """
    buffer = io.StringIO()
    with warnings.catch_warnings():
        # Labels may be in any script; a glyph missing here is still text in the SVG.
        warnings.filterwarnings("ignore", message=r"(?s).*Glyph .* missing from")
        panel.figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
        panel.figure.set_layout_engine("none")  # the places are found, and finding them is slow
        panel.figure.savefig(folder / f"{panel.name}.png", format="png")
    panel.figure.clear()  # its labels hold the pixels that they were drawn on: 2 MB
    text = buffer.getvalue()
    (folder / f"{panel.name}.svg").write_text(text, encoding="utf-8")
    return inline(text, name=panel.name, title=panel.title, description=panel.description)


def inline(text: str, *, name: str, title: str, description: str) -> str:
    """Return an SVG document as an element for an HTML page, described for screen readers.

    Parameters
    ----------
    text
        The document, as matplotlib writes it.
    name
        Prefix of every id, so that several figures can share a page.
    title, description
        Accessible name and description.
    """
    root = ET.fromstring(text)
    _prune(root)
    for element in root.iter():
        _adapt(element, prefix=f"{name}-")
    for attribute in ("width", "height", "version"):
        root.attrib.pop(attribute, None)
    root.set("role", "img")
    root.set("aria-labelledby", f"{name}-title {name}-desc")
    for tag, content in (("desc", description), ("title", title)):
        element = ET.Element(tag, {"id": f"{name}-{tag}"})
        element.text = content
        root.insert(0, element)
    return ET.tostring(root, encoding="unicode")


def _prune(root: ET.Element) -> None:
    """Remove what a page must not contain: metadata, style elements, the white paper."""
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.removeprefix(_SVG) in _DROPPED or child.get("id") == "paper":
                parent.remove(child)


def _adapt(element: ET.Element, *, prefix: str) -> None:
    """Rewrite one element: plain tag, presentation attributes, theme classes, own ids."""
    element.tag = element.tag.removeprefix(_SVG)
    declarations = element.attrib.pop("style", "")
    for declaration in filter(None, (d.strip() for d in declarations.split(";"))):
        key, value = (part.strip() for part in declaration.split(":", 1))
        if key != "font-family":  # the page's own font
            element.set(key, value)
    if "id" in element.attrib:
        element.set("id", prefix + element.attrib["id"])
    if _XLINK_HREF in element.attrib:
        target = element.attrib.pop(_XLINK_HREF).replace("\n", "")
        element.set("href", f"#{prefix}{target[1:]}" if target.startswith("#") else target)
    if "clip-path" in element.attrib:
        element.set("clip-path", element.attrib["clip-path"].replace("url(#", f"url(#{prefix}"))
    classes = [
        f"{key[0]}-{THEME[element.attrib[key].lower()]}"
        for key in ("fill", "stroke")
        if element.attrib.get(key, "").lower() in THEME
    ]
    if classes:
        element.set("class", " ".join(classes))
