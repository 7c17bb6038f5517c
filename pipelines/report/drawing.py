"""Figures that take their colours from the page, and the same as PNG files."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from html import escape
from typing import Any
from warnings import catch_warnings, filterwarnings

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..figures import as_png

__all__ = ["COLOURS", "GRID", "INK", "MUTED", "Chart", "as_svg", "blank"]

# As in a light page; on the page they are variables, which a dark one sets to others.
COLOURS = ("#2563eb", "#d97706", "#059669", "#db2777", "#7c3aed", "#0e7490", "#4d7c0f", "#b91c1c")
INK, MUTED, GRID = "#1f2933", "#5f6b7a", "#e4e7ec"
_VARIABLES = {
    **{INK: "var(--ink)", MUTED: "var(--muted)", GRID: "var(--grid)"},
    **{colour: f"var(--c{at})" for at, colour in enumerate(COLOURS)},
}
_LOOK: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text, in the page's font
    "text.parse_math": False,  # a name with two $ is a name
    "font.size": 9.5,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": MUTED,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.axisbelow": True,
    "axes.linewidth": 0.7,
    "xtick.major.width": 0.7,
    "ytick.major.size": 0,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
    "svg.hashsalt": "",
}


@dataclass(frozen=True, kw_only=True)
class Chart:
    """One figure.

    Attributes:
        name: of its file, and of its parts.
        title: above it.
        told: below it: what its lines are.
        draw: makes it, with a legend of the runs or without.
    """

    name: str
    title: str
    told: str = ""
    draw: Callable[[bool], Figure] = field(repr=False)

    def svg(self) -> str:
        """To be put into a page."""
        with _look():
            return as_svg(self.draw(False), prefix=self.name, title=self.title)

    def png(self) -> bytes:
        """A file, with its title and legend."""
        with _look():
            figure = self.draw(True)
            figure.suptitle(self.title, fontsize=11)
            return as_png(figure)


@contextmanager
def _look() -> Iterator[None]:
    with rc_context(_LOOK), catch_warnings():
        # Of names in other scripts: a page has the reader's fonts, matplotlib has one.
        filterwarnings("ignore", r"Glyph \d+ .* missing from font")
        yield


def blank(*, height: float = 2.5, numbered: str | None = "epoch", percent: bool = False) -> tuple[Figure, Axes]:
    """A figure of one pair of axes.

    Args:
        height: in units of 72 to the inch; the width is that of a phone.
        numbered: what the horizontal axis counts; ``None`` leaves it to the caller.
        percent: whether the vertical axis is of shares.
    """
    figure = Figure(figsize=(4.7, height), layout="constrained")
    axes = figure.subplots()
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    if numbered is not None:
        axes.set_xlabel(numbered)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
    if percent:
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.4g} %")
    return figure, axes


def as_svg(figure: Figure, *, prefix: str, title: str) -> str:
    """An inline SVG element: of the width that there is, and with colours that are variables of the page.

    Args:
        figure: in the colours of this module.
        prefix: of its ids, which a page must have once only.
        title: for those who cannot see it.
    """
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    svg = file.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    view = re.findall(r'viewBox="[^"]*"', svg)[0]
    svg = re.sub(r"<[^>]*>", lambda tag: _themed(tag[0], prefix), svg)  # in text, < and > are escaped
    return re.sub(r"<svg [^>]*>", lambda _: f'<svg {view} role="img" aria-label="{escape(title)}">', svg, count=1)


def _themed(tag: str, prefix: str) -> str:
    tag = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}-", tag)
    tag = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", tag)
    return re.sub(r"#[0-9a-f]{6}", lambda colour: _VARIABLES.get(colour[0], colour[0]), tag)
