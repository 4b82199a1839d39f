"""What a batch has where some tasks are dense: beside a number per sample and task a map, a value per pixel.

Or, where images are mixed, a second matrix. All classes have the methods of a tensor that the engine needs, so that a batch with
neither is a tensor and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn import functional

Maps = Mapping[str, Tensor]


@dataclass(frozen=True)
class Labels:
    """The labels of a batch.

    values: [B, T], NaN where unlabelled; of a dense task the share of its pixels that are labelled.
    maps: the codes of every dense task by name, [B, H, W] or, of normals, [B, 3, H, W], as `DenseKind.decode_labels` reads them.
    """

    values: Tensor
    maps: Maps

    def to(self, device: torch.device, *, non_blocking: bool = False) -> Labels:
        """The same on another device."""
        return self._apply(lambda one: one.to(device, non_blocking=non_blocking))

    def isnan(self) -> Tensor:
        """Which tasks of which samples are unlabelled [B, T]."""
        return self.values.isnan()

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, rows: slice | Tensor) -> Labels:
        return self._apply(lambda one: one[rows])

    def _apply(self, change: Callable[[Tensor], Tensor]) -> Labels:
        return Labels(change(self.values), {name: change(one) for name, one in self.maps.items()})


@dataclass(frozen=True)
class MixedLabels:
    """The labels of images that are two pictures each (`data.mixup`, `data.cutmix`).

    own, other: [B, T], NaN where unlabelled; shares: [B], how much of each image is its own. What is computed from a label counts
    by its share, so a task that one picture lacks has the rest of the other, whatever its kind.
    """

    own: Tensor
    other: Tensor
    shares: Tensor

    def to(self, device: torch.device, *, non_blocking: bool = False) -> MixedLabels:
        """The same on another device."""
        return self._apply(lambda one: one.to(device, non_blocking=non_blocking))

    def isnan(self) -> Tensor:
        """Which tasks of which images have no label of either picture [B, T]."""
        return self.own.isnan() & self.other.isnan()

    def blend(self, compute: Callable[[Tensor], Tensor]) -> Tensor:
        """What `compute` gives for the labels of each picture [B, T], by the share of the picture."""
        shares = self.shares.unsqueeze(1)
        return shares * compute(self.own) + (1 - shares) * compute(self.other)

    def __len__(self) -> int:
        return len(self.own)

    def __getitem__(self, rows: slice | Tensor) -> MixedLabels:
        return self._apply(lambda one: one[rows])

    def _apply(self, change: Callable[[Tensor], Tensor]) -> MixedLabels:
        return MixedLabels(change(self.own), change(self.other), change(self.shares))


@dataclass(frozen=True)
class Outputs:
    """What a network answers to a batch.

    logits: [B, O] of the tasks with one label per image.
    maps: of every dense task by name [B, K, h, w], at the stride of the network.
    """

    logits: Tensor
    maps: Maps

    def detach(self) -> Outputs:
        """Without gradient."""
        return self._apply(Tensor.detach)

    def __len__(self) -> int:
        return len(self.logits)

    def _apply(self, change: Callable[[Tensor], Tensor]) -> Outputs:
        return Outputs(change(self.logits), {name: change(one) for name, one in self.maps.items()})


AnyLabels = Tensor | Labels | MixedLabels
AnyOutputs = Tensor | Outputs


def join_labels(values: Tensor, maps: Maps, mixed: Sequence[Tensor] = ()) -> AnyLabels:
    """The labels of a batch: a matrix [B, T] where no task is dense and nothing is `mixed` (other labels and own shares)."""
    if mixed:
        other, shares = mixed
        return MixedLabels(values, other, shares)
    return Labels(values, maps) if maps else values


def split_labels(labels: AnyLabels, sizes: Sequence[int]) -> list[AnyLabels]:
    """Those of several batches, of so many samples each."""
    if isinstance(labels, Tensor):
        return list(torch.split(labels, list(sizes)))
    ends = list(accumulate(sizes))
    return [labels[end - size : end] for end, size in zip(ends, sizes, strict=True)]


def resize_maps(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Maps [B, K, h, w] as [B, K, H, W], bilinearly between the centres of pixels."""
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    return functional.interpolate(maps, tuple(size), mode="bilinear", align_corners=False)


def sample_codes(codes: Tensor, size: Sequence[int]) -> Tensor:
    """Codes [B, ..., H, W] as [B, ..., h, w]: of each pixel the label of that in which its centre lies."""
    if tuple(codes.shape[-2:]) == tuple(size):
        return codes
    rows, columns = (
        (2 * torch.arange(new, device=codes.device) + 1) * old // (2 * new)
        for old, new in zip(codes.shape[-2:], size, strict=True)
    )
    return codes[..., rows[:, None], columns]


def concatenate_outputs(parts: Sequence[AnyOutputs]) -> AnyOutputs:
    """The answers to several batches as those to one."""
    if not isinstance(parts[0], Outputs):
        return torch.cat([part for part in parts if isinstance(part, Tensor)])
    several = list(_only_outputs(parts))
    maps = {name: torch.cat([part.maps[name] for part in several]) for name in several[0].maps}
    return Outputs(torch.cat([part.logits for part in several]), maps)


def _only_outputs(parts: Sequence[AnyOutputs]) -> Iterator[Outputs]:
    for part in parts:
        assert isinstance(part, Outputs)  # a network answers in one way
        yield part
