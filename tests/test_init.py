"""`distbranch init`: recipes are those that were measured, name their reasons, and train; the configs of the package are found by name."""

import csv
from pathlib import Path
from typing import Any

import pytest
import yaml
from rank_server import RankServer
from tiny_runs import train_tiny
from tiny_world import assert_one_sentence, run_command

from distbranch.config import load_config
from distbranch.config.packaged import list_packaged
from distbranch.config.sweep import load_sweep
from distbranch.data.recipe import choose_recipe
from distbranch.data.shards import DatasetInfo, SplitInfo
from distbranch.errors import UsageError
from distbranch.launch.dry_run import plan_run
from distbranch.launch.scaling import Link
from distbranch.tasks import Task

CONFIGS = Path(__file__).parents[1] / "configs"
BINARY = tuple(Task(f"task-{number}") for number in range(40))
DENSE = (Task("segmentation", "segmentation", ("floor", "wall")), Task("depth", "depth"))


def info_of(tasks: tuple[Task, ...], num_train: int, size: tuple[int, int]) -> DatasetInfo:
    splits = {"train": SplitInfo(num_train, {}, ()), "val": SplitInfo(100, {}, ())}
    return DatasetInfo("data", tasks, {}, splits, size, {})


def recipe_of(info: DatasetInfo, **asked: str) -> dict[str, Any]:
    return {choice.key: choice.value for choice in choose_recipe(info, "data", **asked)}


def test_for_as_many_photographs_the_recipe_is_the_measured_one() -> None:
    recipe = recipe_of(info_of(BINARY, 20_800, (64, 48)))
    measured = load_config(CONFIGS / "fps-branch-16-2.yaml").model_dump()
    measured["method"]["first_decision"] = 160  # empty there: that of the rounds
    del recipe["data.path"]
    found = {key: measured[key.split(".")[0]][key.split(".")[1]] for key in recipe}
    assert recipe == found


def test_for_as_many_rooms_the_recipe_is_that_of_rooms() -> None:
    recipe = recipe_of(info_of(DENSE, 2_400, (96, 128)))
    measured = load_config(CONFIGS / "rooms-tree.yaml").model_dump()
    keys = ("model.backbone", "model.width", "model.output_stride", "optim.lr")
    keys += ("method.alpha", "method.decay")
    keys += ("method.first_decision", "method.round_iterations", "train.iterations")
    for key in (*keys, "train.batch_size", "train.eval_batch_size", "train.clip_norm"):
        assert recipe[key] == measured[key.split(".")[0]][key.split(".")[1]], key


def test_pretrained_weights_get_small_rates_and_a_late_first_decision() -> None:
    recipe = recipe_of(
        info_of(BINARY, 20_800, (224, 224)), backbone="timm:convnext_atto", pretrained="atto.pth"
    )
    assert (recipe["optim.lr"], recipe["method.first_decision"]) == (0.0003, 4000 // 6)
    assert "data.image_size" not in recipe
    assert "model.width" not in recipe


def test_large_images_are_shown_smaller_to_a_thin_network() -> None:
    assert recipe_of(info_of(BINARY, 500, (600, 800)))["data.image_size"] == [96, 128]


def test_one_task_gets_no_branches() -> None:
    assert recipe_of(info_of(BINARY[:1], 500, (64, 64)))["method.name"] == "fixed"


@pytest.mark.parametrize(
    ("info", "asked", "said"),
    [
        (info_of(BINARY, 500, (64, 64)), {"pretrained": "a.pth"}, "say of which with --backbone"),
        (info_of(BINARY, 0, (64, 64)), {}, "should have training images, found none"),
    ],
)
def test_what_no_recipe_is_for_is_refused(
    info: DatasetInfo, asked: dict[str, str], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        choose_recipe(info, "data", **asked)


def test_a_recipe_for_real_photographs_passes_the_dry_run_and_trains_on_two_ranks(
    shared_data: Path, tmp_path: Path, ranks: RankServer
) -> None:
    source = shared_data / "clothing"
    with (source / "attributes.csv").open() as file:
        rows = list(csv.DictReader(file))
    with (tmp_path / "table.csv").open("w") as file:
        table = csv.DictWriter(file, rows[0])
        table.writeheader()
        table.writerows(rows[:150])
    images = ("--images", str(source / "images.zip"), "--table", str(tmp_path / "table.csv"))
    data, out = tmp_path / "data", tmp_path / "mine.yaml"
    run_command(["data", "pack", "csv", str(data), *images, "--image-size", "32x32"])

    ended = run_command(["init", str(out), "--data", str(data)])
    assert ended.code == 0, ended.err
    reasons = [line for line in out.read_text().splitlines() if line.startswith("  ")]
    told = [f"{line.split(':')[0].strip()} = " for line in reasons]
    assert all(name in ended.out for name in told)
    assert all("  # " in line for line in reasons)

    # a tiny network for a few steps: the recipe's own trains for minutes
    short = {"train.iterations": 4, "method.first_decision": 2, "method.round_iterations": 2}
    few = {"launch.workers": 2, "launch.threads": 1, "model.width": 2, "optim.warmup": 1}
    config = load_config(out, short | few | {"run.directory": str(tmp_path)})
    assert plan_run(config, Link(10.0, 50.0)).scales
    ended_ranks = ranks.call_all(train_tiny, 2, config=config.model_dump(mode="json"))
    assert {one["end"] for one in ended_ranks} == {"done"}, ended_ranks


def test_a_file_that_is_there_is_kept(tiny_data: Path, tmp_path: Path) -> None:
    out = tmp_path / "mine.yaml"
    out.write_text("seed: 1\n")
    ended = run_command(["init", str(out), "--data", str(tiny_data)])
    assert_one_sentence(ended, 2, ("mine.yaml exists already and is kept",))
    assert out.read_text() == "seed: 1\n"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ([], 2, "either --data"),
        (["--data", "data", "--from", "quickstart"], 2, "either --data"),
        (["--from", "quickest"], 2, "found 'quickest'"),
        (["--from", "quickstart", "--backbone", "vgg9"], 2, "go with --data"),
        (["--data", "nowhere"], 1, "nowhere does not exist"),
    ],
)
def test_what_init_cannot_do_is_one_sentence_and_nothing_is_written(
    words: list[str], code: int, said: str, tmp_path: Path
) -> None:
    ended = run_command(["init", str(tmp_path / "mine.yaml"), *words])
    assert_one_sentence(ended, code, (said,))
    assert not list(tmp_path.iterdir())


def test_configs_of_the_package_are_found_by_name_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert list_packaged() == sorted(file.stem for file in CONFIGS.glob("*.yaml"))
    assert load_config("fps-branch-16-2") == load_config(CONFIGS / "fps-branch-16-2.yaml")
    assert load_sweep("sweep-quickstart").name == "sweep-quickstart"
    # a file of one's own comes first
    Path("quickstart.yaml").write_text("seed: 7\n")
    assert load_config("quickstart.yaml").seed == 7
    with pytest.raises(UsageError, match=r"quickest does not exist. There are: .*quickstart"):
        load_config("quickest")


def test_a_copy_of_a_config_of_the_package_finds_its_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = run_command(["init", "copy.yaml", "--from", "fps-branch-16-2"])
    assert ended.code == 0, ended.err
    original = load_config(CONFIGS / "fps-branch-16-2.yaml")
    assert load_config("copy.yaml", {"run.name": original.run.name}) == original
    assert yaml.safe_load(Path("copy.yaml").read_text())["base"] == "fps-thin-16.yaml"
