"""How values show themselves in a notebook: as short tables, in which all that comes from data is escaped."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

__all__ = ["html_table", "kept_of", "printable"]


def printable(text: str) -> str:
    """The text with control characters, which a terminal would obey, as escapes; line ends and tabs are left."""
    return "".join(ascii(c)[1:-1] if (c < " " and c not in "\n\t") or "\x7f" <= c < "\xa0" else c for c in text)


def kept_of(kept: int, samples: int) -> str:
    """``431 of 1,437 (30.0%)``."""
    return f"{kept:,} of {samples:,} ({kept / samples:.1%})" if samples else f"{kept:,} of 0"


def html_table(
    title: str, facts: Mapping[str, Any], columns: Sequence[str] = (), rows: Iterable[Sequence[Any]] = ()
) -> str:
    """Facts by name, and below them perhaps rows.

    Args:
        title: above them.
        facts: those that are ``None`` are left out.
        columns: names of what a row has.
        rows: a value for each column, ``None`` where there is none.
    """
    told = [(name, value) for name, value in facts.items() if value is not None]
    html = f"<div><b>{escape(title)}</b><table>{''.join(_row(fact) for fact in told)}</table>"
    if columns:
        html += f"<table>{_row(columns, cell='th')}{''.join(map(_row, rows))}</table>"
    return f"{html}</div>"


def _row(values: Sequence[Any], cell: str = "td") -> str:
    return f"<tr>{''.join(f'<{cell}>{escape(_text(value))}</{cell}>' for value in values)}</tr>"


def _text(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else str(value)
