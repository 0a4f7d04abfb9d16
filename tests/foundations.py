"""A foundation model small enough for tests, and random weights for it."""

from __future__ import annotations

from dataclasses import replace

import torch
from safetensors.torch import save_file

from mitoscan.models.card import WEIGHTS_NAME
from mitoscan.models.foundation import FOUNDATIONS, Backbone, Foundation


def stand_in(name: str = "stand-in", **changes) -> Foundation:
    """A Virchow2 of 3 blocks and 24 numbers a token: packed SwiGLU, registers, class and mean token."""
    small = {"patch_size": 16, "embed_dim": 24, "depth": 3, "num_heads": 2, "img_size": 32}
    values = {
        "name": name,
        "hub_id": "nobody/stand-in",
        "arguments": {**FOUNDATIONS["Virchow2"].arguments, **small},
        "input_px": 32,
        "feature_width": 48,
        "licence": "CC0-1.0",
    }
    entry = replace(FOUNDATIONS["Virchow2"], **(values | changes))
    with torch.device("meta"):
        return replace(entry, parameters=sum(p.numel() for p in Backbone(entry).parameters()))


def random_weights(entry, folder, seed):
    torch.manual_seed(seed)
    vit = Backbone(entry).vit
    for value in vit.parameters():  # layer scale starts at 1e-5: the blocks would add next to nothing
        torch.nn.init.normal_(value, std=0.2)
    (folder / entry.name).mkdir(parents=True)
    save_file(vit.state_dict(), folder / entry.name / WEIGHTS_NAME)
    return folder
