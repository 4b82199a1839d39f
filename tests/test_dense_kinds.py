"""Dense tasks: metrics and losses against loops over pixels, what is not labelled, and what their answers are."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from distbranch.config.names import BUILT_IN
from distbranch.config.training import LossConfig
from distbranch.errors import UserError
from distbranch.kinds import KINDS
from distbranch.kinds.dense import DenseKind
from distbranch.kinds.depth import decode_depth, encode_depth
from distbranch.kinds.normals import decode_normals, encode_normals
from distbranch.losses import build_task_set
from distbranch.maps import Labels, Outputs, resize_maps, sample_codes
from distbranch.metrics import compute_delta
from distbranch.tasks import Task, TaskSet

NAN = float("nan")
ROOM = Task("segmentation", "segmentation", ("wall", "floor", "bed", "lamp"))
DEPTH = Task("depth", "depth")
DISPARITY = Task("stereo", "depth", quantity="disparity")
NORMALS = Task("normals", "normals")
EDGES = Task("edges", "heat")
ALL = (ROOM, DEPTH, NORMALS, EDGES)
SIZE = (6, 8)
NUM = 7
INVALID_SHARE = 0.3


def kind_of(task: Task) -> DenseKind:
    kind = KINDS[task.kind]
    assert isinstance(kind, DenseKind)
    return kind


def draw_codes(task: Task, seed: int = 0, num: int = NUM) -> Tensor:
    """Labels with gaps; of the last sample no pixel is labelled, and of classes the last is absent."""
    draw = np.random.default_rng(seed)
    valid = draw.random((num, *SIZE)) > INVALID_SHARE
    valid[-1] = False
    if task.kind == "segmentation":
        codes = np.where(valid, draw.integers(0, 3, valid.shape), 255).astype(np.uint8)
    elif task.kind == "depth":
        values = draw.uniform(0.5, 6, valid.shape)
        codes = decode_depth(task, encode_depth(task, values, valid))
    elif task.kind == "normals":
        vectors = draw.standard_normal((*valid.shape, 3))
        vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
        codes = np.moveaxis(encode_normals(vectors, valid), -1, 1)
    else:
        codes = np.where(valid, draw.integers(0, 255, valid.shape), 255).astype(np.uint8)
    return torch.from_numpy(np.ascontiguousarray(codes))


def draw_outputs(task: Task, seed: int = 1, num: int = NUM, size: tuple[int, int] = SIZE) -> Tensor:
    shape = (num, task.num_outputs, *size)
    outputs = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return 3 * outputs + 2 if task.kind == "depth" else outputs


def score(task: Task, outputs: Tensor, codes: Tensor, kind: DenseKind | None = None) -> Any:
    kind = kind or kind_of(task)
    return kind.score_sums(task, kind.sum_maps(task, outputs, codes).numpy())


def list_pixels(task: Task, outputs: Tensor, codes: Tensor) -> list[tuple[Any, Any]]:
    """Of every labelled pixel what is predicted, and what is true, by a loop."""
    found = []
    for n, y, x in itertools.product(range(len(codes)), *map(range, codes.shape[-2:])):
        code = codes[n, ..., y, x]
        is_labelled = code.any() if task.kind in ("depth", "normals") else code != 255
        if is_labelled:
            found.append((outputs[n, :, y, x].double().numpy(), code.double().numpy()))
    return found


def make_labels(tasks: tuple[Task, ...], maps: dict[str, Tensor]) -> Labels:
    shares = []
    for task in tasks:
        valid = kind_of(task).find_valid(maps[task.name]).double().mean(dim=(1, 2))
        shares.append(torch.where(valid > 0, valid, NAN))
    return Labels(torch.stack(shares, dim=1).float(), maps)


# ---- metrics


def test_segmentation_is_scored_as_by_a_loop_over_pixels_with_a_class_that_the_truth_lacks() -> (
    None
):
    outputs, codes = draw_outputs(ROOM), draw_codes(ROOM)
    pixels = [(int(found.argmax()), int(true)) for found, true in list_pixels(ROOM, outputs, codes)]
    row = score(ROOM, outputs, codes)
    ious, accuracies = [], []
    for number, name in enumerate(ROOM.classes):
        own = [found for found, true in pixels if true == number]
        if not own:
            assert row[f"iou:{name}"] is None
            continue
        either = sum(number in pair for pair in pixels)
        ious.append(own.count(number) / either)
        accuracies.append(own.count(number) / len(own))
        assert row[f"iou:{name}"] == pytest.approx(ious[-1], abs=1e-15)
    assert len(ious) == 3
    assert row["miou"] == pytest.approx(np.mean(ious), abs=1e-15)
    assert row["mean_class_accuracy"] == pytest.approx(np.mean(accuracies), abs=1e-15)
    assert row["pixel_accuracy"] == np.mean([found == true for found, true in pixels])


def test_a_class_that_is_never_predicted_lowers_the_mean_over_classes() -> None:
    codes = torch.tensor([[[0, 0], [1, 2]]], dtype=torch.uint8)
    all_right = functional.one_hot(codes.long(), 4).permute(0, 3, 1, 2).float()
    assert score(ROOM, all_right, codes)["miou"] == 1
    blind = all_right.clone()
    blind[0, :, 1, 1] = blind[0, :, 0, 0]  # wall in place of the bed
    assert score(ROOM, blind, codes)["miou"] == pytest.approx((2 / 3 + 1 + 0) / 3)


@pytest.mark.parametrize("task", [DEPTH, DISPARITY])
def test_depth_is_scored_as_by_a_loop_and_what_is_not_in_front_of_the_camera_is_a_miss(
    task: Task,
) -> None:
    outputs, codes = draw_outputs(task), draw_codes(task)
    pixels = [(float(found[0]), float(true)) for found, true in list_pixels(task, outputs, codes)]
    assert any(z <= 0 for z, _ in pixels)
    expected = [
        np.mean([abs(z - t) for z, t in pixels]),
        np.mean([abs(z - t) / t for z, t in pixels]),
        math.sqrt(np.mean([(z - t) ** 2 for z, t in pixels])),
    ]
    for power in (1, 2, 3):
        is_near = [z > 0 and max(z / t, t / z) < 1.25**power for z, t in pixels]
        expected.append(np.mean(is_near))
    prefix = "disparity_" if task is DISPARITY else ""
    names = [prefix + n for n in ("abs_error", "rel_error", "rmse", "delta1", "delta2", "delta3")]
    row = score(task, outputs, codes)
    assert list(row) == names
    assert list(row.values()) == pytest.approx(expected, rel=1e-12)


def test_normals_are_scored_as_by_a_loop_and_the_median_is_that_of_numpy_to_half_a_bin() -> None:
    outputs, codes = draw_outputs(NORMALS), draw_codes(NORMALS)
    angles = []
    for found, code in list_pixels(NORMALS, outputs, codes):
        true = code - 128
        cosine = (found @ true) / np.linalg.norm(found) / np.linalg.norm(true)
        angles.append(math.degrees(math.acos(cosine)))
    row = score(NORMALS, outputs, codes)
    assert row["mean_angle"] == pytest.approx(np.mean(angles), rel=1e-12)
    assert row["rmse_angle"] == pytest.approx(math.sqrt(np.mean(np.square(angles))), rel=1e-12)
    assert row["median_angle"] == pytest.approx(np.median(angles), abs=0.005)
    for name, degrees in (("11_25", 11.25), ("22_5", 22.5), ("30", 30)):
        assert row[f"below_{name}"] == np.mean(np.array(angles) < degrees)


@pytest.mark.parametrize("num", [1, 2, 40, 41])
def test_the_median_of_few_angles_is_between_the_two_in_the_middle(num: int) -> None:
    angles = np.random.default_rng(num).uniform(0, 180, num)
    vectors = np.stack([np.sin(np.radians(angles)), 0 * angles, np.cos(np.radians(angles))])
    outputs = torch.from_numpy(vectors)[None, :, None]
    codes = torch.tensor([128, 128, 255], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 1, num)
    median = score(NORMALS, outputs, codes)["median_angle"]
    assert median == pytest.approx(np.median(angles), abs=0.0051)


def test_heat_is_scored_as_by_a_loop() -> None:
    outputs, codes = draw_outputs(EDGES), draw_codes(EDGES)
    errors = [abs(found[0] - true / 254) for found, true in list_pixels(EDGES, outputs, codes)]
    assert score(EDGES, outputs, codes) == {"heat_error": pytest.approx(np.mean(errors), rel=1e-12)}


@pytest.mark.parametrize("task", [*ALL, DISPARITY])
def test_sums_of_samples_are_those_of_the_batch_and_a_sample_without_labels_adds_nothing(
    task: Task,
) -> None:
    kind, outputs, codes = kind_of(task), draw_outputs(task), draw_codes(task)
    whole = kind.sum_maps(task, outputs, codes)
    assert whole.shape == (kind.count_sums(task),)
    assert whole.dtype == torch.float64
    parts = [
        kind.sum_maps(task, outputs[n : n + 1], codes[n : n + 1]) for n in reversed(range(NUM))
    ]
    assert not parts[0].any()
    assert torch.allclose(torch.stack(parts).sum(dim=0), whole, rtol=1e-12, atol=0)
    row = kind.score_sums(task, parts[0].numpy())
    assert set(row.values()) == {None}


def test_a_mirrored_prediction_of_mirrored_normals_has_no_angle() -> None:
    codes = draw_codes(NORMALS)
    picture = codes[0].permute(1, 2, 0).numpy()
    mirrored = KINDS["normals"].mirror_codes(picture)  # type: ignore[attr-defined]
    vectors, _ = decode_normals(picture)
    outputs = torch.from_numpy(vectors[:, ::-1] * np.float32([-1, 1, 1])).permute(2, 0, 1)[None]
    truth = torch.from_numpy(mirrored.copy()).permute(2, 0, 1)[None]
    assert score(NORMALS, outputs, truth)["mean_angle"] == pytest.approx(0, abs=1e-4)


def test_byte_angles_flatter_a_constant_as_the_published_files_do() -> None:
    # As in the four samples: walls, floors and things that face the camera, with some noise.
    draw = np.random.default_rng(0)
    centres = np.array([[0, 0, 1], [0.8, 0, 0.6], [-0.8, 0, 0.6], [0, 1, 0.1], [0, 0.6, 0.8]])
    vectors = centres[draw.integers(0, 5, (60, 80))] + 0.15 * draw.standard_normal((60, 80, 3))
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    codes = torch.from_numpy(encode_normals(vectors, np.full((60, 80), True))).permute(2, 0, 1)
    constant = torch.from_numpy(vectors.mean(axis=(0, 1))).view(1, 3, 1, 1).expand(1, 3, 60, 80)
    kind = kind_of(NORMALS).with_byte_angles()
    row = score(NORMALS, constant, codes[None], kind)
    assert 40 < row["mean_angle"] < 50
    assert 13 < row["byte_mean_angle"] < 22
    assert row["byte_below_30"] > max(0.85, 2 * row["below_30"])
    alone = score(NORMALS, constant, codes[None])
    assert alone == {name: value for name, value in row.items() if name in alone}

    # By the definition: bytes of x, z into the scene and y up are vectors.
    turned = np.float64([1, 1, -1])
    stored = decode_normals(codes.permute(1, 2, 0).numpy())[0]
    unit = constant[0, :, 0, 0].numpy() / np.linalg.norm(constant[0, :, 0, 0].numpy())
    of_truth, of_constant = 127.5 * (stored * turned + 1), 127.5 * (unit * turned + 1)
    cosine = of_truth @ of_constant / np.linalg.norm(of_truth, axis=-1)
    angles = np.degrees(np.arccos(cosine / np.linalg.norm(of_constant)))
    assert row["byte_mean_angle"] == pytest.approx(angles.mean(), rel=1e-6)


def test_delta_is_the_mean_over_tasks_of_the_mean_gain_over_the_metrics_of_each() -> None:
    alone = {
        "segmentation": {"miou": 0.5, "pixel_accuracy": 0.8, "mean_class_accuracy": 0.6},
        "depth": {"abs_error": 0.4, "rel_error": 0.1, "rmse": 0.8, "delta1": 0.9},
        "normals": dict.fromkeys(("mean_angle", "median_angle"), 20.0)
        | {"rmse_angle": 25.0, "below_11_25": 0.4, "below_22_5": 0.6, "below_30": 0.8},
        "edges": {"heat_error": 0.05},
        "another": {"miou": 1.0},
    }
    together = {
        "segmentation": {"miou": 0.55, "pixel_accuracy": 0.76, "mean_class_accuracy": 0.1},
        "depth": {"abs_error": 0.3, "rel_error": 0.11, "rmse": 0.6, "delta1": 0.1},
        "normals": {"mean_angle": 22.0, "median_angle": 20.0, "rmse_angle": 99.0}
        | {"below_11_25": 0.5, "below_22_5": 0.6, "below_30": 0.8},
        "edges": {"heat_error": 0.04},
    }
    of_tasks = [(10 - 5) / 2, (25 - 10) / 2, (-10 + 25) / 5, 20]
    assert compute_delta(together, alone) == pytest.approx(np.mean(of_tasks))
    firsts = [10, 25, -10, 20]
    assert compute_delta(together, alone, first_only=True) == pytest.approx(np.mean(firsts))
    assert compute_delta(alone, alone) == 0
    with pytest.raises(ValueError, match="heat_error of the task 'edges', and not as 0"):
        compute_delta(together, alone | {"edges": {"heat_error": 0.0}})
    with pytest.raises(ValueError, match="found none of the task 'hat'"):
        compute_delta({"hat": {"accuracy": 0.5}}, alone)


# ---- losses


def lose_at(task: Task, name: str, found: Any, code: Any) -> float:
    """The loss of one pixel, as its definition says."""
    if task.kind == "segmentation":
        return float(np.log(np.exp(found).sum()) - found[int(code)])
    if task.kind == "normals":
        true = code - 128
        return float(1 - (found @ true) / np.linalg.norm(found) / np.linalg.norm(true))
    z, t = float(found[0]), float(code) / (254 if task.kind == "heat" else 1)
    if name == "log":
        return abs(math.copysign(math.log1p(abs(z)), z) - math.log1p(t))
    return abs(z - t)


@pytest.mark.parametrize(
    ("task", "name"),
    [
        (ROOM, "cross-entropy"),
        (DEPTH, "absolute"),
        (DEPTH, "log"),
        (NORMALS, "cosine"),
        (EDGES, "absolute"),
    ],
)
def test_the_loss_of_a_sample_is_the_mean_over_its_labelled_pixels(task: Task, name: str) -> None:
    tasks = build_task_set([task], LossConfig(functions={task.kind: name}))
    codes, outputs = draw_codes(task), draw_outputs(task).double().requires_grad_()
    labels = make_labels((task,), {task.name: codes})
    answer = Outputs(torch.zeros(NUM, 0), {task.name: outputs})
    losses = tasks.compute_losses(answer, labels)
    for number in range(NUM - 1):
        pixels = list_pixels(
            task, outputs[number : number + 1].detach(), codes[number : number + 1]
        )
        expected = np.mean([lose_at(task, name, *pixel) for pixel in pixels])
        assert losses[number, 0].item() == pytest.approx(expected, rel=1e-6)
    assert losses[-1, 0] == 0
    assert torch.equal(losses.detach(), tasks.compute_margins(answer.detach(), labels))

    losses.sum().backward()  # type: ignore[no-untyped-call]
    assert outputs.grad is not None
    valid = kind_of(task).find_valid(codes)
    strength = outputs.grad.abs().sum(dim=1)
    assert not strength[~valid].any()
    assert (strength[valid] > 0).all()


def test_margins_of_maps_whose_losses_are_known_look_at_no_map(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tasks = TaskSet((EDGES, Task("bright"), ROOM))
    codes = {task.name: draw_codes(task) for task in (EDGES, ROOM)}
    values = torch.ones(NUM, 3)
    values[2:4, 0] = NAN
    labels = Labels(values, codes)
    maps = {task.name: draw_outputs(task) for task in (EDGES, ROOM)}
    answer = Outputs(torch.linspace(-2, 2, NUM)[:, None], maps)
    expected = tasks.compute_margins(answer, labels)
    losses = tasks.compute_losses(answer, labels)
    monkeypatch.setattr(tasks, "_compute_of_maps", None)
    assert torch.equal(tasks.compute_margins(answer, labels, losses), expected)
    assert not torch.equal(expected[:, 1], losses[:, 1])


def test_the_first_loss_of_a_dense_kind_by_name_is_its_own() -> None:
    named = [name for name in BUILT_IN["loss"] if KINDS[name.partition(":")[0]].is_dense]
    firsts = {kind: name for kind, _, name in (one.partition(":") for one in reversed(named))}
    assert firsts.keys() == {task.kind for task in ALL}
    outputs = {task.name: draw_outputs(task) for task in ALL}
    labels = make_labels(ALL, {task.name: draw_codes(task) for task in ALL})
    answer = Outputs(torch.zeros(NUM, 0), outputs)
    by_name = build_task_set(ALL, LossConfig(functions=firsts))
    assert torch.equal(
        by_name.compute_losses(answer, labels), TaskSet(ALL).compute_losses(answer, labels)
    )


def test_the_berhu_loss_is_a_parabola_beyond_a_fifth_of_the_largest_error_of_the_sample() -> None:
    tasks = build_task_set([DEPTH], LossConfig(functions={"depth": "berhu"}))
    codes = torch.tensor([[[1.0, 2, 3, 0]], [[1.0, 1, 1, 1]]])
    outputs = torch.tensor([[[1.1, 1.5, 8, 900]], [[1.0, 1, 1, 1]]])[:, None].requires_grad_()
    labels = make_labels((DEPTH,), {"depth": codes})
    losses = tasks.compute_losses(Outputs(torch.zeros(2, 0), {"depth": outputs}), labels)
    assert losses[0, 0].item() == pytest.approx((0.1 + 0.5 + (25 + 1) / 2) / 3)
    assert losses[1, 0] == 0
    losses.sum().backward()  # type: ignore[no-untyped-call]
    assert outputs.grad is not None
    assert outputs.grad.isfinite().all()
    assert outputs.grad[0, 0, 0, 3] == 0


def test_class_weights_make_a_weighted_mean_over_the_labelled_pixels() -> None:
    given = (1.0, 2.0, 5.0, 9.0)
    tasks = build_task_set([ROOM], LossConfig(class_weights={"segmentation": given}))
    codes, outputs = draw_codes(ROOM), draw_outputs(ROOM)
    losses = tasks.compute_losses(
        Outputs(torch.zeros(NUM, 0), {"segmentation": outputs}),
        make_labels((ROOM,), {"segmentation": codes}),
    )
    for number in range(NUM - 1):
        expected = functional.cross_entropy(
            outputs[number : number + 1],
            codes[number : number + 1].long(),
            torch.tensor(given),
            ignore_index=255,
        )
        assert losses[number, 0].item() == pytest.approx(expected.item(), rel=1e-5)
    with pytest.raises(UserError, match="each of the 4 classes of 'segmentation', found 2"):
        build_task_set([ROOM], LossConfig(class_weights={"segmentation": (1.0, 2.0)}))


def test_an_output_of_exactly_0_gives_normals_a_finite_gradient() -> None:
    codes = draw_codes(NORMALS)
    outputs = torch.zeros(NUM, 3, *SIZE, requires_grad=True)
    labels = make_labels((NORMALS,), {"normals": codes})
    losses = TaskSet([NORMALS]).compute_losses(
        Outputs(torch.zeros(NUM, 0), {"normals": outputs}), labels
    )
    assert (losses[:-1] == 1).all()
    losses.sum().backward()  # type: ignore[no-untyped-call]
    assert outputs.grad is not None
    assert outputs.grad.isfinite().all()


@pytest.mark.parametrize("value", [0.0, 3e38, -3e38])
def test_extreme_outputs_in_bf16_give_finite_losses_and_gradients(value: float) -> None:
    outputs = {
        task.name: torch.full((NUM, task.num_outputs, *SIZE), value, dtype=torch.bfloat16)
        for task in (ROOM, NORMALS)
    }
    for one in outputs.values():
        one.requires_grad_()
    labels = make_labels((ROOM, NORMALS), {task.name: draw_codes(task) for task in (ROOM, NORMALS)})
    answer = Outputs(torch.zeros(NUM, 0), outputs)
    losses = TaskSet([ROOM, NORMALS]).compute_losses(answer, labels)
    losses.sum().backward()  # type: ignore[no-untyped-call]
    assert losses.dtype == torch.float32
    assert losses.isfinite().all()
    for one in outputs.values():
        assert one.grad is not None
        assert one.grad.isfinite().all()


def test_what_is_not_labelled_may_be_predicted_as_anything() -> None:
    codes = draw_codes(DEPTH)
    outputs = draw_outputs(DEPTH)
    labels = make_labels((DEPTH,), {"depth": codes})
    usual = TaskSet([DEPTH]).compute_losses(
        Outputs(torch.zeros(NUM, 0), {"depth": outputs}), labels
    )
    wild = torch.where(codes[:, None] > 0, outputs, float("inf")).requires_grad_()
    losses = TaskSet([DEPTH]).compute_losses(Outputs(torch.zeros(NUM, 0), {"depth": wild}), labels)
    assert torch.equal(losses, usual)
    losses.sum().backward()  # type: ignore[no-untyped-call]
    assert wild.grad is not None
    assert wild.grad.isfinite().all()


def test_losses_at_the_output_sample_labels_where_those_at_the_input_resize_outputs() -> None:
    outputs = {task.name: draw_outputs(task, size=(3, 2)) for task in ALL}
    maps = {task.name: draw_codes(task) for task in ALL}
    labels = make_labels(ALL, maps)
    small = {name: sample_codes(one, (3, 2)) for name, one in maps.items()}
    # Two rows and four columns of labels per output: the centres lie at odd rows, and at columns 2 and 6.
    assert torch.equal(small["depth"], maps["depth"][:, 1::2, 2::4])
    resized = {name: resize_maps(one, SIZE) for name, one in outputs.items()}
    logits = torch.zeros(NUM, 0)
    at_input = build_task_set(ALL, LossConfig())
    at_output = build_task_set(ALL, LossConfig(at="output"))
    assert torch.equal(
        at_input.compute_losses(Outputs(logits, outputs), labels),
        at_input.compute_losses(Outputs(logits, resized), labels),
    )
    assert torch.equal(
        at_output.compute_losses(Outputs(logits, outputs), labels),
        at_input.compute_losses(Outputs(logits, outputs), Labels(labels.values, small)),
    )


# ---- answers


@pytest.mark.parametrize("task", ALL)
def test_an_answer_is_a_picture_that_is_written_as_labels_are_and_told_in_a_few_numbers(
    task: Task,
) -> None:
    kind, outputs = kind_of(task), draw_outputs(task)
    answers = TaskSet([task]).predict({task.name: outputs})[task.name]
    assert len(answers) == NUM
    answer = answers[0]
    assert isinstance(answer, np.ndarray)
    codes = kind.encode_answer(task, answer)
    assert codes.shape[:2] == SIZE
    assert codes.dtype == (np.uint16 if task is DEPTH else np.uint8)
    summary = kind.summarise_answer(task, answer)
    assert isinstance(summary, dict)
    cells = kind.write_answer(task, summary)
    assert list(cells) == [f"{task.name}:{name}" for name in summary]
    assert kind.describe_answer(task, summary, 0.5).startswith(f"{task.name}: ")
    assert kind.draw_codes(task, codes).shape[:2] == SIZE
    assert not np.nanmax(kind.measure_errors(task, codes, codes))


def test_a_depth_beyond_the_last_code_is_written_as_the_farthest_one_and_not_as_unknown() -> None:
    answer = np.array([[-1.0, 0.5, 65.6, 1e6]], dtype=np.float32)
    assert kind_of(DEPTH).encode_answer(DEPTH, answer).tolist() == [[0, 500, 65_535, 65_535]]


def test_shares_of_classes_and_of_directions_are_those_of_the_picture() -> None:
    picture = np.array([[0, 0, 2], [2, 2, 1]], dtype=np.uint8)
    shares = kind_of(ROOM).summarise_answer(ROOM, picture)
    assert shares == pytest.approx({"wall": 1 / 3, "floor": 1 / 6, "bed": 1 / 2, "lamp": 0})
    assert (
        kind_of(ROOM).describe_answer(ROOM, shares, 0.5)
        == "segmentation: bed 50%, wall 33%, floor 17%"
    )
    facing = np.array([[[0, 0, 1], [0.1, 0.9, 0.2]], [[0, 1, 0], [-1, 0, 0.0]]], dtype=np.float32)
    directions = kind_of(NORMALS).summarise_answer(NORMALS, facing)
    assert kind_of(NORMALS).describe_answer(NORMALS, directions, 0.5) == (
        "normals: up 50%, left 25%, forward 25%"
    )
    far = np.linspace(1, 3, 101, dtype=np.float32)[None]
    told = kind_of(DEPTH).describe_answer(DEPTH, kind_of(DEPTH).summarise_answer(DEPTH, far), 0.5)
    assert told == "depth: 1.02 to 2.98 m (median 2)"


def test_a_dense_task_has_no_name_that_its_module_could_not_have() -> None:
    with pytest.raises(
        UserError, match="no word that torch's modules use themselves, found 'values'"
    ):
        Task("values", "depth")
    assert Task("values").name == "values"
