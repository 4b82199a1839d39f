"""Runs with dense tasks: numbers that do not depend on ranks and batches, what a batch's loss is over, and what a run leaves."""

import csv
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rank_server import RankServer
from tiny_rooms import SPLITS, TASKS, pack_tiny_rooms, rooms_config
from tiny_world import assert_one_sentence, run_command

from distbranch.config import load_config
from distbranch.data.shards import read_dataset
from distbranch.engine.distributed import Ranks
from distbranch.engine.evaluate import evaluate_split
from distbranch.engine.initialisation import first_architecture
from distbranch.engine.loaders import open_evaluation
from distbranch.engine.pixel_shares import share_pixels
from distbranch.engine.process_group import join_ranks
from distbranch.engine.sample_maps import NUM_IMAGES, write_sample_maps
from distbranch.errors import UserError
from distbranch.launch.prepare import check_data
from distbranch.losses import build_task_set
from distbranch.maps import Labels, Outputs
from distbranch.models.network import Network

DENSE = [task.name for task in TASKS if task.name != "bright"]


@pytest.fixture(scope="module")
def rooms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rooms") / "data"
    pack_tiny_rooms(folder)
    return folder


def make_network(config: Mapping[str, Any]) -> Network:
    resolved = load_config(config)
    info = read_dataset(str(resolved.data.path))
    network = Network(first_architecture(resolved, info))
    network.tasks = build_task_set(info.tasks, resolved.loss)
    network.init(torch.Generator().manual_seed(4))
    return network


def evaluate(config: Mapping[str, Any], batch_size: int) -> dict[str, Any]:
    """A job: evaluate a network with random weights."""
    resolved = load_config(config)
    with join_ranks(resolved.launch) as here:
        info = read_dataset(str(resolved.data.path))
        network = make_network(config)
        return evaluate_split(
            network, info, "val", here, resolved.data, batch_size=batch_size, byte_angles=True
        )


def list_numbers(scores: Mapping[str, Any]) -> Iterator[tuple[str, float | None]]:
    for task, row in scores["tasks"].items():
        for name, value in row.items():
            yield f"{task} {name}", value
    yield "loss", scores["loss"]


def test_scores_of_dense_tasks_are_the_same_on_one_two_and_three_ranks_and_in_any_batches(
    rooms: Path, ranks: RankServer, tmp_path: Path
) -> None:
    config = rooms_config(rooms, tmp_path)
    alone = ranks.call(evaluate, config=config, batch_size=4)
    assert [alone["tasks"][task.name]["num_labelled"] for task in TASKS] == [6, 7, 5, 7, 7]
    assert alone["tasks"]["normals"]["byte_mean_angle"] > 0
    assert "iou:never" in alone["tasks"]["seg"]
    assert set(alone["mean"]) >= {"accuracy", "miou", "rmse", "mean_angle", "heat_error"}
    expected = dict(list_numbers(alone))
    for world_size, batch_size in ((2, 4), (3, 1)):
        for found in ranks.call_all(evaluate, world_size, config=config, batch_size=batch_size):
            numbers = dict(list_numbers(found))
            assert numbers.keys() == expected.keys()
            for name, value in numbers.items():
                if value is None:
                    assert expected[name] is None
                    continue
                # The network itself rounds otherwise in batches of another size.
                assert value == pytest.approx(expected[name], rel=1e-5), name


def test_sums_in_batches_of_the_same_outputs_are_equal_to_the_bit(
    rooms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(rooms_config(rooms, tmp_path))
    info = read_dataset(rooms)
    network = make_network(rooms_config(rooms, tmp_path))

    def answer(images: torch.Tensor, *, flat: bool) -> Outputs:
        """What follows from each image alone, with no rounding between batches."""
        mean = images.double().mean(dim=1, keepdim=True)[:, :, ::8, ::8].float()
        maps = {}
        for task in network.tasks.dense.values():
            factors = torch.arange(1.0, task.num_outputs + 1).view(1, -1, 1, 1)
            maps[task.name] = (mean * factors * 0.37).sin() + 1
        return Outputs(mean[:, :, 0, 0] / 255, maps)

    monkeypatch.setattr(network, "forward", answer)
    found = []
    for batch_size in (1, 3, 7):
        scores = evaluate_split(
            network,
            info,
            "val",
            Ranks(0, 1, torch.device("cpu")),
            config.data,
            batch_size=batch_size,
        )
        found.append(dict(list_numbers(scores)))
    assert found[0] == found[1] == found[2]


def compute_gradients(
    config: Mapping[str, Any], image_lists: list[list[int]]
) -> list[torch.Tensor]:
    """A job: the summed gradient of the first weight where this rank has some images of val, in so many passes."""
    resolved = load_config(config)
    with join_ranks(resolved.launch) as here:
        network = make_network(config).eval()
        info = read_dataset(str(resolved.data.path))
        batch = next(
            open_evaluation(
                info, "val", resolved.data, Ranks.alone(), image_size=(32, 48), batch_size=7
            )
        )
        own = [
            torch.tensor(image_lists[n])
            for n in range(len(image_lists))
            if n % here.world_size == here.rank
        ]
        labels = Labels(batch.labels, batch.maps)
        passes = [(batch.images[rows], labels[rows]) for rows in own]
        shares = None
        for number, (images, part) in enumerate(passes):
            outputs = network(images, flat=True)
            if shares is None:
                every = [one for _, one in passes]
                shares = share_pixels(network.tasks, outputs, every, here, batch_size=7)
            losses = network.tasks.compute_losses(outputs, part) * shares[number]
            (losses.sum() / 7).backward()
        gradients = [one.grad for one in network.parameters() if one.grad is not None]
        return [here.sum(one.double()) for one in gradients]


@pytest.mark.parametrize("at", ["input", "output"])
def test_a_loss_over_pixels_is_that_of_one_batch_whatever_its_ranks_and_passes(
    at: str, rooms: Path, ranks: RankServer, tmp_path: Path
) -> None:
    config = rooms_config(rooms, tmp_path, **{"loss.over": "pixels", "loss.at": at})
    whole = [list(range(7))]
    expected = ranks.call(compute_gradients, config=config, image_lists=whole)
    for world_size, parts in ((1, [[0, 1], [2], [3, 4, 5, 6]]), (2, [[0, 1, 2], [3], [4, 5], [6]])):
        for found in ranks.call_all(
            compute_gradients, world_size, config=config, image_lists=parts
        ):
            for own, right in zip(found, expected, strict=True):
                assert torch.allclose(own, right, rtol=1e-3, atol=1e-5)

    # By the definition: the mean over all labelled pixels of the batch.
    network = make_network(config).eval()
    resolved = load_config(config)
    info = read_dataset(rooms)
    batch = next(
        open_evaluation(
            info, "val", resolved.data, Ranks.alone(), image_size=(32, 48), batch_size=7
        )
    )
    outputs, labels = network(batch.images, flat=True), Labels(batch.labels, batch.maps)
    shares = share_pixels(network.tasks, outputs, [labels], Ranks.alone(), batch_size=7)[0]
    losses = (network.tasks.compute_losses(outputs, labels) * shares).sum(dim=0) / 7
    if at == "input":
        depth = network.tasks.names.index("depth")
        answered = network(batch.images)["depth"][:, 0]
        known = batch.maps["depth"] > 0
        expected_loss = (answered - batch.maps["depth"])[known].abs().mean()
        assert losses[depth].item() == pytest.approx(expected_loss.item(), rel=1e-5)
    bright = network.tasks.names.index("bright")
    assert (shares[:, bright] == 1).all()


def test_class_weights_that_are_all_alike_change_no_loss_over_pixels(
    rooms: Path, tmp_path: Path
) -> None:
    found = []
    for weight in (1.0, 1e-6):
        loss = {"over": "pixels", "class_weights": {"seg": [weight] * 3}}
        config = load_config(rooms_config(rooms, tmp_path, loss=loss))
        network = make_network(rooms_config(rooms, tmp_path, loss=loss)).eval()
        info = read_dataset(rooms)
        size = (32, 48)
        batches = open_evaluation(
            info, "val", config.data, Ranks.alone(), image_size=size, batch_size=7
        )
        batch = next(batches)
        outputs, labels = network(batch.images, flat=True), Labels(batch.labels, batch.maps)
        (shares,) = share_pixels(network.tasks, outputs, [labels], Ranks.alone(), batch_size=7)
        found.append(network.tasks.compute_losses(outputs, labels) * shares)
    torch.testing.assert_close(*found)


def test_a_run_whose_first_samples_are_all_bad_keeps_no_maps(
    rooms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from distbranch.engine import sample_maps

    def leave_out(*args: Any, **keywords: Any) -> Iterator[Any]:
        for batch in open_evaluation(*args, **keywords):
            maps = {name: one[:0] for name, one in batch.maps.items()}
            yield replace(batch, images=batch.images[:0], labels=batch.labels[:0], maps=maps)

    monkeypatch.setattr(sample_maps, "open_evaluation", leave_out)
    config, file = rooms_config(rooms, tmp_path), tmp_path / "maps.npz"
    network, data = make_network(config), load_config(config).data
    sample_maps.write_sample_maps(file, network, read_dataset(rooms), data, Ranks.alone())
    assert not file.exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"loss.at": "output"}, "loss.at is of dense tasks"),
        ({"loss.over": "pixels"}, "loss.over is of dense tasks"),
        ({"metrics.byte_angles": True}, "metrics.byte_angles is of normals"),
        (
            {"loss.class_weights": {"cell-1": "balanced"}},
            r"with classes .* \(kind\), found 'cell-1'",
        ),
        ({"loss.class_weights": {"kind": [1, 2]}}, "each of the 3 classes of 'kind', found 2"),
        ({"loss.positive_weights": {"kind": "auto"}}, r"binary tasks of .*cell-6\), found 'kind'"),
    ],
)
def test_settings_of_dense_tasks_are_refused_where_there_are_none(
    changes: dict[str, Any], words: str, tiny_data: Path, tmp_path: Path
) -> None:
    config = load_config(rooms_config(tiny_data, tmp_path, **changes))
    with pytest.raises(UserError, match=words):
        check_data(config, read_dataset(tiny_data))


def test_class_weights_are_one_per_class(rooms: Path, tmp_path: Path) -> None:
    for given, words in (
        ({"seg": [1.0, 2.0]}, "each of the 3 classes of 'seg', found 2"),
        ({"depth": [1.0]}, r"\(seg\), found 'depth'"),
    ):
        config = load_config(rooms_config(rooms, tmp_path, **{"loss.class_weights": given}))
        with pytest.raises(UserError, match=words):
            check_data(config, read_dataset(rooms))


def test_a_run_keeps_maps_for_its_report_and_predicts_pictures(rooms: Path, tmp_path: Path) -> None:
    from distbranch.api import train
    from distbranch.report.page import report_run

    result = train(rooms_config(rooms, tmp_path))
    with np.load(result.directory / "sample_maps.npz") as arrays:
        assert arrays["images"].shape == (4, 32, 48, 3)
        for task in TASKS:
            if task.name != "bright":
                assert arrays[f"found/{task.name}"].shape == arrays[f"truth/{task.name}"].shape
    page = report_run(result.directory)
    text = page.read_text(encoding="utf-8")
    for name in ("seg", "depth", "normals", "edges"):
        assert f"{name}, pixel by pixel" in text
        assert (page.parent / "report" / f"maps-{name}.png").stat().st_size > 5_000
    assert "Every class of seg" in text
    predict_into_a_folder(result.directory, tmp_path)


@pytest.mark.parametrize("num_bad", [NUM_IMAGES, SPLITS["val"]])
def test_maps_for_the_report_are_those_of_the_first_samples_that_can_be_read(
    rooms: Path, tmp_path: Path, num_bad: int
) -> None:
    copy = shutil.copytree(rooms, tmp_path / "data")
    info = read_dataset(str(copy))
    left = num_bad
    for shard in info.splits["val"].shards:
        with (copy / shard.file).open("r+b") as file:
            for offset in np.load(copy / shard.index)[:left, 0]:
                file.seek(offset)
                file.write(b"damaged")
                left -= 1
    config = rooms_config(copy, tmp_path, **{"data.on_bad_sample": "skip"})
    maps = tmp_path / "maps.npz"
    data = load_config(config).data
    write_sample_maps(maps, make_network(config), info, data, Ranks.alone())
    assert maps.exists() == (num_bad < SPLITS["val"])
    if maps.exists():
        with np.load(maps) as arrays:
            assert len(arrays["images"]) == len(arrays["found/depth"]) > 0


def predict_into_a_folder(run: Path, folder: Path) -> None:
    """Part of the test above, whose run it needs: a picture per image and dense task, and what stands in the table."""
    photo = folder / "photos" / "room.png"
    photo.parent.mkdir()
    Image.fromarray(np.full((32, 48, 3), 90, np.uint8)).save(photo)
    answers = folder / "answers"
    ended = run_command(["predict", str(run), str(photo), str(photo), "--out", str(answers)])
    assert ended.code == 0, ended.err
    names = {f"{stem}.{task}.png" for stem in ("room", "room (2)") for task in DENSE}
    assert {file.name for file in answers.iterdir()} == names | {"predictions.csv"}
    modes = {"seg": "P", "depth": "I;16", "normals": "RGB", "edges": "L"}
    for task, mode in modes.items():
        with Image.open(answers / f"room.{task}.png") as picture:
            assert (picture.mode, picture.size) == (mode, (48, 32))
    with (answers / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["pictures"] for row in rows] == ["room", "room (2)"]
    assert sum(float(rows[0][f"seg:{name}"]) for name in ("dark", "light", "never")) == 1
    assert 0 <= float(rows[0]["bright"]) <= 1
    shown = run_command(["predict", str(run), str(photo)])
    assert "depth: " in shown.out
    refused = run_command(["predict", str(run), str(photo), "--out", str(folder / "scores.csv")])
    assert_one_sentence(refused, 2, ("--out should be a folder",))
