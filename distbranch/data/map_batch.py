"""The maps of the dense tasks of a batch, filled sample by sample."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distbranch.data.augmentation import View
from distbranch.data.label_maps import get_dense_kind
from distbranch.kinds.kind import Array
from distbranch.tasks import Task


class MapBatch:
    """What a batch of so many samples has for every dense task, in (height, width) pixels; not labelled until it is set."""

    def __init__(self, tasks: Sequence[Task], num_samples: int, size: tuple[int, int]) -> None:
        # With the column of its labels.
        self._dense = {n: task for n, task in enumerate(tasks) if task.is_dense}
        self._values: dict[str, Array] = {}
        for task in self._dense.values():
            kind = get_dense_kind(task)
            channels = (kind.channels,) if kind.channels > 1 else ()
            self._values[task.name] = np.empty((num_samples, *size, *channels), kind.value_type)

    def set_sample(
        self, row: int, codes: Mapping[str, Array], view: View, labels: NDArray[np.float32]
    ) -> None:
        """The maps of a sample, of any size, and into its labels [T] which share of their pixels is labelled; NaN of none."""
        for column, task in self._dense.items():
            kind = get_dense_kind(task)
            values = self._values[task.name][row]
            values[...] = kind.invalid
            if task.name in codes:
                values[...] = view.show_codes(task, codes[task.name])
            labels[column] = kind.find_labelled(values).mean() or np.nan

    def get_first(self, num_samples: int) -> dict[str, Tensor]:
        """Those of the first samples, by task: [b, H, W] or [b, C, H, W]."""
        maps = {}
        for name, values in self._values.items():
            tensor = torch.from_numpy(values[:num_samples])
            # A view of several channels, as of the images.
            maps[name] = tensor.permute(0, 3, 1, 2) if tensor.ndim == 4 else tensor
        return maps
