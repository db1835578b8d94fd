"""Elements of HTML and SVG as values: what is text is escaped, whoever wrote it."""

from __future__ import annotations

from html import escape
from typing import Final


class Markup(str):
    """Octets of a page that are markup already; anything else is text."""

    __slots__ = ()


_VOID: Final = frozenset({"meta", "br", "link"})
Child = str | Markup | int | float | None


def text(value: Child) -> str:
    """Return *value* as it may stand between tags or in an attribute."""
    if value is None:
        return ""
    if isinstance(value, Markup):
        return value
    if isinstance(value, float):
        value = f"{value:.2f}".rstrip("0").rstrip(".")
    return escape(str(value), quote=True)


def tag(name: str, /, *children: Child, **attributes: Child) -> Markup:
    """Return an element; ``class_`` is the attribute class, ``_`` within a name a dash.

    An attribute that is None is left out.
    """
    words = [name]
    for key, value in attributes.items():
        if value is not None:
            words.append(f'{key.rstrip("_").replace("_", "-")}="{text(value)}"')
    opening = f"<{' '.join(words)}>"
    if name in _VOID:
        return Markup(opening)
    return Markup(f"{opening}{''.join(map(text, children))}</{name}>")


def joined(*children: Child) -> Markup:
    """Return *children* one behind the other."""
    return Markup("".join(map(text, children)))


def picture(width: float, height: float, title: str, *children: Child, class_: str = "") -> Markup:
    """Return an SVG of this size, with *title* for those who do not see it."""
    return tag(
        "svg", tag("title", title), *children,
        class_=f"picture {class_}".strip(), viewBox=f"0 0 {width:g} {height:g}",
        role="img", xmlns="http://www.w3.org/2000/svg",
    )  # fmt: skip


def label(x: float, y: float, words: Child, class_: str = "", **attributes: Child) -> Markup:
    """Return text of SVG, its baseline beginning at (*x*, *y*)."""
    return tag("text", words, x=x, y=y, class_=class_ or None, **attributes)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    """Return a straight line of SVG."""
    return tag("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def rectangle(
    x: float, y: float, width: float, height: float, class_: str, radius: float = 3
) -> Markup:
    """Return a rectangle of SVG."""
    return tag("rect", x=x, y=y, width=width, height=height, rx=radius, class_=class_)


def shortened(words: str, most: int) -> str:
    """Return at most *most* characters of *words*."""
    return words if len(words) <= most else words[: most - 1].rstrip() + "…"
