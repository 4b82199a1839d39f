"""The benchmark of training compares two loops that train the same network."""

import pytest
import torch
from benchmark_runs import run_benchmark
from naive_loop import _start_process, bench_naive, list_hardware_precisions, make_naive_step
from planted_trees import grow_on_planted_statistics
from timed_step import make_batch, make_training_step

from distbranch.bench.candidates import NaiveNet, branch_counts, numbered_tasks
from distbranch.branching.tree import Split
from distbranch.config import MethodConfig, load_config
from distbranch.engine.artifact import Preprocessing
from distbranch.engine.distributed import Ranks
from distbranch.engine.trained_network import TrainedNetwork
from distbranch.errors import UserError
from distbranch.models.architecture import Architecture
from distbranch.models.network import Network
from distbranch.tasks import Task

TASKS = (Task("a.b"), Task("colour", "categorical", ("red", "green", "blue")), Task("c"))


def tree() -> Architecture:
    thin = Architecture.thin("vgg9", 8, (32, 40), TASKS)
    return thin.with_tree(thin.tree.split(Split(8, ((0, 2), (1,)))).split(Split(7, ((0,), (1,)))))


def test_a_naive_loop_trains_the_same_network_up_to_rounding() -> None:
    for optimizer in ("sgd", "adamw"):
        config = load_config(
            {
                "data": {"path": "random"},
                "train": {"batch_size": 8},
                "optim": {"name": optimizer, "lr": 0.01},
            }
        )
        net = TrainedNetwork(
            config,
            Ranks(0, 1, torch.device("cpu")),
            Preprocessing("simplejpeg", (32, 40), config.data.mean, config.data.std),
            is_final=True,
        )
        net.begin(tree(), config.seed)
        ours, naive = (
            make_training_step(net, make_batch(config, tree())),
            make_naive_step(config, tree()),
        )
        losses = [(float(ours()), float(naive())) for _ in range(6)]
        assert losses[-1][0] < losses[0][0]
        torch.testing.assert_close(*map(torch.tensor, zip(*losses, strict=True)), rtol=1e-3, atol=0)


def test_the_naive_network_gives_the_logits_of_ours() -> None:
    network = Network(tree()).eval()
    images = torch.randint(0, 256, (3, 3, 32, 40), dtype=torch.uint8)
    expected, found = network(images), NaiveNet(network).eval()(images)
    for name, logits in expected.items():
        torch.testing.assert_close(found[name].squeeze(1), logits, rtol=0, atol=1e-5)


def test_a_row_says_how_many_times_faster_and_how_far_apart() -> None:
    (row,) = bench_naive({"tree": tree()}, batch_size=8, num_blocks=1, precisions=["fp32"])
    assert (row.network, row.branches, row.threads) == ("tree", branch_counts(tree().tree), 1)
    assert row.branches == "1-1-1-1-1-1-2-2"
    assert 0 < row.low <= row.faster <= row.high
    assert row.difference < 1e-3


@pytest.mark.parametrize(
    ("in_hardware", "expected"), [(False, ("fp32",)), (True, ("fp32", "bf16"))]
)
def test_bf16_is_measured_where_it_is_in_hardware(
    in_hardware: bool, expected: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("naive_loop.has_bf16", lambda _: in_hardware)
    assert list_hardware_precisions() == expected


def test_a_process_that_dies_is_told_and_not_waited_for() -> None:
    nobody = None
    with (
        pytest.raises(UserError, match="A process of the benchmark ended by itself"),
        _start_process(print, nobody, nobody) as turn,  # type: ignore[arg-type]
    ):
        turn(1)


def test_a_tree_grows_on_planted_statistics_as_one_does_in_training() -> None:
    thin = Architecture.thin("vgg16", 16, (64, 48), numbered_tasks(24))
    method = MethodConfig(alpha=2.0, affinity="phi")
    counts = [
        int(count)
        for count in branch_counts(grow_on_planted_statistics(thin, method).tree).split("-")
    ]
    assert counts == sorted(counts)
    assert counts[-1] >= 8
    assert branch_counts(
        grow_on_planted_statistics(thin, replace_alpha(method, 0.0)).tree
    ) == "-".join(["1"] * 15)


def replace_alpha(method: MethodConfig, alpha: float) -> MethodConfig:
    return method.model_copy(update={"alpha": alpha})


def test_what_cannot_be_trained_is_refused() -> None:
    ended = run_benchmark("bench_train.py", "--threads", "0")
    assert ended.code == 2
    assert "--threads should be whole numbers from 1 on" in ended.err
