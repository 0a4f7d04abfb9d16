"""From an open slide to a scored table of findings."""
