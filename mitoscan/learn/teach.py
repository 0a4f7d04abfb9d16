"""Soft labels: what teachers think of the labelled fields, put beside the labels (knowledge distillation)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from mitoscan.learn.data import Float
from mitoscan.learn.detector_metrics import Matched
from mitoscan.learn.fields import Field, with_chance
from mitoscan.learn.metrics import platt, rescaled

log = logging.getLogger(__name__)

LEAST_CHANCE = 0.03
"""What is less likely a figure is learnt as background."""


def teach(matched: Sequence[Matched], label_share: float) -> list[Field]:
    """Give the fields soft targets: at each figure and each detection the chance that it is a figure.

    The chance is the mean of the label (a figure: 1, else 0), counted ``label_share``, and of the teachers'
    score, calibrated on all these labels (Platt). So a figure that they would not call weighs less, and what
    they call though no label says so is no plain background. Method: after Hinton et al. 2015 (distillation)
    and Reed et al. 2015 (bootstrapped labels).

    Parameters
    ----------
    matched
        What the teachers found in each training field.
    label_share
        0: the teachers alone; 1: the labels alone.
    """
    gain, shift = platt(
        np.concatenate([m.p for m in matched]), np.concatenate([m.figure >= 0 for m in matched])
    )
    fields = [replace(m.field, taught=_targets(m, rescaled(m.p, gain, shift), label_share)) for m in matched]
    chance = np.concatenate([f.targets[:, 2] for f in fields])
    figures = sum(len(f.figures) for f in fields)
    log.info("%d figures became %d targets, %.0f in sum", figures, len(chance), chance.sum())
    return fields


def _targets(matched: Matched, score: Float, label_share: float) -> Float:
    hit, figures = matched.figure >= 0, matched.field.figures
    xy = matched.xy.copy()
    xy[hit] = figures[matched.figure[hit]]
    chance = label_share * hit + (1 - label_share) * score
    found = np.column_stack([xy, chance])
    targets = np.concatenate([found, with_chance(figures[matched.missed], label_share)])
    return targets[targets[:, 2] >= LEAST_CHANCE]
