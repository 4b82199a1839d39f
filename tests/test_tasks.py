"""Losses, margins and metrics against hand-computed examples; what is unlabelled counts nowhere."""

import math

import numpy as np
import pytest
import torch

from distbranch.errors import UserError
from distbranch.metrics import merge_metrics, task_metrics
from distbranch.tasks import Task, TaskSet

NAN = float("nan")
MIXED = (Task("hat"), Task("colour", "categorical", ("red", "green", "blue")), Task("shoes"))


def test_columns_follow_the_order_of_the_tasks() -> None:
    tasks = TaskSet(MIXED)
    assert tasks.columns == {"hat": slice(0, 1), "colour": slice(1, 4), "shoes": slice(4, 5)}
    assert (tasks.num_tasks, tasks.num_outputs) == (3, 5)
    outputs = torch.arange(10.0).view(2, 5)
    split = tasks.split_by_task(outputs)
    assert split["shoes"].tolist() == [4.0, 9.0]
    assert split["colour"].tolist() == [[1.0, 2.0, 3.0], [6.0, 7.0, 8.0]]


def test_losses_and_margins_of_mixed_kinds_are_those_of_every_task_alone() -> None:
    outputs = torch.tensor([[0.0, 1.0, 2.0, 3.0, -1.0]])
    labels = torch.tensor([[1.0, 2.0, 0.25]])
    share = math.exp(3) / (math.exp(1) + math.exp(2) + math.exp(3))
    p = 1 / (1 + math.exp(1))
    expected = [math.log(2), -math.log(share), -(0.25 * math.log(p) + 0.75 * math.log(1 - p))]
    assert TaskSet(MIXED).compute_losses(outputs, labels)[0].tolist() == pytest.approx(
        expected, rel=1e-5
    )
    assert TaskSet(MIXED).compute_margins(outputs, labels)[0].tolist() == pytest.approx(
        [0.5, 1 - share, abs(0.25 - p)], rel=1e-5
    )


@pytest.mark.parametrize("tasks", [MIXED, (Task("a"), Task("b"), Task("c"))])
def test_unlabelled_entries_have_no_loss_no_margin_and_no_gradient(tasks: tuple[Task, ...]) -> None:
    task_set = TaskSet(tasks)
    outputs = torch.randn(4, task_set.num_outputs, requires_grad=True)
    labels = torch.tensor([[1.0, NAN, 0.0], [NAN, 1.0, NAN], [NAN, NAN, NAN], [0.0, 0.0, 1.0]])
    losses = task_set.compute_losses(outputs, labels)
    assert torch.equal(losses == 0, labels.isnan())
    assert torch.equal(task_set.compute_margins(outputs, labels) == 0, labels.isnan())
    losses.sum().backward()  # type: ignore[no-untyped-call]
    assert outputs.grad is not None
    assert outputs.grad.isfinite().all()
    assert outputs.grad[2].abs().sum() == 0
    assert outputs.grad[0, task_set.columns[tasks[1].name]].abs().sum() == 0
    assert task_set.compute_losses(outputs[:0], labels[:0]).shape == (0, 3)


def test_margins_carry_no_gradient() -> None:
    outputs = torch.randn(2, 3, requires_grad=True)
    assert (
        not TaskSet((Task("a"), Task("b"), Task("c")))
        .compute_margins(outputs, torch.ones(2, 3))
        .requires_grad
    )


def test_binary_metrics_of_a_hand_computed_example() -> None:
    outputs = np.array([[2.0], [1.0], [-1.0], [0.5], [9.0]])
    labels = np.array([[1.0], [0.0], [1.0], [1.0], [NAN]])
    row = task_metrics([Task("a")], outputs, labels)["tasks"]["a"]
    assert row["accuracy"] == pytest.approx(2 / 4)
    assert row["balanced_accuracy"] == pytest.approx((2 / 3 + 0) / 2)
    assert row["average_precision"] == pytest.approx((1 + 2 / 3 + 3 / 4) / 3)
    assert (row["num_labelled"], row["num_positive"]) == (4, 3)


def test_categorical_metrics_of_a_hand_computed_example() -> None:
    task = Task("colour", "categorical", ("red", "green", "blue", "grey"))
    outputs = np.array([[4.0, 3, 2, 1], [4, 3, 2, 1], [4, 3, 2, 1], [1, 2, 3, 4]])
    labels = np.array([[0.0], [1.0], [3.0], [3.0]])
    row = task_metrics([task], outputs, labels)["tasks"]["colour"]
    assert row["accuracy"] == pytest.approx(2 / 4)
    assert row["balanced_accuracy"] == pytest.approx((1 + 0 + 1 / 2) / 3)
    assert (row["top3"], row["top5"]) == (pytest.approx(3 / 4), pytest.approx(1.0))
    assert 0 < row["average_precision"] <= 1


def test_top_k_recall_is_the_share_of_positives_among_the_highest_scores_of_their_sample() -> None:
    tasks = [Task(name) for name in "abc"]
    outputs = np.array([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0]])
    labels = np.array([[1.0, 1.0, 1.0], [1.0, 0.0, NAN]])
    metrics = task_metrics(tasks, outputs, labels, top_k=2)
    assert [metrics["tasks"][name]["top2_recall"] for name in "abc"] == [0.5, 1.0, 0.0]
    assert metrics["mean"]["top2_recall"] == pytest.approx(0.5)
    every = task_metrics(tasks, outputs, labels, top_k=3)["tasks"].values()
    assert [row["top3_recall"] for row in every] == [None] * 3, (
        "of three tasks each is among the three highest"
    )


def test_what_is_undefined_is_none_and_left_out_of_the_mean() -> None:
    tasks = [Task("all simple"), Task("unlabelled"), Task("proper")]
    outputs = np.array([[-1.0, 0.0, 1.0], [-1.0, 0.0, -1.0]])
    labels = np.array([[0.0, NAN, 1.0], [0.0, NAN, 0.0]])
    metrics = task_metrics(tasks, outputs, labels)
    assert metrics["tasks"]["all simple"]["average_precision"] is None
    assert metrics["tasks"]["all simple"]["balanced_accuracy"] is None
    assert metrics["tasks"]["unlabelled"]["accuracy"] is None
    assert metrics["mean"] == {
        "accuracy": 1.0,
        "balanced_accuracy": 1.0,
        "average_precision": 1.0,
        "top10_recall": None,
    }


ONE_CLASS = [
    (Task("a"), np.ones((6, 1))),
    (Task("a"), np.zeros((6, 1))),
    (Task("a"), np.full((6, 1), 0.75)),
    (Task("a"), np.array([[1.0], [NAN], [NAN], [1.0], [1.0], [NAN]])),
    (Task("a", "categorical", ("red", "green", "blue")), np.full((6, 1), 2.0)),
]


@pytest.mark.parametrize(("task", "labels"), ONE_CLASS)
def test_where_all_labels_are_of_one_class_there_is_an_accuracy_but_nothing_to_rank_or_balance(
    task: Task, labels: np.ndarray
) -> None:
    draw = np.random.default_rng(2)
    proper = draw.integers(0, 2, (6, 1)).astype(float)
    proper[:2, 0] = 0, 1
    outputs = draw.standard_normal((6, task.num_outputs + 1))
    found = task_metrics([task, Task("proper")], outputs, np.concatenate([labels, proper], axis=1))
    row = found["tasks"]["a"]
    assert row["accuracy"] is not None
    assert (row["balanced_accuracy"], row["average_precision"]) == (None, None)
    for metric in ("balanced_accuracy", "average_precision"):
        assert found["mean"][metric] == found["tasks"]["proper"][metric], (
            "it does not lift the mean"
        )


def test_what_is_undefined_in_every_data_set_stays_so_when_they_are_merged_and_elsewhere_the_others_count() -> (
    None
):
    draw = np.random.default_rng(4)
    tasks = [Task("split up"), Task("in one"), Task("plain")]
    parts = []
    for positive in (0.0, 1.0):
        labels = draw.integers(0, 2, (20, 3)).astype(float)
        labels[:2] = [[0, 0, 0], [1, 1, 1]]
        labels[:, 0] = positive
        if positive:
            labels[:, 1] = 1.0
        parts.append(task_metrics(tasks, draw.standard_normal((20, 3)), labels))
    merged = merge_metrics(parts)
    assert merged["tasks"]["split up"]["average_precision"] is None
    assert (
        merged["tasks"]["in one"]["average_precision"]
        == parts[0]["tasks"]["in one"]["average_precision"]
    )
    known = [merged["tasks"][name]["average_precision"] for name in ("in one", "plain")]
    assert merged["mean"]["average_precision"] == pytest.approx(np.mean(known))


def test_a_set_in_which_one_task_alone_competes_or_one_class_alone_is_true_finds_nothing_by_it() -> (
    None
):
    outputs = np.random.default_rng(0).standard_normal((5, 3))
    alone = task_metrics(exclusive("abc"), outputs, np.tile([1.0, NAN, NAN], (5, 1)))
    assert alone["exclusive"]["kind"] == {
        "accuracy": None, "balanced_accuracy": None, "top3": None, "top5": None, "num_labelled": 5,
    }  # fmt: skip
    assert (alone["mean"]["top3"], alone["mean"]["top5"]) == (None, None)
    same = task_metrics(exclusive("abc"), outputs, np.tile([1.0, 0.0, 0.0], (5, 1)))["exclusive"][
        "kind"
    ]
    assert same["balanced_accuracy"] is None
    assert same["accuracy"] == np.mean(outputs.argmax(axis=1) == 0)


def exclusive(names: str = "abcdefg") -> list[Task]:
    return [Task(name, exclusive="kind") for name in names]


def test_an_exclusive_set_is_scored_by_its_highest_task_like_a_naive_search() -> None:
    draw = np.random.default_rng(3)
    truth = draw.integers(0, 7, 200)
    labels = np.concatenate([np.eye(7)[truth], draw.integers(0, 2, (200, 1))], axis=1)
    labels[5, :7] = NAN  # not labelled in the set
    labels[6, 3] = NAN  # nor is this one, wholly
    labels[7, :7] = 0  # of none of the classes
    outputs = draw.standard_normal((200, 8)) + 2 * np.concatenate(
        [np.eye(7)[truth], np.zeros((200, 1))], axis=1
    )
    found = task_metrics([*exclusive(), Task("other")], outputs, labels)
    hits: dict[int, list[float]] = {1: [], 3: [], 5: []}
    recalls: dict[int, list[bool]] = {}
    for number in set(range(200)) - {5, 6, 7}:
        ranked = sorted(range(7), key=lambda column: -outputs[number, column])
        for k, row in hits.items():
            row.append(truth[number] in ranked[:k])
        recalls.setdefault(truth[number], []).append(ranked[0] == truth[number])
    row = found["exclusive"]["kind"]
    assert row["num_labelled"] == 197
    assert row["accuracy"] == pytest.approx(np.mean(hits[1]))
    assert (row["top3"], row["top5"]) == (
        pytest.approx(np.mean(hits[3])),
        pytest.approx(np.mean(hits[5])),
    )
    assert row["balanced_accuracy"] == pytest.approx(
        np.mean([np.mean(one) for one in recalls.values()])
    )
    assert found["mean"]["top3"] == row["top3"]
    accuracies = [one["accuracy"] for one in found["tasks"].values()]
    assert found["mean"]["accuracy"] == pytest.approx(np.mean(accuracies)), (
        "a set is not one more task"
    )


def test_top_3_is_meaned_over_categorical_tasks_and_sets() -> None:
    draw = np.random.default_rng(1)
    truth = np.arange(40) % 4
    tasks = [*exclusive("abcd"), Task("colour", "categorical", ("red", "green", "blue", "grey"))]
    found = task_metrics(tasks, draw.standard_normal((40, 8)), np.c_[np.eye(4)[truth], truth])
    both = [found["tasks"]["colour"]["top3"], found["exclusive"]["kind"]["top3"]]
    assert found["mean"]["top3"] == pytest.approx(np.mean(both))
    assert both[0] != both[1]


def test_tasks_without_a_label_compete_neither_for_the_highest_scores_nor_in_their_set() -> None:
    outputs = np.array([[9.0, 9.0, 2.0, 1.0], [9.0, 9.0, 1.0, 2.0]])
    labels = np.array([[NAN, NAN, 1.0, 0.0], [NAN, NAN, 0.0, 1.0]])
    found = task_metrics([Task("x"), *exclusive("abc")], outputs, labels, top_k=1)
    assert found["mean"]["top1_recall"] == 1.0
    assert (
        found["tasks"]["x"]
        == task_metrics([Task("x")], outputs[:, :1], labels[:, :1], top_k=1)["tasks"]["x"]
    )
    assert found["exclusive"]["kind"]["accuracy"] == 1.0
    nothing = task_metrics(exclusive("ab"), np.zeros((2, 2)), np.full((2, 2), NAN))
    assert nothing["exclusive"]["kind"]["accuracy"] is None


def test_merged_metrics_keep_the_only_row_and_weigh_several_by_their_labels() -> None:
    draw = np.random.default_rng(0)
    tasks = [*exclusive("ab"), Task("c"), Task("d")]
    parts = []
    for size, unlabelled in ((30, 3), (10, 0)):
        truth = draw.integers(0, 2, size)
        labels = np.stack(
            [truth, 1 - truth, draw.integers(0, 2, size), draw.integers(0, 2, size)], axis=1
        ).astype(float)
        labels[:, unlabelled] = NAN
        parts.append(task_metrics(tasks, draw.standard_normal((size, 4)), labels))
    merged = merge_metrics(parts)
    assert merged["tasks"]["a"] == parts[0]["tasks"]["a"]
    assert merged["tasks"]["d"] == parts[1]["tasks"]["d"]
    expected = 0.75 * parts[0]["tasks"]["c"]["accuracy"] + 0.25 * parts[1]["tasks"]["c"]["accuracy"]
    assert merged["tasks"]["c"]["accuracy"] == pytest.approx(expected)
    assert merged["tasks"]["c"]["num_labelled"] == 40
    assert merge_metrics(parts[:1]) == parts[0]


def test_the_json_of_a_task_gives_the_same_task() -> None:
    for task in (*MIXED, *exclusive("a")):
        assert Task.from_json(task.to_json()) == task
    assert Task.from_json({"name": "a"}) == Task("a")
    assert Task("a").to_json() == {
        "name": "a",
        "kind": "binary",
    }  # as it was written before there were exclusive sets


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("a", "dense"), "no kind of task 'dense'"),
        (("a", "categorical", ("red",)), "at least two different classes"),
        (("a", "categorical", ("red", "red")), "at least two different classes"),
        (("a", "binary", ("yes", "no")), "binary task has no field 'classes'"),
        (("a", "categorical", ("red", "blue"), "set"), "categorical task has no field 'exclusive'"),
    ],
)
def test_a_task_that_makes_no_sense_is_refused(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Task(*arguments)  # type: ignore[arg-type]


def test_two_tasks_of_one_name_are_refused() -> None:
    with pytest.raises(UserError, match=r"more than once: \['a'\]"):
        TaskSet((Task("a"), Task("a")))
