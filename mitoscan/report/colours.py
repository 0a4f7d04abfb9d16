"""One set of colours for QuPath, pictures and pages, told apart with every common colour vision."""

from __future__ import annotations

Colour = tuple[int, int, int]

COLOURS: dict[str, Colour] = {
    "AMF": (213, 94, 0),
    "NMF": (0, 114, 178),
    "Hot spot": (0, 0, 0),
    "Tissue": (0, 158, 115),
}
"""Vermillion, blue and bluish green of Okabe & Ito's palette (2008), by QuPath class name."""
