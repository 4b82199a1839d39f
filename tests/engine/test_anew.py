"""A run that begins anew: a scout, one decision, and the training of the tree, to the same bits however it is interrupted."""

import json
import logging
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
from rank_server import RankServer
from tiny_runs import (
    anew_config,
    assert_same_content,
    config_of,
    content_of,
    lines_of,
    train_tiny,
)

from distbranch.branching.tree import Tree
from distbranch.config import load_config
from distbranch.config.unread import keys_without_effect
from distbranch.data.shards import read_dataset
from distbranch.engine.block_decision import decide_block, decide_layers
from distbranch.engine.initialisation import order_by_number
from distbranch.engine.run_directory import RunDirectory
from distbranch.engine.run_start import begin_run, write_config
from distbranch.engine.scout import check_scout, make_scout_config
from distbranch.errors import UsageError, UserError
from distbranch.launch.dry_run import plan_run
from distbranch.launch.scaling import Link
from distbranch.models.architecture import Architecture
from distbranch.report.console import describe_scout
from distbranch.report.page import render_run
from distbranch.report.pictures import list_pictures
from distbranch.report.run_files import read_run
from distbranch.report.tensorboard import log_decision
from distbranch.tasks import Task


def train_and_die(config: Mapping[str, Any], during: str, occurrence: int) -> dict[str, Any]:
    """A job: train, and be killed at this occurrence of an event."""
    from distbranch.engine import scout, trainer

    owner, name = {
        "step": (trainer.Trainer, "_train_step"),
        "end": (trainer.Trainer, "_write_end"),
        "measurement": (scout, "measure_affinity"),
        "matrices": (scout.np, "savez"),
        "decision": (scout, "write_atomically"),
    }[during]
    real = getattr(owner, name)
    left = occurrence

    def dying(*arguments: Any, **named: Any) -> Any:
        nonlocal left
        left -= 1
        if not left:
            if during == "step":
                arguments[0].store.finish_checkpoint()
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **named)

    setattr(owner, name, dying)
    return train_tiny(config)


def ask_to_stop_in_step(config: Mapping[str, Any], step: int) -> dict[str, Any]:
    """A job: train, with a stop word that appears during one of the steps."""
    from distbranch.engine.trainer import Trainer
    from distbranch.launch import stopping

    stopping.SECONDS_BETWEEN_LOOKS = 0
    real, word = Trainer._train_step, load_config(config).run_directory / "stop"

    def train_step(self: Trainer) -> None:
        if self.progress.iteration == step:
            word.touch()
        real(self)

    Trainer._train_step = train_step  # type: ignore[method-assign]
    return train_tiny(config)


@pytest.fixture(scope="module")
def anew(
    tiny_data: Path, ranks: RankServer, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[int], Path]:
    """The directory of a run on so many ranks that nothing disturbed."""
    runs: dict[int, Path] = {}

    def run_on(world_size: int) -> Path:
        if world_size not in runs:
            folder = tmp_path_factory.mktemp(f"anew-{world_size}")
            config = anew_config(tiny_data, folder, **{"launch.workers": world_size})
            for ended in ranks.call_all(train_tiny, world_size, config=config):
                assert ended["end"] == "done", ended["message"]
            runs[world_size] = folder / "tiny"
        return runs[world_size]

    return run_on


def assert_same_run(found: Path, expected: Path) -> None:
    assert_same_content(found / "scout", expected / "scout")
    assert_same_content(found, expected)


def test_the_tree_is_trained_to_the_bits_of_a_fixed_run_of_the_decided_groups_after_a_thin_scout(
    anew: Callable[[int], Path], tiny_data: Path, ranks: RankServer, tmp_path: Path
) -> None:
    (decision,) = lines_of(anew(1) / "decisions.jsonl")
    assert decision["num_groups"] > 1
    groups = {decision["layer_name"]: decision["tasks"]}
    fixed = {"train.iterations": 12, "train.evaluate_every": 0, "optim.warmup": 3}
    fixed["method"] = {"name": "fixed", "groups": groups}
    scout = {"train.iterations": 8, "train.evaluate_every": 0, "optim.warmup": 2}
    scout |= {"method": {"name": "fixed"}, "run.name": "scout"}
    found = {"tiny": content_of(anew(1)), "scout": content_of(anew(1) / "scout")}
    assert found["tiny"]["result"].pop("scout")["steps"] == 8
    for changes in (fixed, scout):
        config = config_of(tiny_data, tmp_path, **changes)
        assert ranks.call(train_tiny, config=config)["end"] == "done"
    for name, content in found.items():
        expected = content_of(tmp_path / name)
        for one in (content, expected):
            del one["decisions"], one["matrices"], one["result"]["method"]
        assert content == expected


# In the scout, as it ends, between scout and decision, in the decision, as it is written, and twice in the tree.
KILLS = (
    *(("step", 7), ("end", 1), ("measurement", 1), ("matrices", 1), ("decision", 1)),
    *(("step", 2), ("step", 9)),
)


@pytest.mark.parametrize(("world_size", "kills"), [(1, KILLS), (2, KILLS[::3])])
def test_a_run_killed_in_every_part_ends_with_the_same_bits(
    world_size: int,
    kills: Sequence[tuple[str, int]],
    anew: Callable[[int], Path],
    tiny_data: Path,
    ranks: RankServer,
    tmp_path: Path,
) -> None:
    config = anew_config(tiny_data, tmp_path, **{"launch.workers": world_size})
    for during, occurrence in kills:
        ended = ranks.run(
            train_and_die,
            world_size=world_size,
            config=config,
            during=during,
            occurrence=occurrence,
        )
        assert ended[0].exit_code == -signal.SIGKILL, during
    for one in ranks.call_all(train_tiny, world_size, config=config):
        assert one["end"] == "done", one["message"]
    assert_same_run(tmp_path / "tiny", anew(world_size))


def test_two_ranks_decide_as_one_does(
    anew: Callable[[int], Path], tiny_data: Path, ranks: RankServer, tmp_path: Path
) -> None:
    changes = {"method.scout": str(anew(1) / "scout"), "method.scout_iterations": None}
    changes |= {"train.iterations": 2, "optim.warmup": 0, "launch.workers": 2}
    for ended in ranks.call_all(train_tiny, 2, config=anew_config(tiny_data, tmp_path, **changes)):
        assert ended["end"] == "done", ended["message"]
    runs = (anew(1), tmp_path / "tiny")
    one, two = (lines_of(run / "decisions.jsonl")[0] for run in runs)
    assert one["groups"] == two["groups"]
    matrices = [np.load(run / one["affinity_file"], allow_pickle=False) for run in runs]
    for name in matrices[0]:
        np.testing.assert_allclose(matrices[1][name], matrices[0][name], rtol=1e-9)


def test_a_scout_decides_by_any_kind_of_affinity(
    anew: Callable[[int], Path], tiny_data: Path, ranks: RankServer, tmp_path: Path
) -> None:
    for kind in ("phi", "gradient-cosine"):
        changes = {"method.scout": str(anew(1) / "scout"), "method.scout_iterations": None}
        changes |= {"method.affinity": kind, "run.name": kind, "train.iterations": 2}
        config = anew_config(tiny_data, tmp_path, **{**changes, "optim.warmup": 0})
        assert ranks.call(train_tiny, config=config)["end"] == "done"
        (decision,) = lines_of(tmp_path / kind / "decisions.jsonl")
        assert decision["affinity_kind"] == kind
        assert decision["affinity_file"] == "affinity/round-00.npz"
        with np.load(tmp_path / kind / decision["affinity_file"], allow_pickle=False) as matrices:
            assert matrices[kind].shape == (8, 8)


def test_layers_that_are_grouped_one_by_one_make_the_tree_of_a_fixed_run_however_it_was_killed(
    anew: Callable[[int], Path], tiny_data: Path, ranks: RankServer, tmp_path: Path
) -> None:
    changes = {"method.scout": str(anew(1) / "scout"), "method.scout_iterations": None}
    changes |= {"method.group_layers": "one-by-one", "method.split_from": "conv3_1"}
    config = anew_config(tiny_data, tmp_path / "one-by-one", **changes)
    for during, occurrence in (("matrices", 2), ("decision", 1), ("step", 3)):
        killed = ranks.run(
            train_and_die, world_size=1, config=config, during=during, occurrence=occurrence
        )
        assert killed[0].exit_code == -signal.SIGKILL, during
    assert ranks.call(train_tiny, config=config)["end"] == "done"

    run = tmp_path / "one-by-one" / "tiny"
    decisions = lines_of(run / "decisions.jsonl")
    assert len({line["layer"] for line in decisions}) == len(decisions) > 1
    assert len({line["affinity_file"] for line in decisions}) == len(decisions)
    # All are of one round, and all are shown.
    assert [line["layer"] for line in read_run(run).decisions] == [
        line["layer"] for line in decisions
    ]
    for draw in list_pictures(read_run(run)).values():
        assert draw().axes
    for decision in decisions:
        log_decision(MagicMock(), decision, run)
    groups = {line["layer_name"]: line["tasks"] for line in decisions}
    fixed = {"train.iterations": 12, "train.evaluate_every": 0, "optim.warmup": 3}
    fixed["method"] = {"name": "fixed", "groups": groups}
    assert ranks.call(train_tiny, config=config_of(tiny_data, tmp_path, **fixed))["end"] == "done"
    found, expected = content_of(run), content_of(tmp_path / "tiny")
    found["result"].pop("scout")
    for one in (found, expected):
        del one["decisions"], one["matrices"], one["result"]["method"]
    assert found == expected


def test_a_stop_word_in_the_scout_stops_the_run_which_is_then_resumed_to_the_same_bits(
    anew: Callable[[int], Path], tiny_data: Path, ranks: RankServer, tmp_path: Path
) -> None:
    config = anew_config(tiny_data, tmp_path)
    stopped = ranks.call(ask_to_stop_in_step, config=config, step=3)
    assert stopped["end"] == "stopped"
    assert "of 8; everything is saved" in stopped["message"]
    resumed = ranks.call(train_tiny, config=config)
    kinds = [event["event"]["kind"] for event in resumed["events"] if event["kind"] == "scout"]
    assert "resumed" in kinds
    assert_same_run(tmp_path / "tiny", anew(1))


def test_a_scout_that_is_given_decides_as_if_it_had_been_trained_and_its_cost_counts(
    anew: Callable[[int], Path], tiny_data: Path, ranks: RankServer, tmp_path: Path
) -> None:
    given = {"method.scout": str(anew(1) / "scout"), "method.scout_iterations": None}
    config = anew_config(tiny_data, tmp_path, **given)
    assert ranks.call(train_tiny, config=config)["end"] == "done"
    found, expected = content_of(tmp_path / "tiny"), content_of(anew(1))
    assert not (tmp_path / "tiny" / "scout").exists()
    for content in (found, expected):
        for part in (*content["decisions"], content["result"]):
            del part["scout"]["directory"]
    assert found == expected
    scout, tree = expected["result"]["scout"], expected["result"]
    share = 8 * scout["multiply_adds"] / (12 * tree["multiply_adds"])
    assert scout["cost_in_all"] == pytest.approx(1 + share)


def test_a_permuted_run_has_the_decided_tree_with_other_tasks(
    anew: Callable[[int], Path], tiny_data: Path, ranks: RankServer, tmp_path: Path
) -> None:
    changes = {"method.scout": str(anew(1) / "scout"), "method.scout_iterations": None}
    changes |= {"method.permutation": 5, "train.iterations": 2, "optim.warmup": 0}
    config = anew_config(tiny_data, tmp_path, **changes)
    assert ranks.call(train_tiny, config=config)["end"] == "done"
    learned, permuted = (
        Tree.from_json(json.loads((run / "tree.json").read_text())["tree"])
        for run in (anew(1), tmp_path / "tiny")
    )
    assert permuted == learned.permuted(order_by_number(5, 8)) != learned
    lines = [lines_of(run / "decisions.jsonl")[0] for run in (anew(1), tmp_path / "tiny")]
    assert lines[0]["groups"] == lines[1]["groups"]
    assert [line["permutation"] for line in lines] == [None, 5]


def test_the_page_of_a_run_and_its_last_lines_show_both_costs(
    anew: Callable[[int], Path],
) -> None:
    page = render_run(read_run(anew(1)), {})
    scout = json.loads((anew(1) / "result.json").read_text())["scout"]
    assert f"<b>{scout['cost_in_all']:.2f} times</b>" in page
    assert "multiply-adds per image of the scout, in 8 iterations" in page
    assert "conv4_1 and above" in page
    last = describe_scout(scout)
    assert last.startswith("scout: 8 steps at ")
    assert f"{scout['cost_in_all']:.2f} times" in last


# ---- what is decided


def thin_network() -> Architecture:
    tasks = tuple(Task(f"task-{number}") for number in range(6))
    return Architecture.thin("vgg9", 4, (32, 32), tasks)


def planted_affinity() -> np.ndarray:
    affinity = np.random.default_rng(0).uniform(0.3, 0.7, (6, 6))
    affinity = (affinity + affinity.T) / 2
    np.fill_diagonal(affinity, 1.0)
    return affinity


@pytest.mark.parametrize("limit", ["weights", "multiply_adds"])
def test_the_largest_tree_within_a_budget_is_taken(tmp_path: Path, limit: str) -> None:
    thin = thin_network()
    one = getattr(thin.cost(), limit)
    method = {"method.split_from": "conv3_1", "method.max_branches": None}
    config = load_config(anew_config("data", tmp_path, **method))
    free = decide_block({3: planted_affinity()}, thin, config)
    (three,) = [block[limit] for block in free["candidates"] if block["num_groups"] == 3]
    assert three > one
    for budget, num_groups in ((three, 3), (three - 1, 2), (10 * three, 6)):
        limited = load_config(config, {"method.budget": {limit: budget}})
        found = decide_block({3: planted_affinity()}, thin, limited)
        assert found["num_groups"] == num_groups
        assert found["priced_by"] == "budget"
        assert max(block[limit] for block in found["candidates"]) <= budget


def test_each_layer_is_grouped_by_its_own_affinity_from_the_top_down_to_where_none_divides(
    tmp_path: Path,
) -> None:
    def plant(*groups: Sequence[int]) -> np.ndarray:
        affinity = np.full((6, 6), 0.1)
        for group in groups:
            affinity[np.ix_(group, group)] = 1.0
        np.fill_diagonal(affinity, 1.0)
        return affinity

    pairs = plant((0, 1), (2, 3), (4, 5))
    affinities = {8: pairs, 7: pairs, 6: plant((0, 1, 2, 3), (4, 5)), 5: plant(range(6))}
    affinities[4] = pairs  # which is not looked at, for nothing has divided above it
    method = {"method.group_layers": "one-by-one", "method.split_from": "conv3_2"}
    method |= {"method.max_branches": None, "method.alpha": 0.3}
    config = load_config(anew_config("data", tmp_path, **method))
    found = decide_layers(affinities, thin_network(), config)
    assert [(line["layer_name"], line["num_groups"]) for line in found] == [
        ("fc6", 3), ("fc5", 3), ("conv4_2", 2), ("conv4_1", 1)
    ]  # fmt: skip
    assert found[2]["tasks"] == [["task-0", "task-1", "task-2", "task-3"], ["task-4", "task-5"]]


def test_a_budget_too_small_for_two_branches_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = load_config(anew_config("data", tmp_path, **{"method.budget": {"weights": 10}}))
    with caplog.at_level(logging.WARNING):
        found = decide_block({2: planted_affinity(), 6: planted_affinity()}, thin_network(), config)
    assert found["num_groups"] == 1
    (message,) = caplog.messages
    assert "leaves no room for a second branch" in message
    assert "weights and" in message


def test_a_budget_too_small_for_the_network_without_branches_is_refused_before_a_scout_is_trained(
    tiny_data: Path, tmp_path: Path
) -> None:
    config = anew_config(tiny_data, tmp_path, **{"method.budget": {"weights": 10}})
    ended = train_tiny(config)
    assert "room for the network without branches" in ended["message"]
    assert not (tmp_path / "tiny" / "scout").exists()


def test_a_run_that_died_before_the_first_step_of_its_scout_makes_way_for_another_configuration(
    tiny_data: Path, tmp_path: Path
) -> None:
    config = load_config(anew_config(tiny_data, tmp_path))
    begin_run(config)
    scout = RunDirectory(tmp_path / "tiny" / "scout")
    scout.path.mkdir()
    write_config(scout, make_scout_config(config))
    ended = train_tiny(anew_config(tiny_data, tmp_path, **{"optim.lr": 0.02}))
    assert ended["end"] == "done", ended["message"]


# ---- what is asked for


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"begin": "grown"}, "scout_iterations and split_from would be ignored"),
        ({"begin": "grown", "split_from": None}, "scout_iterations would be ignored"),
        ({"name": "fixed"}, "use method.name=branching with it, found fixed"),
        ({"scout": "runs/thin"}, "leave one of them out"),
        ({"group_layers": "one-by-one", "budget": {"weights": 9}}, "to the highest layer alone"),
        ({"budget": {}}, "a number for `weights`, `multiply_adds` or both"),
        ({"budget": {"weights": 0}}, "method.budget.weights"),
    ],
)
def test_what_would_be_ignored_or_cannot_be_is_refused(
    changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    dotted = {f"method.{key}": value for key, value in changes.items()}
    with pytest.raises(UsageError, match=words):
        load_config(anew_config("data", tmp_path, **dotted))


def test_settings_of_rounds_and_widening_and_under_a_budget_of_prices_are_told_and_make_no_other_run(
    tmp_path: Path,
) -> None:
    given = {"method.round_iterations": 5, "method.alpha": 2.0, "optim.when_widened": "continue"}
    config = load_config(anew_config("data", tmp_path, **given))
    of_rounds, of_widening = config.ignored
    assert "method.round_iterations=5 has no effect" in of_rounds
    assert "optim.when_widened=continue has no effect" in of_widening
    config = load_config(config, {"method.budget": {"weights": 9}})
    told = " ".join(config.ignored)
    assert "method.alpha=2.0 has no effect: what a tree may cost is given by method.budget" in told
    assert {"method.alpha", "method.unit_cost", "method.decay"} <= keys_without_effect(config)
    assert not load_config(anew_config("data", tmp_path)).ignored


def test_the_schedule_of_a_scout_is_that_of_the_run_in_proportion(tmp_path: Path) -> None:
    whole = {"train.iterations": 1000, "optim.warmup": 100, "optim.decay_every": 300}
    config = load_config(anew_config("data", tmp_path, **whole, **{"method.scout_iterations": 500}))
    scout = make_scout_config(config)
    assert (scout.train.iterations, scout.optim.warmup, scout.optim.decay_every) == (500, 50, 150)
    assert scout.run_directory == config.run_directory / "scout"
    assert scout.method.keeps_thin
    full = make_scout_config(load_config(config, {"method.scout_iterations": None}))
    assert full.train == config.train
    assert full.optim == config.optim


def test_a_unit_that_is_not_there_is_told_with_those_that_are(
    tiny_data: Path, tmp_path: Path
) -> None:
    config = load_config(anew_config(tiny_data, tmp_path, **{"method.split_from": "conv9_9"}))
    with pytest.raises(UserError, match=r"found conv9_9\. Its units are conv1, conv2, conv3_1"):
        check_scout(config, read_dataset(str(tiny_data)))


@pytest.mark.parametrize(
    ("directory", "changes", "words"),
    [
        ("", {}, "should be a thin network, in which all tasks share every layer"),
        ("nothing", {}, "should be a finished run, found none"),
        ("scout", {"model.backbone": "vgg16"}, "should have the units of model.backbone=vgg16"),
        ("scout", {"data.mean": [0.5, 0.5, 0.5]}, "another data.mean or data.std"),
    ],
)
def test_a_scout_that_does_not_fit_is_told(
    directory: str,
    changes: dict[str, Any],
    words: str,
    anew: Callable[[int], Path],
    tiny_data: Path,
    tmp_path: Path,
) -> None:
    given = {"method.scout": str(anew(1) / directory), "method.scout_iterations": None}
    config = load_config(anew_config(tiny_data, tmp_path, **given, **changes))
    with pytest.raises(UserError, match=words):
        check_scout(config, read_dataset(str(tiny_data)))


def test_a_dry_run_tells_that_a_scout_comes_first_and_what_it_costs(
    tiny_data: Path, tmp_path: Path
) -> None:
    lines = dict(plan_run(load_config(anew_config(tiny_data, tmp_path)), Link()).lines)
    assert "trained first, 8 steps of 12 images at" in lines["scout"]
    assert lines["multiply-adds per image"] in lines["scout"]
