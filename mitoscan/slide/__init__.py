"""Slides: opening, reading, tissue, regions of interest and the tile grid."""
