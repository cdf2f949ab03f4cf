"""HTML by construction: text is escaped unless a function of this module made it."""

from __future__ import annotations

import base64
import html
from collections.abc import Collection, Iterable, Sequence

_VOID = frozenset({"img", "meta", "source", "hr", "br"})


class Html(str):
    """Markup that is already safe. Only the functions of the report make it; anything else is text and is escaped."""

    __slots__ = ()


def escape(text: object) -> Html:
    """Escape text for an element or an attribute; markup passes as it is."""
    return text if isinstance(text, Html) else Html(html.escape(str(text), quote=True))


def tag(name: str, *children: object, **attributes: object) -> Html:
    """Make one element.

    Parameters
    ----------
    name
        Of the element.
    children
        Text (escaped), markup, or None (left out).
    attributes
        Values are escaped, None leaves an attribute out; a trailing underscore goes (``class_``) and the others become
        hyphens (``aria_label``).
    """
    words = [name]
    for key, value in attributes.items():
        if value is not None:
            words.append(f'{key.rstrip("_").replace("_", "-")}="{html.escape(str(value), quote=True)}"')
    opening = f"<{' '.join(words)}>"
    if name in _VOID:
        return Html(opening)
    return Html(opening + "".join(escape(child) for child in children if child is not None) + f"</{name}>")


def join(parts: Iterable[object]) -> Html:
    """Put pieces one after the other; text is escaped, None is left out."""
    return Html("".join(escape(part) for part in parts if part is not None))


def paragraph(*children: object, class_: str | None = None) -> Html:
    """Make a paragraph."""
    return tag("p", *children, class_=class_)


def missing(reason: str) -> Html:
    """Say why a part of the page is not there."""
    return paragraph(reason, class_="missing")


def figure(body: object, caption: object, *, class_: str | None = None) -> Html:
    """Make a figure with its caption."""
    return tag("figure", body, tag("figcaption", caption), class_=class_)


def table(
    head: Sequence[object],
    rows: Iterable[Sequence[object]],
    *,
    caption: str,
    text: Collection[int] = (0,),
    class_: str | None = None,
) -> Html:
    """Make a table that scrolls sideways on a narrow screen.

    Parameters
    ----------
    head
        Column names.
    rows
        Cells; the first of each row is its header.
    caption
        Read to those who cannot see, and shown above the table.
    text
        Columns that hold text (left); the others hold numbers (right).
    class_
        Of the table.
    """

    def align(column: int) -> str | None:
        return None if column in text else "number"

    header = tag("tr", *(tag("th", cell, scope="col", class_=align(i)) for i, cell in enumerate(head)))
    body = join(
        tag(
            "tr",
            *(
                tag("th", cell, scope="row") if i == 0 else tag("td", cell, class_=align(i))
                for i, cell in enumerate(row)
            ),
        )
        for row in rows
    )
    whole = tag("table", tag("caption", caption), tag("thead", header), tag("tbody", body), class_=class_)
    # A region that scrolls must be reachable by keyboard.
    return tag("div", whole, class_="scroll", tabindex="0", role="region", aria_label=caption)


def facts(pairs: Iterable[tuple[object, object]]) -> Html:
    """Make a list of names and values."""
    return tag("dl", *(tag("div", tag("dt", name), tag("dd", value)) for name, value in pairs), class_="facts")


def data_uri(data: bytes, mime: str) -> str:
    """Write bytes so that a page can hold them."""
    return f"data:{mime};base64,{base64.b64encode(data).decode('ascii')}"


def image(data: bytes, alt: str, *, width: int, height: int, class_: str | None = None) -> Html:
    """Make an image element of WebP bytes; its size is stated, so that the page does not jump while it loads."""
    return tag("img", src=data_uri(data, "image/webp"), alt=alt, width=width, height=height, class_=class_)
