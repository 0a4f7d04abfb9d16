"""The training loop that both tasks share, and what a finished run leaves behind."""

from __future__ import annotations

import csv
import json
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from mitoscan.errors import OutputError
from mitoscan.learn import plots
from mitoscan.learn.config import TrainConfig
from mitoscan.models.card import WEIGHTS_NAME, Metric, ModelCard, Training, save_card, sha256_of

log = logging.getLogger(__name__)

Validation = dict[str, float]
CHECKPOINT = "best.safetensors"
"""The average of the weights when it validated best; gone when the model is exported."""
STATE = "training.pt"
"""All that is needed to go on after an interruption; gone when the model is exported."""
LOG = "log.csv"
LICENCE = "Apache-2.0 (code); weights for research use, as the data they saw"
INTENDED_USE = "Research on H&E slides. Not for diagnosis."


@dataclass
class _Run:
    """What changes while a training runs, and how it is kept."""

    network: nn.Module
    average: AveragedModel
    optimiser: torch.optim.Optimizer
    rate: torch.optim.lr_scheduler.LRScheduler
    rng: np.random.Generator
    step: int = 0
    best: float = -math.inf
    seconds: float = 0.0

    def save(self, path: Path, config: TrainConfig) -> None:
        state = {
            "config": config.model_dump_json(),
            "modules": [self.network.state_dict(), self.average.state_dict()],
            "optimiser": self.optimiser.state_dict(),
            "rate": self.rate.state_dict(),
            "chance": [torch.get_rng_state(), json.dumps(self.rng.bit_generator.state)],
            "progress": [self.step, self.best, self.seconds],
        }
        unfinished = path.with_suffix(".tmp")
        torch.save(state, unfinished)
        unfinished.replace(path)

    def resume(self, path: Path, config: TrainConfig) -> None:
        state = torch.load(path, weights_only=True)
        if state["config"] != config.model_dump_json():
            raise OutputError(
                "an unfinished training with another config is there",
                path=path,
                remedy="Choose another folder with -o, or remove this file to start anew.",
            )
        for module, values in zip((self.network, self.average), state["modules"], strict=True):
            module.load_state_dict(values)
        self.optimiser.load_state_dict(state["optimiser"])
        self.rate.load_state_dict(state["rate"])
        torch.set_rng_state(state["chance"][0])
        self.rng.bit_generator.state = json.loads(state["chance"][1])
        self.step, self.best, self.seconds = state["progress"]


def fit(
    network: nn.Module,
    config: TrainConfig,
    rng: np.random.Generator,
    batch_loss: Callable[[nn.Module], Tensor],
    validate: Callable[[nn.Module], Validation],
    out: Path,
    *,
    best_by: str | None = None,
    on_step: Callable[[int], None] = lambda _: None,
) -> nn.Module:
    """Train ``network`` with AdamW and a one-cycle rate, and give the moving average of its weights.

    A training that was interrupted goes on from its last validation when called again with the same folder
    and config.

    Parameters
    ----------
    network
        Trained in place.
    config
        Steps, rates and decay.
    rng
        What ``batch_loss`` draws from; kept with the state, so that a resumed run sees the same batches.
    batch_loss
        Draws a batch, runs the network on it and gives the loss.
    validate
        Gives the figures of a network in evaluation mode; logged every ``config.validate_every`` steps.
    out
        Folder for ``log.csv`` and the checkpoints.
    best_by
        Figure by which the best of the validated averages is given. None: the last is.
    on_step
        Told the number of steps done, after each.

    Raises
    ------
    OutputError
        When the folder holds an unfinished training with another config.
    """
    out.mkdir(parents=True, exist_ok=True)
    run = _start(network, config, rng)
    if (out / STATE).exists():
        run.resume(out / STATE, config)
        log.info("going on from step %d of %d", run.step, config.steps)
    else:
        (out / LOG).unlink(missing_ok=True)
    network.train()
    began, total, first = time.monotonic() - run.seconds, 0.0, run.step
    while run.step < config.steps:
        total += _step(run, batch_loss)
        on_step(run.step)
        if run.step % config.validate_every == 0 or run.step == config.steps:
            figures = validate(run.average.module.eval())
            run.seconds = time.monotonic() - began
            row = {"step": run.step, "loss": total / (run.step - first), **figures}
            _append(out / LOG, {**row, "seconds": run.seconds})
            log.info("  ".join(f"{k} {v:.4g}" for k, v in row.items()))
            score = figures[best_by] if best_by else run.step
            if score > run.best:
                run.best = score
                save_file(run.average.module.state_dict(), out / CHECKPOINT)
            run.save(out / STATE, config)
            total, first = 0.0, run.step
    run.average.module.load_state_dict(load_file(out / CHECKPOINT))
    return run.average.module.eval()


def _start(network: nn.Module, config: TrainConfig, rng: np.random.Generator) -> _Run:
    optimiser = torch.optim.AdamW(
        network.parameters(), config.learning_rate, weight_decay=config.weight_decay
    )
    rate = torch.optim.lr_scheduler.OneCycleLR(optimiser, config.learning_rate, total_steps=config.steps)
    average = AveragedModel(
        network,
        multi_avg_fn=get_ema_multi_avg_fn(config.average_decay),  # type: ignore[no-untyped-call]
        use_buffers=True,
    )
    return _Run(network, average, optimiser, rate, rng)


def _step(run: _Run, batch_loss: Callable[[nn.Module], Tensor]) -> float:
    run.optimiser.zero_grad(set_to_none=True)
    loss = batch_loss(run.network)
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(run.network.parameters(), 5.0)
    run.optimiser.step()
    run.rate.step()
    run.average.update_parameters(run.network)
    run.step += 1
    return loss.item()


def _append(path: Path, row: dict[str, float]) -> None:
    first = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, row)
        if first:
            writer.writeheader()
        writer.writerow({k: f"{v:.5g}" for k, v in row.items()})


def export(
    network: nn.Module, folder: Path, curves: Sequence[str], make_card: Callable[[str, int], ModelCard]
) -> ModelCard:
    """Write ``model.safetensors``, ``card.json`` and the picture of the training's ``curves``.

    ``make_card`` gets the weights' sha256 and the number of parameters.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = folder / WEIGHTS_NAME
    save_file({k: v.contiguous() for k, v in network.state_dict().items()}, weights)
    card = make_card(sha256_of(weights), sum(p.numel() for p in network.parameters()))
    save_card(card, folder)
    plots.learning_curve(folder / LOG, folder / "log.png", curves)
    for name in (CHECKPOINT, STATE):
        (folder / name).unlink(missing_ok=True)
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
        views=config.views,
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
        licence=LICENCE,
        intended_use=INTENDED_USE,
        **rest,
    )
