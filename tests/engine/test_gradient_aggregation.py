"""Gradients of tasks become one as TorchJD makes them of the whole batch, on however many ranks, in a tree and with a policy."""

import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rank_server import RankServer
from test_kill_and_continue import train_and_die
from test_norm_over_ranks import use_double_precision
from tiny_runs import TASKS, assert_same_content, config_of, train_tiny
from torch import Tensor

from distbranch.config import load_config
from distbranch.data.mixture import read_data
from distbranch.engine.distributed import Ranks
from distbranch.engine.gradient_aggregation import GradientAggregation, group_by_tasks
from distbranch.engine.initialisation import first_architecture
from distbranch.engine.process_group import join_ranks
from distbranch.engine.training_state import TrainingState
from distbranch.engine.training_step import TrainingStep
from distbranch.errors import UsageError, UserError

AGGREGATORS = ("pcgrad", "cagrad", "mgda", "upgrad", "aligned-mtl", "imtl-g", "gradvac")
WEIGHTINGS = ("uncertainty", "dwa", "famo", "imtl-l", "stch")
ALONE = Ranks(0, 1, torch.device("cpu"))
NAMES = [task.name for task in TASKS]
# Three branches at the top, two below them, one for all below those; a branch of a single task.
TREE = {
    "method": {
        "name": "fixed",
        "groups": {
            "fc6": [NAMES[:3], NAMES[3:7], NAMES[7:]],
            "conv4_1": [NAMES[:3], NAMES[3:]],
        },
    },
    "optim": {"name": "sgd", "lr": 0.01, "schedule": "constant"},
}
SKIPS = [[1, 1, 1, 1, 1, 1, 1, 1], [1, 0, 1, 1, 0, 1, 1, 1], [1, 1, 1, 0, 1, 1, 0, 1]]


def make_state(config: Mapping[str, Any], ranks: Ranks = ALONE) -> TrainingState:
    loaded = load_config(config)
    info = read_data(loaded.data)
    state = TrainingState(loaded, ranks, info, [{"precision": loaded.train.precision}])
    architecture = first_architecture(loaded, info)
    if loaded.model.backbone == "resnet18":
        policy = [SKIPS[task % len(SKIPS)] for task in range(len(TASKS))]
        architecture = architecture.with_policy(tuple(tuple(map(bool, row)) for row in policy))
    state.net.begin(architecture, seed=1)
    return state


def make_batch(num_images: int = 12) -> tuple[Tensor, Tensor]:
    """Images and labels with gaps; nobody is labelled for the third task."""
    generator = torch.Generator().manual_seed(0)
    shape = (num_images, 3, 32, 32)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 2, (num_images, len(TASKS)), generator=generator).float()
    labels[:5, 4] = torch.nan
    labels[:, 2] = torch.nan
    return images, labels


def train_steps(state: TrainingState, num_steps: int) -> dict[str, Tensor]:
    """Steps on one batch, of which this rank has its share; the gradients of the first and the weights after the last."""
    step, ranks = TrainingStep(state), state.ranks
    images, labels = make_batch()
    first, last = (rank * len(images) // ranks.world_size for rank in (ranks.rank, ranks.rank + 1))
    found = {}
    for _ in range(num_steps):
        step.train(images[first:last], labels[first:last], torch.arange(first, last))
        step.wait_for_step_sums()
        state.progress.iteration += 1
        for name, parameter in state.net.network.named_parameters():
            assert parameter.grad is not None
            found.setdefault(f"{name}:gradient", parameter.grad.clone())
    state.verify("the end of a test")
    found |= {name: value.clone() for name, value in state.net.network.state_dict().items()}
    return found | state.net.weighting.state_tensors()  # what aggregators remember is on rank 0


def train_on_ranks(config: Mapping[str, Any], losses: list[dict[str, str]]) -> list[Any]:
    """A job: for each of these settings of `loss` what `train_steps` found, in double precision."""
    use_double_precision()
    found = []
    with join_ranks(load_config(config).launch, lambda: False) as ranks:
        for loss in losses:
            state = make_state({**config, "loss": loss}, ranks)
            tensors = train_steps(state, 1)
            found.append({name: value.numpy() for name, value in tensors.items()})
    return found


@pytest.mark.parametrize(
    ("backbone", "norm_batch", "losses"),
    [
        (
            "vgg9",
            6,
            [
                *({"aggregation": name} for name in AGGREGATORS),
                {"weighting": "uncertainty"},
                {"aggregation": "mgda", "weighting": "famo"},
            ],
        ),
        ("resnet18", 3, [{"aggregation": name} for name in AGGREGATORS[:6]]),
    ],
    ids=["tree", "policy"],
)
def test_two_and_four_ranks_train_with_the_gradients_of_one_process(
    backbone: str,
    norm_batch: int,
    losses: list[dict[str, str]],
    tiny_data: Path,
    tmp_path: Path,
    ranks: RankServer,
) -> None:
    """Of four ranks two normalise their images together in the tree."""
    changes = TREE if backbone == "vgg9" else {"method.name": "fixed", "optim": TREE["optim"]}
    changes = {**changes, "model": {"backbone": backbone, "width": 2}}
    changes["train.norm_batch"] = norm_batch
    results = {}
    for world_size in (1, 2, 4):
        config = config_of(tiny_data, tmp_path, **changes, **{"launch.workers": world_size})
        results[world_size] = ranks.call_all(
            train_on_ranks, world_size, config=config, losses=losses
        )
    (expected,) = results.pop(1)
    for found in [*results[2], *results[4]]:
        for loss, one, reference in zip(losses, found, expected, strict=True):
            for name, value in reference.items():
                np.testing.assert_allclose(
                    one[name], value, rtol=1e-5, atol=1e-7, err_msg=f"{loss} {name}"
                )


# ---- against TorchJD as its users call it


@pytest.mark.parametrize("name", ["pcgrad", "cagrad", "mgda", "upgrad", "aligned-mtl", "imtl-g"])
def test_the_gradient_of_every_branch_is_what_torchjd_makes_of_the_rows_of_its_tasks(
    name: str, tiny_data: Path, tmp_path: Path
) -> None:
    from torchjd import aggregation as of

    makers = {
        "pcgrad": of.PCGrad,
        "cagrad": lambda: of.CAGrad(c=0.4),
        "mgda": of.MGDA,
        "upgrad": of.UPGrad,
        "aligned-mtl": of.AlignedMTL,
        "imtl-g": of.IMTLG,
    }
    state = make_state(config_of(tiny_data, tmp_path, **TREE, **{"loss.aggregation": name}))
    images, labels = make_batch()
    network = state.net.network.double()
    outputs = network(images, flat=True)
    assert isinstance(outputs, Tensor)
    losses = network.tasks.compute_losses(outputs, labels).sum(dim=0) / len(images)
    expected = {}
    for group in group_by_tasks(network):
        tasks = [task for task in group.tasks if task != 2]  # which has no label
        rows = []
        for task in tasks or [None]:
            loss = losses.sum() if task is None else losses[task]
            gradients = torch.autograd.grad(loss, group.parameters, retain_graph=True)
            rows.append(torch.cat([gradient.flatten() for gradient in gradients]))
        scale = 1 if name == "pcgrad" or len(rows) == 1 else len(rows)
        total = rows[0] if len(rows) == 1 else scale * makers[name]()(torch.stack(rows))
        sizes = [parameter.numel() for parameter in group.parameters]
        for parameter, part in zip(group.parameters, total.split(sizes), strict=True):
            expected[parameter] = part.view_as(parameter)

    step = TrainingStep(state)
    step._forward_and_backward(
        step._divide_batch(images, labels, torch.arange(len(images))), labels
    )
    # The order in which PCGrad goes through the tasks is drawn, and matters where several are in conflict.
    tolerance = 0.2 if name == "pcgrad" else 1e-6
    for parameter, value in expected.items():
        error = (parameter.grad - value).norm() / value.norm()
        assert error < tolerance


def test_the_weights_of_a_tree_belong_to_the_tasks_of_their_branch(
    tiny_data: Path, tmp_path: Path
) -> None:
    state = make_state(config_of(tiny_data, tmp_path, **TREE))
    names = {parameter: name for name, parameter in state.net.network.named_parameters()}
    tasks_of = {
        names[parameter]: group.tasks
        for group in group_by_tasks(state.net.network)
        for parameter in group.parameters
    }
    assert tasks_of["units.conv1.0.product.weight"] == tuple(range(8))
    assert tasks_of["units.conv4_1.1.product.weight"] == (3, 4, 5, 6, 7)
    assert sorted(tasks_of[f"units.fc6.{copy}.product.weight"] for copy in range(3)) == [
        (0, 1, 2),
        (3, 4, 5, 6),
        (7,),
    ]
    assert tasks_of["heads.weight"] == tasks_of["heads.bias"] == ()
    assert len(tasks_of) == len(names)


@pytest.mark.parametrize("name", ["pcgrad", "cagrad", "upgrad", "aligned-mtl", "gradvac"])
def test_rows_that_do_not_meet_are_added_and_one_without_length_changes_nothing(name: str) -> None:
    aggregation = GradientAggregation(name, seed=0)
    weights = aggregation._weigh_labelled(
        (0, 1, 4, 6), torch.diag(torch.tensor([1.0, 1, 0, 1])).double()
    )
    kept = weights[[0, 1, 3]]
    assert weights[2] == 0
    torch.testing.assert_close(kept / kept.mean(), torch.ones(3).double(), atol=1e-3, rtol=0)
    if name != "cagrad":  # which goes beyond the mean
        torch.testing.assert_close(kept, torch.ones(3).double(), atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", ["imtl-g", "gradvac", "nash-mtl"])
def test_passes_of_a_step_and_one_task_alone_are_what_they_are_without_them(
    name: str, tiny_data: Path, tmp_path: Path
) -> None:
    """Rows are added over passes; what is its own task's alone has the plain gradient."""
    found = []
    for accumulate in (1, 3):
        changes = {"train.norm_batch": 4, "train.accumulate": accumulate, "loss.aggregation": name}
        found.append(train_steps(make_state(config_of(tiny_data, tmp_path, **TREE, **changes)), 1))
    config = config_of(tiny_data, tmp_path, **TREE, **{"train.norm_batch": 4})
    plain = train_steps(make_state(config), 1)
    for key, value in found[0].items():
        torch.testing.assert_close(found[1][key], value, rtol=1e-4, atol=1e-6)
    for key in ("heads.weight:gradient", "units.fc6.2.product.weight:gradient"):
        torch.testing.assert_close(found[0][key], plain[key], rtol=1e-5, atol=1e-7)


def test_bf16_leaves_rows_in_full_precision(tiny_data: Path, tmp_path: Path) -> None:
    changes = {"train.precision": "bf16", "loss.aggregation": "upgrad"}
    state = make_state(config_of(tiny_data, tmp_path, **TREE, **changes))
    found = train_steps(state, 2)
    assert all(value.isfinite().all() for value in found.values())
    assert found["units.conv1.0.product.weight:gradient"].dtype == torch.float32


# ---- runs


@pytest.mark.parametrize(
    ("loss", "world_size"),
    [
        *(({"weighting": name, "window": 3}, 1) for name in WEIGHTINGS),
        ({"aggregation": "nash-mtl"}, 1),
        ({"aggregation": "gradvac", "weighting": "famo"}, 2),
        ({"aggregation": "pcgrad", "weights": {"cell-1": 2.5}}, 2),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else str(value),
)
def test_a_killed_run_is_resumed_with_the_same_bits(
    loss: dict[str, Any], world_size: int, tiny_data: Path, tmp_path: Path, ranks: RankServer
) -> None:
    """It grows on the way: what is remembered outlives the network, which all ranks are proven to share at every decision."""
    changes: dict[str, Any] = {
        "launch.workers": world_size,
        "loss": loss,
        "train.iterations": 11,
        "train.evaluate_every": 0,
        "train.checkpoint_every": 4,
        "method.round_iterations": 5,
    }
    kill = ("step", 8)
    for folder in ("undisturbed", "killed"):
        config = config_of(tiny_data, tmp_path / folder, **changes)
        if folder == "killed":
            ended = ranks.run(
                train_and_die, world_size=world_size, config=config, kill=kill, rank=0
            )
            assert ended[0].exit_code == -signal.SIGKILL
        for one in ranks.call_all(train_tiny, world_size, config=config):
            assert one["end"] == "done", one["message"]
    assert_same_content(tmp_path / "killed" / "tiny", tmp_path / "undisturbed" / "tiny")


# ---- what is refused


@contextmanager
def refusal(*words: str) -> Iterator[None]:
    with pytest.raises(UserError) as raised:
        yield
    assert all(word in str(raised.value) for word in words), str(raised.value)
    assert "\n" not in str(raised.value)


def test_what_cannot_be_aggregated_is_refused_in_one_sentence(tmp_path: Path) -> None:
    def load(**changes: Any) -> None:
        load_config(config_of("data", tmp_path, **changes))

    with refusal("pcgrad", "upgrad", "loss.aggregation"):
        load(**{"loss.aggregation": "pcgrade"})
    with refusal("loss.aggregation=mgda", "search"):
        load(
            **{"method": {"name": "adashare"}, "model.backbone": "resnet18"},
            **{"loss.aggregation": "mgda"},
        )
    with refusal("method.name=independent", "has none"):
        load(**{"method": {"name": "independent"}, "loss.aggregation": "mgda"})
    with refusal("train.compile"):
        load(**{"train.compile": True, "loss.aggregation": "mgda"})


def test_what_is_not_installed_is_told_with_the_extra_that_has_it(
    monkeypatch: pytest.MonkeyPatch, tiny_data: Path, tmp_path: Path
) -> None:
    import sys

    import torchjd._mixins

    with monkeypatch.context() as without_solvers:
        without_solvers.setattr(torchjd._mixins, "find_spec", lambda _: None)
        with refusal("loss.aggregation=cagrad", "distbranch[weighting]"):
            GradientAggregation("cagrad", seed=0)
    monkeypatch.setitem(sys.modules, "torchjd", None)
    for key, value in (("aggregation", "upgrad"), ("weighting", "famo")):
        ended = train_tiny(config_of(tiny_data, tmp_path, **{f"loss.{key}": value}))
        assert ended["end"] == "failed"
        assert f"loss.{key}={value}" in ended["message"]
        assert "distbranch[weighting]" in ended["message"]
    assert not (tmp_path / "tiny").exists()


def test_a_search_may_not_weigh_its_losses_by_themselves() -> None:
    with pytest.raises(UsageError, match=r"loss\.weighting=dwa"):
        load_config({}, ["method.name=adashare", "model.backbone=resnet18", "loss.weighting=dwa"])
