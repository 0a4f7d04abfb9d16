"""The training loop that both tasks share, and what a finished run leaves behind."""

from __future__ import annotations

import csv
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from mitoscan.learn.config import TrainConfig
from mitoscan.models.card import WEIGHTS_NAME, Metric, ModelCard, Training, save_card, sha256_of

log = logging.getLogger(__name__)

Validation = dict[str, float]
CHECKPOINT = "average.safetensors"
"""The average as last validated; gone when the model is exported."""


def fit(
    network: nn.Module,
    config: TrainConfig,
    batch_loss: Callable[[nn.Module], Tensor],
    validate: Callable[[nn.Module], Validation],
    out: Path,
) -> nn.Module:
    """Train ``network`` with AdamW and a one-cycle rate, and give the moving average of its weights.

    Parameters
    ----------
    network
        Trained in place.
    config
        Steps, rates and decay.
    batch_loss
        Draws a batch, runs the network on it and gives the loss.
    validate
        Gives the figures of a network in evaluation mode; logged every ``config.validate_every`` steps.
    out
        Folder for ``log.csv`` and the last validated weights.
    """
    out.mkdir(parents=True, exist_ok=True)
    optimiser = torch.optim.AdamW(
        network.parameters(), config.learning_rate, weight_decay=config.weight_decay
    )
    rate = torch.optim.lr_scheduler.OneCycleLR(optimiser, config.learning_rate, total_steps=config.steps)
    average = AveragedModel(
        network,
        multi_avg_fn=get_ema_multi_avg_fn(config.average_decay),  # type: ignore[no-untyped-call]
        use_buffers=True,
    )
    network.train()
    started, total = time.monotonic(), 0.0
    for step in range(1, config.steps + 1):
        optimiser.zero_grad(set_to_none=True)
        loss = batch_loss(network)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimiser.step()
        rate.step()
        average.update_parameters(network)
        total += loss.item()
        if step % config.validate_every == 0 or step == config.steps:
            figures = validate(average.module.eval())
            row = {"step": step, "loss": total / config.validate_every, **figures}
            _append(out / "log.csv", {**row, "seconds": time.monotonic() - started})
            log.info("  ".join(f"{k} {v:.4g}" for k, v in row.items()))
            save_file(average.module.state_dict(), out / CHECKPOINT)
            total = 0.0
    return average.module.eval()


def _append(path: Path, row: dict[str, float]) -> None:
    first = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, row)
        if first:
            writer.writeheader()
        writer.writerow({k: f"{v:.5g}" for k, v in row.items()})


def export(network: nn.Module, folder: Path, make_card: Callable[[str, int], ModelCard]) -> ModelCard:
    """Write ``model.safetensors`` and ``card.json``.

    ``make_card`` gets the weights' sha256 and the number of parameters.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = folder / WEIGHTS_NAME
    save_file({k: v.contiguous() for k, v in network.state_dict().items()}, weights)
    card = make_card(sha256_of(weights), sum(p.numel() for p in network.parameters()))
    save_card(card, folder)
    (folder / CHECKPOINT).unlink(missing_ok=True)
    return card


def new_card(
    config: TrainConfig,
    *,
    measured: dict[str, float],
    n: int,
    dataset: str,
    command: str,
    source: str,
    **rest: Any,
) -> ModelCard:
    """Give the card of a trained model: what both tasks have in common, and ``rest``, the task's own fields.

    ``measured`` are figures from ``n`` cases of ``dataset``; ``command`` with config ``source`` trained it.
    """
    return ModelCard(
        name=config.name,
        description=config.description,
        backbone=config.backbone,
        mpp=config.mpp,
        mean=config.mean,
        std=config.std,
        metrics=tuple(
            Metric(name=name, value=round(value, 4), n=n, dataset=dataset) for name, value in measured.items()
        ),
        training=Training(
            command=command,
            config=source,
            seed=config.seed,
            data=config.trained_on,
            data_use="research use",
        ),
        licence="Apache-2.0 (code); weights for research use, as the data they saw",
        intended_use="Research on H&E slides. Not for diagnosis.",
        **rest,
    )
