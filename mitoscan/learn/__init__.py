"""Training and evaluation. Never imported by scan, report or cohort."""
