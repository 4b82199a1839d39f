"""VGG-16 weights in the formats of torchvision and timm: full shapes, but files of a few megabytes.

Every fc matrix is W[i, j] = base[i + j]: all rows differ, and only the base is stored.
"""

import torch
from torch import Tensor

WIDTHS = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
POOLED = (1, 3, 6, 9, 12)  # convolutions after which torchvision pools


def convolution_places(*, batch_norm: bool) -> list[int]:
    """N of features.N of every convolution."""
    places, place = [], 0
    for number in range(len(WIDTHS)):
        places.append(place)
        place += (3 if batch_norm else 2) + (number in POOLED)
    return places


def vgg16_state(
    *, batch_norm: bool = False, timm: bool = False, seed: int = 0
) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    state, inputs = {}, 3
    for place, width in zip(convolution_places(batch_norm=batch_norm), WIDTHS, strict=True):
        kernel = torch.randn(width, inputs, 3, 1, generator=draw) / (3 * inputs) ** 0.5
        state[f"features.{place}.weight"] = (
            kernel.expand(-1, -1, -1, 3) if inputs > 3 else kernel * torch.rand(3, generator=draw)
        )
        state[f"features.{place}.bias"] = torch.randn(width, generator=draw) * 0.1
        if batch_norm:
            norm = f"features.{place + 1}"
            state[f"{norm}.weight"] = torch.rand(width, generator=draw) + 0.5
            state[f"{norm}.bias"] = torch.randn(width, generator=draw) * 0.1
            state[f"{norm}.running_mean"] = torch.randn(width, generator=draw) * 0.1
            state[f"{norm}.running_var"] = torch.rand(width, generator=draw) + 0.5
            state[f"{norm}.num_batches_tracked"] = torch.tensor(7)
        inputs = width
    for name, num_inputs, shape in (("fc6", 512 * 49, (512, 7, 7)), ("fc7", 4096, (4096, 1, 1))):
        base = torch.randn(4096 + num_inputs, generator=draw) / 64
        key = (
            {"fc6": "pre_logits.fc1", "fc7": "pre_logits.fc2"}[name]
            if timm
            else f"classifier.{'03'[name == 'fc7']}"
        )
        strides = (1, shape[1] * shape[2], shape[2], 1) if timm else (1, 1)
        state[f"{key}.weight"] = base.as_strided(
            (4096, *shape) if timm else (4096, num_inputs), strides
        )
        state[f"{key}.bias"] = torch.randn(4096, generator=draw) * 0.1
    head = "head.fc" if timm else "classifier.6"
    return state | {
        f"{head}.weight": torch.zeros(1, 1).expand(1000, 4096),
        f"{head}.bias": torch.zeros(1000),
    }
