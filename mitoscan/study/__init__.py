"""From the slides of a cohort and a clinical table to a study: who is in it, statistics, figures, a page."""
