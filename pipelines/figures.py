"""Figures as files."""

from __future__ import annotations

import io

from matplotlib.figure import Figure

__all__ = ["as_png"]

DPI = 120


def as_png(figure: Figure) -> bytes:
    """The bytes of a PNG file, the same for the same figure."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=DPI, metadata={"Software": None})
    return file.getvalue()
