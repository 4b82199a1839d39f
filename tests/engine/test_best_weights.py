"""The weights that a run ends with: averaged, and of the best evaluation; and training that ends when none is better."""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rank_server import RankServer
from test_kill_and_continue import train_and_die
from tiny_runs import assert_same_content, config_of, lines_of, train_tiny
from torch import Tensor

from distbranch.config import load_config
from distbranch.data.shards import DatasetInfo, read_dataset
from distbranch.engine import session
from distbranch.engine.best_weights import choose_metric
from distbranch.errors import UsageError, UserError
from distbranch.launch import local
from distbranch.models.network import Network
from distbranch.tensor_files import load_tensors

EMA = 0.8
KEPT: dict[str, Any] = {
    "train.iterations": 18,
    "train.evaluate_every": 4,
    "train.ema": EMA,
    "train.keep": "best",
}
# Before, in and after a widening, a checkpoint, and an evaluation, the last one after all steps.
KILLS = (
    ("copy state", 2),
    ("build network", 2),
    ("evaluate", 3),
    ("half a tensor file", 4),
    ("evaluate", 2),
)


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_run_that_averages_and_keeps_the_best_ends_with_the_same_bits_whenever_it_is_killed(
    world_size: int, tiny_data: Path, ranks: RankServer, tmp_path: Path
) -> None:
    for name in ("undisturbed", "killed"):
        config = config_of(tiny_data, tmp_path / name, **KEPT, **{"launch.workers": world_size})
        for kill in KILLS if name == "killed" else ():
            ended = ranks.run(
                train_and_die, world_size=world_size, config=config, kill=kill, rank=0
            )
            assert ended[0].exit_code == -signal.SIGKILL, kill
        for one in ranks.call_all(train_tiny, world_size, config=config):
            assert one["end"] == "done", one["message"]
    assert_same_content(tmp_path / "killed" / "tiny", tmp_path / "undisturbed" / "tiny")
    killed, undisturbed = (
        list_evaluations(tmp_path / name / "tiny") for name in ("killed", "undisturbed")
    )
    assert killed == undisturbed


def list_evaluations(run: Path) -> list[tuple[str, int]]:
    """Which split was evaluated after which step."""
    lines = lines_of(run / "metrics.jsonl", "evaluation")
    return [(line["split"], line["iteration"]) for line in lines]


def checkpoint_of(run: Path, step: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    folder = run / "checkpoints" / f"step-{step:08d}"
    return load_tensors(folder / "model.safetensors"), load_tensors(folder / "average.safetensors")


@pytest.mark.parametrize("branches", ["copies", "delta"])
def test_the_average_is_that_of_its_definition_also_where_the_network_widens(
    branches: str, tiny_data: Path, ranks: RankServer, tmp_path: Path
) -> None:
    steps = 10
    changes = {"train.iterations": steps, "train.checkpoint_every": 1, "train.ema": EMA}
    changes |= {"train.keep_checkpoints": steps, "method.branches": branches}
    changes |= {"method.round_iterations": 4, "method.delta_rank": 1}
    config = config_of(tiny_data, tmp_path, **changes)
    assert ranks.call(train_tiny, config=config)["end"] == "done"
    run = tmp_path / "tiny"
    _, before = checkpoint_of(run, 1)
    num_widened = 0
    for step in range(2, steps + 1):
        model, average = checkpoint_of(run, step)
        decay = min(EMA, (1 + step) / (10 + step))
        for name, found in average.items():
            # A copy has the average of the branch that it was made from.
            origins = [before[name]] if name in before else find_siblings(name, before)
            num_widened += name not in before
            own = [decay * origin + (1 - decay) * model[name] for origin in origins]
            assert not own or any(torch.allclose(one, found, atol=1e-6) for one in own), name
        assert any("running_mean" in name for name in average)
        before = average
    assert num_widened
    served = load_tensors(run / "model" / "model.safetensors")
    for name, value in before.items():
        assert torch.equal(served[name], value), name


def find_siblings(name: str, tensors: dict[str, Tensor]) -> list[Tensor]:
    """Those of other branches of the unit, whose names differ in the number of the branch alone."""
    section, unit, _, rest = name.split(".", 3)
    return [
        value
        for other, value in tensors.items()
        if other.startswith(f"{section}.{unit}.") and other.split(".", 3)[3] == rest
    ]


@pytest.fixture
def plant_scores(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[float]], list[Any]]:
    """Gives the evaluations on val these accuracies, one after the other; returns the weights that are evaluated."""
    monkeypatch.setattr(local, "log_decision", lambda *_: None)
    real = session.evaluate_split

    def plant(accuracies: list[float]) -> list[Any]:
        seen: list[Any] = []

        def evaluate(
            network: Network, info: DatasetInfo, split: str, *others: Any, **named: Any
        ) -> dict[str, Any]:
            scores = real(network, info, split, *others, **named)
            if split == "val":
                seen.append({name: one.clone() for name, one in network.state_dict().items()})
                scores["mean"]["accuracy"] = accuracies[len(seen) - 1]
            return scores

        monkeypatch.setattr(session, "evaluate_split", evaluate)
        return seen

    return plant


def test_the_best_weights_since_the_last_widening_are_those_of_the_finished_run(
    tiny_data: Path, plant_scores: Callable[[list[float]], list[Any]], tmp_path: Path
) -> None:
    # A decision after step 7; evaluations after 6, 12, 18, 24, after the last step, and of what is kept.
    changes = {"train.iterations": 27, "train.evaluate_every": 6, "method.first_decision": 7}
    changes |= {"method.round_iterations": 7, "method.lowest": "fc6", "train.keep": "best"}
    seen = plant_scores([0.9, 0.5, 0.55, 0.6, 0.58, 0.6])
    config = config_of(tiny_data, tmp_path, **changes)
    assert train_tiny(config)["end"] == "done"
    run = tmp_path / "tiny"
    (decision,) = lines_of(run / "decisions.jsonl")
    assert decision["num_groups"] > 1
    served = load_tensors(run / "model" / "model.safetensors")
    assert served.keys() == seen[3].keys()
    assert all(torch.equal(value, seen[3][name]) for name, value in served.items())
    result = json.loads((run / "result.json").read_text())
    assert result["best"] == {"metric": "accuracy", "value": 0.6, "iteration": 24, "is_kept": True}
    assert result["metrics"]["val"]["mean"]["accuracy"] == 0.6
    ends = [line for line in lines_of(run / "metrics.jsonl", "evaluation") if "weights_of" in line]
    assert [(line["split"], line["weights_of"]) for line in ends] == [("val", 24), ("test", 24)]
    again = session.evaluate_run(run, "test")
    assert again["mean"] == result["metrics"]["test"]["mean"]


def test_the_last_weights_are_kept_where_none_were_better(
    tiny_data: Path, plant_scores: Callable[[list[float]], list[Any]], tmp_path: Path
) -> None:
    changes = {"train.iterations": 6, "train.evaluate_every": 2, "train.keep": "best"}
    seen = plant_scores([0.5, 0.7, 0.8])
    config = config_of(tiny_data, tmp_path, **changes, **{"method.name": "fixed"})
    assert train_tiny(config)["end"] == "done"
    served = load_tensors(tmp_path / "tiny" / "model" / "model.safetensors")
    assert all(torch.equal(value, seen[2][name]) for name, value in served.items())


@pytest.mark.parametrize(
    ("method", "ends_at"),
    [
        ({"method.name": "fixed"}, 9),  # best at 3, no better at 6 and 9
        # A decision against a split at 7: from then on patience counts.
        ({"method.alpha": 0.0, "method.unit_cost": 1.0}, 12),
    ],
)
def test_patience_ends_training_after_the_same_step_on_one_rank_and_on_two(
    method: dict[str, Any], ends_at: int, tiny_data: Path, ranks: RankServer, tmp_path: Path
) -> None:
    # Of three classes one is always among the first three, so no evaluation is better than the first.
    changes = {"train.evaluate_every": 3, "train.patience": 2, "train.keep_metric": "top3"}
    for world_size in (1, 2):
        folder = tmp_path / str(world_size)
        config = config_of(tiny_data, folder, **method, **changes, **{"launch.workers": world_size})
        for one in ranks.call_all(train_tiny, world_size, config=config):
            assert one["end"] == "done", one["message"]
        result = json.loads((folder / "tiny" / "result.json").read_text())
        assert (result["iterations"], result["ended_by"]) == (ends_at, "patience")
        assert result["best"] == {"metric": "top3", "value": 1.0, "iteration": 3, "is_kept": False}
        val = [("val", step) for step in range(3, ends_at + 1, 3)]
        assert list_evaluations(folder / "tiny") == [*val, ("test", ends_at)]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"train.keep": "best", "train.evaluate_every": 0}, "give train.evaluate_every"),
        ({"train.patience": 3, "train.evaluate_every": 0}, "give train.evaluate_every"),
        ({"train.ema": 1}, "train.ema: .*less than 1"),
        ({"train.ema": 0.9, "method": {"name": "adashare"}}, "leave out train.keep"),
    ],
)
def test_settings_that_could_not_act_are_refused(
    given: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=words):
        load_config(config_of("data", tmp_path, **given))


def test_the_metric_is_one_that_val_defines_the_first_if_none_is_given(
    tiny_data: Path, tmp_path: Path
) -> None:
    info = read_dataset(tiny_data)

    def choose(**given: Any) -> str:
        dotted = {f"train.{key}": value for key, value in ({"keep": "best"} | given).items()}
        return choose_metric(load_config(config_of(tiny_data, tmp_path, **dotted)).train, info)

    assert choose() == "accuracy"
    assert choose(keep_metric="loss") == "loss"
    with pytest.raises(UserError, match=r"found 'average_precison'. The nearest are average_prec"):
        choose(keep_metric="average_precison")
    with pytest.raises(UserError, match="found 'miou'"):
        choose(keep_metric="miou")
    del info.splits["val"]
    with pytest.raises(UserError, match="has no such split"):
        choose()


def test_a_metric_without_a_judge_is_told(tmp_path: Path) -> None:
    config = load_config(config_of("data", tmp_path, **{"train.keep_metric": "loss"}))
    assert any("train.keep_metric=loss" in sentence for sentence in config.ignored)
