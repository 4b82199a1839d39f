"""A step on a GPU never makes the host wait for it unless something is logged; counted on an emulated GPU."""

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from rank_server import RankServer
from tiny_rooms import pack_tiny_rooms, rooms_config
from tiny_runs import config_of

NOTHING = "None"
WAITS = {
    "values.sum().item()": ["item"],
    "bool(mask.any())": ["item"],
    "values[mask]": ["index by a mask"],
    "mask.nonzero()": ["nonzero"],
    "torch.masked_select(values, mask)": ["masked_select"],
    "values[:, torch.tensor([0, 2])]": ["index with a tensor of the CPU"],
    "torch.where(mask, torch.tensor(1.0), values)": ["where with a tensor of the CPU"],
    "torch.ones(3).to(values.device)": ["copy from cpu to gpu"],
    "torch.ones(3).to(values.device, non_blocking=True)": [
        "copy from cpu to gpu"
    ],  # not from pinned memory
    "values.cpu()": ["copy from gpu to cpu"],
    "values[0, :2].tolist()": ["item", "item"],
    "(values * torch.tensor(2.0)).masked_fill(mask, 0.0)": [],
    "torch.ones(3).pin_memory().to(values.device, non_blocking=True)": [],
}


def waits_of_steps(
    config: Mapping[str, Any],
    steps: Sequence[tuple[int, str]],
    *,
    has_gaps: bool = True,
    has_team: bool = False,
) -> list[list[str]]:
    """A job: for what the host waits in steps of a run, each given by the steps before it and by what else is done in it.

    has_team: whether the images that are normalised together are spread over several ranks.
    """
    from emulated_gpu import emulated_gpu
    from torch._subclasses.fake_tensor import DynamicOutputShapeException

    from distbranch.config import load_config
    from distbranch.data.loader import Batch
    from distbranch.data.shards import read_dataset
    from distbranch.engine.batches import Agreement
    from distbranch.engine.distributed import Ranks
    from distbranch.engine.run_log import RunLog
    from distbranch.engine.session import build_trainer
    from distbranch.engine.trained_network import TrainedNetwork
    from distbranch.kinds import KINDS
    from distbranch.kinds.dense import DenseKind

    resolved = load_config(config)
    resolved.run_directory.mkdir(parents=True)
    info = read_dataset(str(resolved.data.path))
    found = []
    maps = {}
    for task in info.tasks:
        kind = KINDS[task.kind]
        if isinstance(kind, DenseKind):
            channels = (kind.channels,) if kind.channels > 1 else ()
            maps[task.name] = np.zeros((12, *channels, 32, 32), kind.value_type)
    indices = torch.arange(12)  # on the host, with values
    # The values of weights, which are not there, are asked for once before the first step; every step tells the progress.
    TrainedNetwork.fingerprint = lambda _: ""  # type: ignore[method-assign]
    RunLog.is_silent = True  # type: ignore[assignment,method-assign]
    with emulated_gpu() as waits:
        trainer = build_trainer(
            resolved, Ranks(0, 1, torch.device("gpu", 0)), info, report=lambda _: None
        )
        trainer.step.has_gaps = has_gaps
        if has_team:
            trainer.step._norm_plan._sum_over_team = lambda sums: sums
        trainer._feed = mock.Mock()
        trainer._feed.agree_on_next_batch = lambda: Agreement(
            stop=False, failed=False, num_bad=Counter()
        )
        begin = (
            steps[0][0],
            NOTHING,
        )  # the first step of a network brings the numbers of tasks to the device
        for count, (number, planted) in enumerate([begin, begin, *steps]):
            if count == 1:  # as after a decision and after a restart
                net = trainer.net
                net.build(net.network.architecture, net.network.state_dict(), net.slots())
            images = torch.empty(12, 3, 32, 32, dtype=torch.uint8)
            codes = {name: torch.empty_like(torch.from_numpy(one)) for name, one in maps.items()}
            batch = Batch(images, torch.empty(12, len(info.tasks)), {}, None, indices, codes)
            batch = batch.pin_memory()
            trainer._feed.next_batch = lambda batch=batch: (batch, 0.0)
            trainer.progress.iteration = number
            values = torch.ones(12, 5, device="gpu")
            mask = values > 0
            waits.found = []
            trainer._train_step()
            with suppress(DynamicOutputShapeException):  # there are no values to make a shape of
                eval(planted, {"torch": torch, "values": values, "mask": mask})
            found.append(waits.found)
    return found[2:]


@pytest.fixture(scope="module")
def rooms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rooms") / "data"
    pack_tiny_rooms(folder)
    return folder


@pytest.mark.parametrize(
    "changes",
    [
        {"train.accumulate": 3, "train.norm_batch": 4, "train.precision": "bf16"},
        {"method": {"name": "independent"}},
        {"optim.name": "sgd"},
    ],
)
@pytest.mark.parametrize(("has_gaps", "has_team"), [(True, False), (False, False), (True, True)])
def test_no_step_waits_whatever_the_tasks_and_labels(
    changes: dict[str, Any],
    has_gaps: bool,
    has_team: bool,
    tiny_data: Path,
    ranks: RankServer,
    tmp_path: Path,
) -> None:
    config = config_of(tiny_data, tmp_path, **{"train.log_every": 1000, **changes})
    steps = [(1, NOTHING), (2, NOTHING)]
    found = ranks.call(
        waits_of_steps, config=config, steps=steps, has_gaps=has_gaps, has_team=has_team
    )
    assert found == [[], []]


@pytest.mark.parametrize(
    "loss",
    [
        {"class_weights": {"seg": [1.0, 2.0, 5.0]}, "over": "pixels", "at": "output"},
        {"weighting": "famo"},
    ],
    ids=["over-pixels", "famo"],
)
def test_no_step_of_dense_tasks_waits_whatever_the_loss(
    loss: dict[str, Any], rooms: Path, ranks: RankServer, tmp_path: Path
) -> None:
    config = rooms_config(rooms, tmp_path, **{"train.log_every": 1000, "loss": loss})
    steps = [(1, NOTHING), (2, NOTHING)]
    assert ranks.call(waits_of_steps, config=config, steps=steps) == [[], []]


def test_no_step_of_a_search_waits(tiny_data: Path, ranks: RankServer, tmp_path: Path) -> None:
    search = {
        "model.backbone": "resnet18",
        "model.width": 2,
        "method": {"name": "adashare"},
        "adashare": {"warmup_iterations": 2, "cycles_per_block": 1},
        "train.accumulate": 2,
        "train.norm_batch": 6,
    }
    config = config_of(tiny_data, tmp_path, **{"train.log_every": 1000, **search})
    steps = [
        (17, NOTHING),
        (1, NOTHING),
        (3, NOTHING),
        (21, NOTHING),
    ]  # policy, all execute, weights, weights again
    assert ranks.call(waits_of_steps, config=config, steps=steps) == [[]] * 4


def test_a_step_that_logs_waits_and_so_does_whatever_looks_at_values(
    tiny_data: Path, ranks: RankServer, tmp_path: Path
) -> None:
    config = config_of(tiny_data, tmp_path, **{"train.log_every": 1000})
    found = ranks.call(waits_of_steps, config=config, steps=[(1, planted) for planted in WAITS])
    assert dict(zip(WAITS, map(list, found), strict=True)) == WAITS
    logged = config_of(tiny_data, tmp_path / "logged", **{"train.log_every": 3})
    unlogged, logging = ranks.call(
        waits_of_steps, config=logged, steps=[(1, NOTHING), (2, NOTHING)]
    )
    assert unlogged == []
    assert logging
