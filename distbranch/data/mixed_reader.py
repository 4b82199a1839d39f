"""Reads samples of several data sets whose shards are numbered through, as `plan.MixedPlan` numbers them."""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from distbranch.data.cache import Cache, open_files
from distbranch.data.reader import ShardReader
from distbranch.data.shards import BadSample, Shard, join
from distbranch.tasks import Task


class MixedReader:
    """One `ShardReader` per data set; a label that a data set does not have is NaN.

    Args:
        parts: path and shards of every data set.
        tasks: of all of them together.
        cache: for those that are remote.
        max_open: shards kept open of each.
    """

    def __init__(
        self,
        parts: Sequence[tuple[str, Sequence[Shard]]],
        tasks: Sequence[Task],
        cache: Cache | None,
        *,
        max_open: int,
    ) -> None:
        self._paths = [path for path, _ in parts]
        self._starts = list(accumulate((len(shards) for _, shards in parts), initial=0))
        self._readers = [
            ShardReader(open_files(path, cache), shards, tasks, max_open=max_open) for path, shards in parts
        ]

    def want(self, shards: Sequence[int]) -> None:
        """These shards will be read soon."""
        for number, reader in enumerate(self._readers):
            start, stop = self._starts[number], self._starts[number + 1]
            reader.want([shard - start for shard in shards if start <= shard < stop])

    def read(self, shard: int, sample: int, epoch: int = 0) -> tuple[bytes, NDArray[np.float32]]:
        """The JPEG and the labels [T] (NaN = unlabelled) of a sample. Raises BadSample, with the place of the shard."""
        part, own = self._place(shard)
        try:
            return self._readers[part].read(own, sample, epoch)
        except BadSample as error:
            raise BadSample(error.kind, join(self._paths[part], error.shard), error.sample, error.what) from None

    def name(self, shard: int, sample: int, epoch: int = 0) -> str | int:
        """The key of a sample, or its number in the shard."""
        part, own = self._place(shard)
        return self._readers[part].name(own, sample, epoch)

    def close(self) -> None:
        """Closes every shard."""
        for reader in self._readers:
            reader.close()

    def _place(self, shard: int) -> tuple[int, int]:
        part = bisect_right(self._starts, shard) - 1
        return part, shard - self._starts[part]
