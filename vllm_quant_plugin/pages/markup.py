"""HTML from values. Every string is escaped unless it is ``Html``, which only this package's helpers make."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from vllm_quant_plugin.sizes import UNITS

NOTHING = "\u2013"


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


def html(value: object) -> Html:
    """``value`` as markup: ``Html`` as it is, anything else escaped, None as nothing."""
    if isinstance(value, Html):
        return value
    return Html("" if value is None else escape(str(value)))


def join(*parts: object) -> Html:
    """The parts one after another."""
    return Html("".join(html(part) for part in parts))


def tag(name: str, content: object = None, **attributes: str | bool | None) -> Html:
    """An element. ``class_`` is ``class``, ``data_label`` is ``data-label``; None and False leave an attribute out."""
    written = "".join(
        f" {key.strip('_').replace('_', '-')}" + ("" if value is True else f'="{escape(value)}"')
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    return Html(f"<{name}{written}>{html(content)}</{name}>")


@dataclass(frozen=True)
class Column:
    """A column: its heading (with the unit), whether it holds numbers, and whether it is a sentence."""

    name: str
    number: bool = False
    prose: bool = False


def without_empty(
    columns: Sequence[Column], rows: Sequence[Sequence[object]]
) -> tuple[list[Column], list[list[object]]]:
    """The columns that hold something in any row, and the rows without the others."""
    kept = [i for i in range(len(columns)) if any(row[i] not in (None, "", NOTHING) for row in rows)]
    return [columns[i] for i in kept], [[row[i] for i in kept] for row in rows]


def table(columns: Sequence[Column], rows: Iterable[Sequence[object]], *, chosen: int | None = None,
          total: bool = False, cards: bool = True, caption: str = "") -> Html:  # fmt: skip
    """A table; one of many columns becomes a card for each row on a narrow screen.

    Args:
        rows: a cell for every column; the first names the row.
        chosen: index of the row to mark.
        cards: whether it has too many columns for a phone.
        total: the last row is the sum of the others.
        caption: what the table holds, for those who do not see the heading above it.
    """
    found = list(rows)

    def kind(column: Column) -> str | None:
        return "number" if column.number else "prose" if column.prose else None

    head = join(*(tag("th", one.name, class_=kind(one), scope="col") for one in columns))
    body = []
    for index, row in enumerate(found):
        cells = [
            tag("td" if i else "th", cell, class_=kind(column), role="cell" if i else "rowheader",
                scope=None if i else "row", data_label=column.name or None)
            for i, (column, cell) in enumerate(zip(columns, row, strict=True))
        ]  # fmt: skip
        mark = "chosen" if index == chosen else "total" if total and index == len(found) - 1 else None
        current = "true" if index == chosen else None
        body.append(tag("tr", join(*cells), class_=mark, role="row", aria_current=current))
    # The roles keep it a table for assistive technology where the style lays it out as cards.
    head = tag("thead", tag("tr", head, role="row"), role="rowgroup")
    filled = tag("tbody", join(*body), role="rowgroup")
    return tag("table", join(head, filled), class_="cards" if cards else None, role="table", aria_label=caption or None)


def facts(rows: Iterable[tuple[str, object]]) -> Html:
    """Names and values, one to a row."""
    cells = (tag("tr", join(tag("th", name, scope="row"), tag("td", value))) for name, value in rows)
    return tag("table", tag("tbody", join(*cells)), class_="facts")


def tiles(rows: Iterable[tuple[str, str, str, str]]) -> Html:
    """The figures to read first: (name, figure, unit, what it holds for)."""
    made = []
    for name, figure, unit, more in rows:
        shown = join(figure, tag("span", f" {unit}", class_="unit") if unit else None)
        under = tag("dd", more, class_="more") if more else None
        made.append(tag("div", join(tag("dt", name), tag("dd", shown, class_="figure"), under), class_="tile"))
    return tag("dl", join(*made), class_="tiles")


def heading(kind: str, title: str, about: str, verdict: object, mood: str = "") -> Html:
    """The head of a page: what it is, of what, and the answer in one line.

    Args:
        mood: ``good``, ``warn``, ``bad`` or nothing, for the colour.
    """
    said = tag("p", verdict, class_=f"verdict {mood}".strip())
    return tag("header", join(tag("p", kind, class_="kind"), tag("h1", title), tag("p", about, class_="about"), said))


def section(title: str, *content: object) -> Html:
    """A titled part of a page."""
    return tag("section", join(tag("h2", title), *content))


def folded(title: str, more: str, *content: object) -> Html:
    """A part that is closed at first; ``more`` says what is inside."""
    summary = tag("summary", join(title, " ", tag("span", more, class_="dim")))
    return tag("section", tag("details", join(summary, *content)))


def command(text: str, name: str = "command") -> Html:
    """A command with a button that copies it; without scripts there is no button."""
    button = tag("button", "Copy", type="button", hidden=True, data_copies=name, data_says=f"{name}-said")
    said = tag("p", None, class_="said", role="status", id=f"{name}-said")
    return tag("div", join(tag("code", text, id=name), button, said), class_="command")


def bullets(lines: Iterable[str], **attributes: str) -> Html:
    """A list; a line that is indented belongs to the one before it."""
    groups: list[list[str]] = []
    for line in lines:
        if line.startswith(" ") and groups:
            groups[-1].append(line.strip())
        else:
            groups.append([line.strip()])
    items = []
    for first, *inner in groups:
        nested = tag("ul", join(*(tag("li", one) for one in inner))) if inner else None
        items.append(tag("li", join(first, nested)))
    return tag("ul", join(*items), **attributes)


@dataclass(frozen=True)
class Sizes:
    """One unit for a column of bytes, so that its figures can be compared by eye."""

    unit: str
    divisor: int
    digits: int

    @classmethod
    def of(cls, values: Iterable[int | None]) -> Sizes:
        """The unit of the largest value, and digits that still show the smallest."""
        known = [abs(value) for value in values if value]
        power = min(int(math.log2(max(known, default=1))) // 10, len(UNITS) - 1)
        divisor = 1 << (10 * power)
        least = min(known, default=divisor) / divisor
        digits = 0 if power == 0 else 2 if least >= 0.1 else min(1 - math.floor(math.log10(least)), 4)
        return cls(UNITS[power], divisor, digits)

    def show(self, value: int | None) -> str:
        """The figure without its unit."""
        return NOTHING if value is None else f"{value / self.divisor:,.{self.digits}f}"


def figure(value: float | None, digits: int = 0) -> str:
    """A number with separators, a dash where it is unknown."""
    return NOTHING if value is None else f"{value:,.{digits}f}"
