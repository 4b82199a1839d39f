"""Batches for one rank, decoded ahead of need by processes or by one thread.

Which samples form global batch k is arithmetic on the plan, so every process computes its own share without a word to
the others: rank r takes the positions that `plan.positions_of_rank` gives it, prefetching process w of n batches w, w+n, ...
"""

import itertools
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np
import torch

from distbranch.data.augmentation import Augmentation
from distbranch.data.cache import Cache, open_files
from distbranch.data.map_batch import MapBatch
from distbranch.data.mixing import Mixing, find_neighbour
from distbranch.data.plan import (
    AlternatingPlan,
    AnyPlan,
    Balance,
    MixedPlan,
    Place,
    Plan,
    Turns,
    positions_of_rank,
)
from distbranch.data.prefetch import Batch as Batch
from distbranch.data.prefetch import from_processes, from_thread
from distbranch.data.reader import ShardReader, ShardSource
from distbranch.data.shards import BadSample, DatasetInfo, SplitInfo
from distbranch.errors import UserError
from distbranch.tasks import Task


def train_loader(
    info: DatasetInfo,
    split: str,
    *,
    batch_size: int,
    image_size: tuple[int, int],
    rank: int = 0,
    world_size: int = 1,
    start: int = 0,
    seed: int = 0,
    augmentation: Augmentation | None = None,
    decoder: str = "simplejpeg",
    num_workers: int = 0,
    window: int = 8,
    on_bad_sample: str = "fail",
    prefetch: int = 4,
    cache: Cache | None = None,
    accumulate: int = 1,
    pin_memory: bool = False,
    turns: Turns | None = None,
    balances: Sequence[Balance | None] = (),
    mixing: Mixing | None = None,
) -> Iterator[Batch]:
    """Endless training batches of this rank, beginning after `start` samples consumed by all ranks together.

    `info` may be a mixture of data sets (`data.mixture`); its samples come in the order of `plan.MixedPlan`. With `turns` two
    parts of every data set are read in the order of `plan.AlternatingPlan`.
    `augmentation`: how images are shown, which may be in another size than `image_size`; as they are if it is None.
    `balances`: how often samples are shown, of every data set; `mixing`: how neighbours in the stream are mixed, which dense
    tasks cannot follow.
    `batch_size`: of all ranks together; `accumulate`: in how many passes, one after the other in a batch, it is trained on;
    `num_workers`: prefetching processes, 0 = one thread; `prefetch`: batches ahead for each of them. The iterator ends
    only after a batch with an error: a bad sample under on_bad_sample="fail", or a batch in which nothing is left.
    """
    chosen = [_get_split(member, split) for member in info.members]
    if batch_size < world_size * accumulate:
        raise UserError(
            f"A batch of {batch_size} samples cannot be divided among {world_size} ranks in {accumulate} part(s) each. "
            f"Choose a batch size of at least {world_size * accumulate}, or fewer ranks."
        )
    plan: AnyPlan
    if turns is None:
        plan = _make_plan(info, chosen, seed, window, balances)
    else:
        first = _make_plan(info, chosen, seed, window, balances, (0.0, turns.part))
        second = _make_plan(info, chosen, seed, window, balances, (turns.part, 1.0))
        plan = AlternatingPlan((first, second), turns)
    source = _BatchSource(
        plan=plan,
        start=start,
        end=sys.maxsize,
        batch_size=batch_size,
        shares=positions_of_rank(batch_size, accumulate, rank, world_size),
        parts=[ShardSource.from_split(member, split) for member in info.members],
        tasks=info.tasks,
        cache=cache,
        image_size=image_size,
        decoder=decoder,
        augmentation=augmentation or Augmentation(),
        mixing=mixing or Mixing(),
        on_bad_sample=on_bad_sample,
        max_open=window + 2,  # those of a window, and the first ones of the next
        needs_some=True,
    )
    return _load_ahead(source, num_workers, prefetch, pin_memory)


def eval_loader(
    info: DatasetInfo,
    split: str,
    *,
    batch_size: int,
    image_size: tuple[int, int],
    rank: int = 0,
    world_size: int = 1,
    decoder: str = "simplejpeg",
    num_workers: int = 0,
    on_bad_sample: str = "fail",
    prefetch: int = 4,
    cache: Cache | None = None,
    pin_memory: bool = False,
) -> Iterator[Batch]:
    """Every sample of the split once over all ranks: rank r takes samples r, r + W, ... in batches of `batch_size`.

    The last batch may be short; a rank without samples has no batch. `Batch.indices` tells rank 0 the order.
    """
    chosen = _get_split(info, split)
    plan = Plan([shard.num_samples for shard in chosen.shards], seed=None, window=1)
    # Dealt out one by one, so that no rank has two samples more than another.
    firsts = range(rank, batch_size * world_size, world_size)
    source = _BatchSource(
        plan=plan,
        start=0,
        end=plan.num_samples,
        batch_size=batch_size * world_size,
        shares=[range(position, position + 1) for position in firsts],
        parts=[ShardSource.from_split(info, split)],
        tasks=info.tasks,
        cache=cache,
        image_size=image_size,
        decoder=decoder,
        augmentation=Augmentation(),
        mixing=Mixing(),
        on_bad_sample=on_bad_sample,
        max_open=2,  # they are read one after the other
        needs_some=False,
    )
    return _load_ahead(source, num_workers, prefetch, pin_memory)


def _get_split(info: DatasetInfo, split: str) -> SplitInfo:
    found = info.splits.get(split)
    if found is None:
        raise UserError(
            f"{info.path} has no split '{split}'; it has {', '.join(sorted(info.splits))}."
        )
    if found.num_samples == 0:
        raise UserError(f"Split '{split}' of {info.path} has no samples. Pack it again with some.")
    return found


def _make_plan(
    info: DatasetInfo,
    splits: Sequence[SplitInfo],
    seed: int,
    window: int,
    balances: Sequence[Balance | None],
    part: tuple[float, float] = (0.0, 1.0),
) -> Plan | MixedPlan:
    plans = []
    for split, balance in zip(splits, balances or [None] * len(splits), strict=True):
        shard_sizes = [shard.num_samples for shard in split.shards]
        plans.append(Plan(shard_sizes, seed, window, part, balance))
    if len(plans) == 1:
        return plans[0]
    # In proportion to their sizes all data sets come to the end of an epoch together.
    proportions = info.proportions or [split.num_samples for split in splits]
    return MixedPlan(plans, proportions, seed)


@dataclass(frozen=True)
class _BatchSource:
    """How samples become the batches of this rank: all that a process must know to make them.

    `start`, `end`: the positions of the plan at which the first batch begins and the last one ends.
    `shares`: the positions of this rank in every batch.
    `parts`: the shards of every data set; `needs_some`: a batch in which nothing is left ends the run.
    """

    plan: AnyPlan
    start: int
    end: int
    batch_size: int  # of all ranks
    shares: Sequence[range]
    parts: Sequence[ShardSource]
    tasks: Sequence[Task]
    cache: Cache | None
    image_size: tuple[int, int]
    decoder: str
    augmentation: Augmentation
    mixing: Mixing
    on_bad_sample: str
    max_open: int
    needs_some: (
        bool  # in training: where all samples are bad an endless loader would search for ever
    )

    def make_batches(self, first: int, step: int) -> Iterator[Batch]:
        """Batches first, first + step, ...; the only state are the shards that stay open."""
        with closing(ShardReader(self.parts, self.cache, max_open=self.max_open)) as reader:
            for number in itertools.count(first, step):
                places, indices = self._list_batch(number)
                if not places:
                    return
                reader.request_shards(self.plan.list_shards_ahead(indices[0]))
                batch = self._make_batch(reader, places, indices)
                yield self._mix_batch(reader, batch) if self.mixing else batch

    def _list_batch(self, number: int) -> tuple[list[Place], list[int]]:
        """Which samples form this batch, and their positions in the plan; none where it has ended."""
        first = self.start + number * self.batch_size
        places: list[Place] = []
        indices: list[int] = []
        for share in self.shares:
            start = min(first + share.start, self.end)
            stop = min(first + share.stop, self.end)
            places += self.plan.list_places(start, stop)
            indices += range(start, stop)
        return places, indices

    def _make_batch(
        self, reader: ShardReader, places: Sequence[Place], indices: Sequence[int]
    ) -> Batch:
        """The batch of these samples; bad ones are left out and counted, or end the batch with an error."""
        # Filled sample by sample: to stack a list would copy every image once more.
        size = self.augmentation.crop or self.image_size
        images = np.empty((len(places), *size, 3), dtype=np.uint8)
        labels = np.empty((len(places), len(self.tasks)), dtype=np.float32)
        maps = MapBatch(self.tasks, len(places), size)
        kept: list[int] = []
        num_bad: Counter[str] = Counter()
        error = last_bad = None
        for (shard, sample, epoch, copy), index in zip(places, indices, strict=True):
            row = len(kept)
            try:
                opened = reader.open_shard(shard, epoch)
                view = self.augmentation.choose_view(self.image_size, epoch, shard, sample, copy)
                # A small part of an image has more to show than is left in the size of the whole.
                read_size = self.image_size
                if self.augmentation.crop_area is not None:
                    read_size = view.size
                pixels, labels[row] = opened.read_pixels(
                    sample, self.tasks, read_size, self.decoder
                )
                images[row] = view.show_image(pixels)
                maps.set_sample(row, opened.read_codes(sample), view, labels[row])
                kept.append(index)
            except BadSample as bad:
                num_bad[bad.kind] += 1
                last_bad = str(bad)
                if self.on_bad_sample == "fail":
                    error = last_bad
                    break
            except (
                UserError
            ) as trouble:  # of this machine and not of a sample, so there is nothing to leave out
                error = str(trouble)
                num_bad.clear()
                break
        if error is not None:
            kept = []
        elif not kept and self.needs_some:
            error = f"No sample of a batch could be used. The last of them: {last_bad}"
        return Batch(
            images=torch.from_numpy(images[: len(kept)]).permute(
                0, 3, 1, 2
            ),  # a view, so channels_last
            labels=torch.from_numpy(labels[: len(kept)]),
            num_bad=dict(num_bad),
            error=error,
            indices=torch.tensor(kept, dtype=torch.int64),
            maps=maps.get_first(len(kept)),
        )

    def _mix_batch(self, reader: ShardReader, batch: Batch) -> Batch:
        """The batch with every image mixed with its neighbour; where that cannot be used, it stays as it is."""
        # Those that are in the shares of other ranks, or in another batch, are read here, too; counted where they belong.
        indices = batch.indices.tolist()
        strangers = sorted({find_neighbour(index) for index in indices} - set(indices))
        places = [self.plan.list_places(index, index + 1)[0] for index in strangers]
        read = replace(self, needs_some=False)._make_batch(reader, places, strangers)
        if batch.error or read.error:
            return replace(batch, error=batch.error or read.error)

        rows = {index: row for row, index in enumerate([*indices, *read.indices.tolist()])}
        images = torch.cat([batch.images, read.images]).permute(0, 2, 3, 1).numpy()
        labels = torch.cat([batch.labels, read.labels])
        neighbours = [rows.get(find_neighbour(index), rows[index]) for index in indices]
        mixed = np.empty((len(indices), *images.shape[1:]), dtype=np.uint8)
        shares = torch.ones(len(indices))
        for row, (index, neighbour) in enumerate(zip(indices, neighbours, strict=True)):
            mixed[row], shares[row] = self.mixing.mix_images(images[row], images[neighbour], index)
        return replace(
            batch,
            images=torch.from_numpy(mixed).permute(0, 3, 1, 2),
            mixed=(labels[neighbours], shares),
        )


def _load_ahead(
    source: _BatchSource,
    num_workers: int,
    prefetch: int,
    pin_memory: bool,
) -> Iterator[Batch]:
    for part in source.parts:
        open_files(
            part.path, source.cache
        )  # what is wrong with the path is said now, and not by a process later
    if num_workers:
        batches = from_processes(source.make_batches, num_workers, prefetch, pin_memory=pin_memory)
    else:
        batches = from_thread(source.make_batches, prefetch, pin_memory=pin_memory)
    return _stop_after_error(batches)


def _stop_after_error(batches: Iterator[Batch]) -> Iterator[Batch]:
    for batch in batches:
        yield batch
        if batch.error is not None:
            return
