"""A few images of a finished run with what its dense tasks should answer and do answer: the pictures of its report.

They are kept as arrays in the run directory, for the report of a run is drawn without its data and without torch.
"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from distbranch.config import DataConfig
from distbranch.data.shards import DatasetInfo
from distbranch.engine.distributed import Ranks
from distbranch.engine.loaders import open_evaluation
from distbranch.kinds import KINDS
from distbranch.kinds.dense import DenseKind
from distbranch.kinds.kind import Array
from distbranch.models.network import Network

NUM_IMAGES = 4
SPLITS = ("val", "test", "train")  # of which the first that the data have is shown


@torch.inference_mode()
def write_sample_maps(
    file: Path, network: Network, info: DatasetInfo, data: DataConfig, ranks: Ranks
) -> None:
    """Write `images` [n, H, W, 3] and, per dense task, codes `truth/TASK` and `found/TASK` [n, H, W, ...].

    Nothing is written where no sample of the split can be read, or the data have none of the tasks.

    Args:
        file: an .npz without pickles; `tasks` in it describes the dense tasks.
        network: that of the run.
        info: its data, of which the first with a dense task is shown.
        data: how they are read.
        ranks: this process; the others do not take part.
    """
    dense = list(network.tasks.dense.values())
    names = {task.name for task in dense}
    having = [one for one in info.members if names & {task.name for task in one.tasks}]
    if not having:
        return
    member = having[0]
    split = next(name for name in SPLITS if name in member.splits)
    alone = replace(ranks, rank=0, world_size=1)
    size = network.architecture.image_size
    batches = open_evaluation(member, split, data, alone, image_size=size, batch_size=NUM_IMAGES)
    # Bad samples are left out, and a batch may be nothing else.
    batch = next((one for one in batches if len(one.images)), None)
    if batch is None:
        return
    shown = [task for task in dense if task.name in batch.maps]
    arrays: dict[str, Array] = {
        "tasks": np.array(json.dumps([task.to_json() for task in shown])),
        "split": np.array(split),
        "images": batch.images.permute(0, 2, 3, 1).numpy(),
    }
    was_training = network.training
    network.eval()
    answers = network.tasks.predict(network(batch.images.to(ranks.device)))
    network.train(was_training)
    for task in shown:
        kind = KINDS[task.kind]
        assert isinstance(kind, DenseKind)
        truth = batch.maps[task.name].numpy()
        if np.issubdtype(truth.dtype, np.floating):  # depth comes in metres
            truth = kind.encode_answer(task, truth)
        if truth.ndim == 4:
            truth = truth.transpose(0, 2, 3, 1)
        found = []
        for answer in answers[task.name]:
            assert isinstance(answer, np.ndarray)
            found.append(kind.encode_answer(task, answer))
        arrays |= {f"truth/{task.name}": truth, f"found/{task.name}": np.stack(found)}
    aside = file.with_name(f".{file.name}")
    with aside.open("wb") as stream:
        np.savez_compressed(stream, allow_pickle=False, **arrays)
    aside.replace(file)
