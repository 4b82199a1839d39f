"""What every kind of task brings: losses, margins, scores, answers and labels against slow or published references."""

import json
import math

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from sklearn.metrics import cohen_kappa_score, mean_absolute_error, r2_score
from torch import Tensor
from torch.nn import functional

from distbranch.branching.affinity import AffinityStats
from distbranch.config.names import BUILT_IN
from distbranch.config.training import LossConfig
from distbranch.errors import UserError
from distbranch.kinds import KINDS, Kind, Metric, Metrics
from distbranch.losses import choose_losses
from distbranch.metrics import is_defined, list_metrics, merge_metrics, task_metrics
from distbranch.tasks import Task, TaskSet

NAN = float("nan")
AGE = Task("age", "number", mean=40.0, deviation=10.0, unit="years")
PRICE = Task("price", "number", mean=2000.0, deviation=500.0)
SIZE = Task("size", "ordinal", ("small", "medium", "large", "huge"))
ALL = (Task("hat"), AGE, Task("colour", "categorical", ("red", "green")), PRICE, SIZE)
LABELS = torch.tensor([[1.0, 57.0, 0.0, 1500.0, 2.0], [0.0, 31.0, 1.0, 2100.0, 0.0]])


def outputs_of(tasks: TaskSet, count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, tasks.num_outputs, generator=torch.Generator().manual_seed(seed))


def test_a_number_has_the_smooth_l1_loss_of_its_standardised_label_among_tasks_of_all_kinds() -> (
    None
):
    tasks = TaskSet(ALL)
    outputs = outputs_of(tasks, 2)
    losses = tasks.compute_losses(outputs, LABELS)
    logits = tasks.split_by_task(outputs)
    for place, task in ((1, AGE), (3, PRICE)):
        standardised = (LABELS[:, place] - task.mean) / task.deviation
        expected = functional.smooth_l1_loss(logits[task.name], standardised, reduction="none")
        assert torch.equal(losses[:, place], expected)
    without = TaskSet((ALL[0], ALL[2], ALL[4]))
    columns = [
        place for name in without.names for place in range(tasks.num_outputs)[tasks.columns[name]]
    ]
    expected = without.compute_losses(outputs[:, columns], LABELS[:, [0, 2, 4]])
    assert torch.equal(losses[:, [0, 2, 4]], expected), "numbers change nothing for the others"


def test_a_loss_is_replaced_for_all_tasks_of_one_kind_alone() -> None:
    tasks = TaskSet(ALL, choose_losses({"number": "squared-error"}))
    outputs = outputs_of(tasks, 2)
    found, usual = (
        tasks.compute_losses(outputs, LABELS),
        TaskSet(ALL).compute_losses(outputs, LABELS),
    )
    error = tasks.split_by_task(outputs)["age"] - (LABELS[:, 1] - 40) / 10
    assert torch.allclose(found[:, 1], error.square())
    assert torch.equal(found[:, [0, 2, 4]], usual[:, [0, 2, 4]])


def test_every_loss_by_name_trains_its_kind_and_the_first_of_a_kind_is_its_own() -> None:
    tasks = {task.kind: task for task in reversed(ALL)}
    first: set[str] = set()
    for named in BUILT_IN["loss"]:
        kind, _, name = named.partition(":")
        if KINDS[kind].is_dense:  # see test_dense_kinds.py
            continue
        task = tasks[kind]
        chosen = TaskSet([task], choose_losses(LossConfig(functions={kind: name}).functions))
        outputs = outputs_of(chosen, 2).requires_grad_()
        labels = LABELS[:, [ALL.index(task)]]
        losses = chosen.compute_losses(outputs, labels)
        losses.sum().backward()  # type: ignore[no-untyped-call]
        assert outputs.grad is not None
        assert (outputs.grad.abs().sum(dim=1) > 0).all()
        if kind not in first:
            assert torch.equal(losses, TaskSet([task]).compute_losses(outputs, labels)), named
        first.add(kind)
    assert first == {"binary", "categorical", "number", "ordinal"}


def test_seconds_since_1970_are_standardised_without_a_shift_of_them_all() -> None:
    seconds = Task("when", "number", mean=1_600_000_070.0, deviation=10_000.0)
    labels = torch.tensor([[1_600_000_000.0], [1_600_012_800.0]])  # as float32 has them
    expected = torch.tensor([[-0.007], [1.273]])
    assert torch.equal(TaskSet([seconds]).standardise_labels(labels), expected)


def test_an_unlabelled_number_has_no_gradient_however_steep_the_loss_is_at_0() -> None:
    def lose_steeply(logits: Tensor, labels: Tensor) -> Tensor:
        return (logits.squeeze(2) - labels).exp()

    tasks = TaskSet([Task("when", "number", mean=1e9, deviation=1.0)], {"number": lose_steeply})
    outputs = torch.ones(2, 1, requires_grad=True)
    tasks.compute_losses(outputs, torch.full((2, 1), NAN)).sum().backward()  # type: ignore[no-untyped-call]
    assert outputs.grad is not None
    assert not outputs.grad.any()


def test_margins_lie_in_0_to_1_and_grow_with_the_error() -> None:
    tasks = TaskSet([AGE])
    outputs = torch.linspace(0, 30, 50)[:, None]
    margins = tasks.compute_margins(outputs, torch.full((50, 1), 40.0))[:, 0]
    assert margins[0] == 0
    assert (margins.diff() >= 0).all()
    assert (margins[:20].diff() > 0).all(), "also beyond one deviation"
    assert margins[-1] <= 1
    everything = TaskSet(ALL)
    found = everything.compute_margins(5 * outputs_of(everything, 2), LABELS)
    assert ((found >= 0) & (found <= 1)).all()


def test_an_ordinal_task_of_two_classes_is_a_binary_one() -> None:
    logits = torch.randn(6, 1, generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([[0.0], [1.0], [1.0], [0.0], [NAN], [1.0]])
    two = TaskSet([Task("a", "ordinal", ("low", "high"))])
    binary = TaskSet([Task("a")])
    assert torch.equal(two.compute_losses(logits, labels), binary.compute_losses(logits, labels))
    assert torch.equal(two.compute_margins(logits, labels), binary.compute_margins(logits, labels))


def test_an_ordinal_task_loses_more_by_a_miss_of_two_classes_than_by_one() -> None:
    tasks = TaskSet([SIZE])
    outputs = torch.tensor([[4.0, -4.0, -4.0]]).expand(4, 3)  # sure of `medium`
    labels = torch.arange(4.0)[:, None]
    for values in (tasks.compute_losses(outputs, labels), tasks.compute_margins(outputs, labels)):
        small, medium, large, huge = values[:, 0].tolist()
        assert small == pytest.approx(large)
        assert medium < large < huge


def test_shares_of_ordered_classes_are_probabilities_whatever_the_thresholds_say() -> None:
    for row in KINDS["ordinal"].predict(SIZE, outputs_of(TaskSet([SIZE]), 20)):
        assert isinstance(row, dict)
        assert list(row) == list(SIZE.classes)
        assert min(row.values()) >= 0
        assert sum(row.values()) == pytest.approx(1, abs=1e-6)


def test_the_class_that_is_told_of_ordered_ones_is_the_median_that_is_scored() -> None:
    shares = {"small": 0.4, "medium": 0.15, "large": 0.0, "huge": 0.45}
    assert KINDS["ordinal"].describe_answer(SIZE, shares, 0.5) == "size=medium (15%)"
    logits = torch.tensor([[0.6, 0.45, 0.45]]).logit()
    assert KINDS["ordinal"].score(SIZE, logits.numpy(), np.array([1.0]))["accuracy"] == 1


def test_metrics_of_numbers_are_those_of_scikit_learn_in_the_unit_of_the_table() -> None:
    draw = np.random.default_rng(3)
    labels = np.column_stack([draw.normal(40, 10, 60), draw.normal(2000, 500, 60)])
    labels[::7, 0] = NAN
    outputs = draw.standard_normal((60, 2)) + (labels - [40, 2000]) / [10, 500]
    outputs[np.isnan(outputs)] = 9
    found = task_metrics([AGE, PRICE], outputs, labels)
    for place, task in enumerate((AGE, PRICE)):
        known = ~np.isnan(labels[:, place])
        truth = labels[known, place]
        predicted = outputs[known, place] * task.deviation + task.mean
        error = mean_absolute_error(truth, predicted)
        assert found["tasks"][task.name] == {
            "mean_absolute_error": pytest.approx(error),
            "standardised_error": pytest.approx(error / task.deviation),
            "r2": pytest.approx(r2_score(truth, predicted)),
            "rank_correlation": pytest.approx(spearmanr(truth, predicted).statistic),
            "num_labelled": known.sum(),
        }
    rows = found["tasks"].values()
    assert found["mean"] == {
        name: pytest.approx(np.mean([row[name] for row in rows]))
        for name in ("standardised_error", "r2", "rank_correlation")
    }, "years and prices have no mean"


def test_metrics_of_a_number_by_hand_and_where_they_are_undefined() -> None:
    outputs = np.array([[0.0], [1.0], [-1.0]])  # 40, 50 and 30 years
    row = task_metrics([AGE], outputs, np.array([[45.0], [50.0], [25.0]]))["tasks"]["age"]
    assert row["mean_absolute_error"] == pytest.approx(10 / 3)
    assert row["standardised_error"] == pytest.approx(1 / 3)
    assert row["r2"] == pytest.approx(1 - 50 / 350)
    assert row["rank_correlation"] == pytest.approx(1)
    constant = task_metrics([AGE], outputs, np.full((3, 1), 40.0))["tasks"]["age"]
    assert constant["mean_absolute_error"] == pytest.approx(20 / 3)
    assert (constant["r2"], constant["rank_correlation"]) == (None, None)
    blind = task_metrics([AGE], np.zeros((3, 1)), np.array([[1.0], [2.0], [3.0]]))["tasks"]["age"]
    assert blind["rank_correlation"] is None
    assert blind["r2"] < 0
    nothing = task_metrics([AGE], outputs, np.full((3, 1), NAN))["tasks"]["age"]
    assert nothing.pop("num_labelled") == 0
    assert set(nothing.values()) == {None}


def test_metrics_of_ordered_classes_are_those_of_their_ranks() -> None:
    draw = np.random.default_rng(4)
    truth = draw.integers(0, 4, 80)
    outputs = 3 * (truth[:, None] - np.array([0.5, 1.5, 2.5])) + 2 * draw.standard_normal((80, 3))
    row = task_metrics([SIZE], outputs, truth[:, None].astype(float))["tasks"]["size"]
    predicted = [next((n for n in range(3) if logits[n] <= 0), 3) for logits in outputs]
    assert 0.3 < row["accuracy"] < 0.95
    assert row["accuracy"] == pytest.approx(np.mean(predicted == truth))
    assert row["mean_absolute_error"] == pytest.approx(np.abs(predicted - truth).mean())
    assert row["rank_correlation"] == pytest.approx(spearmanr(predicted, truth).statistic)
    assert row["quadratic_kappa"] == pytest.approx(
        cohen_kappa_score(predicted, truth, weights="quadratic")
    )


def test_means_are_over_the_tasks_that_have_the_metric() -> None:
    tasks = [Task("hat"), AGE]
    outputs = np.array([[1.0, 0.1], [-1.0, 0.9], [2.0, -1.0]])
    labels = np.array([[1.0, 41.0], [1.0, 50.0], [0.0, 28.0]])
    mean = task_metrics(tasks, outputs, labels)["mean"]
    assert mean["accuracy"] == pytest.approx(1 / 3)
    assert mean["standardised_error"] == pytest.approx((0 + 0.1 + 0.2) / 3)
    assert "mean_absolute_error" not in mean
    merged = merge_metrics([task_metrics(tasks, outputs, labels)] * 2)
    assert merged["mean"] == pytest.approx(mean)
    assert merged["tasks"]["age"]["num_labelled"] == 6


def test_tasks_scored_from_sums_stand_in_their_order_among_the_others_and_in_the_means() -> None:
    scored = {"age": {"r2": 0.5, "num_labelled": 3}}
    outputs = np.array([[0.0], [1.0], [-1.0]])
    labels = np.array([[2300.0], [2500.0], [1300.0]])
    found = task_metrics([AGE, PRICE], outputs, labels, scored=scored)
    assert list(found["tasks"]) == ["age", "price"]
    alone = task_metrics([PRICE], outputs, labels)
    assert found["tasks"]["price"] == alone["tasks"]["price"]
    assert found["mean"]["r2"] == pytest.approx((0.5 + alone["mean"]["r2"]) / 2)
    nothing = np.zeros((3, 0))
    assert task_metrics([AGE], nothing, nothing, scored=scored)["mean"] == {"r2": 0.5}


def test_every_metric_has_a_title_and_errors_are_better_when_lower() -> None:
    metrics = list_metrics()
    assert list(metrics)[:6] == [
        "accuracy", "balanced_accuracy", "average_precision", "top10_recall", "top3", "top5"
    ]  # fmt: skip
    lower = {name for name, metric in metrics.items() if metric.lower_is_better}
    dense = {name for kind in KINDS.values() if kind.is_dense for name in kind.metrics}
    assert lower - dense == {"mean_absolute_error", "standardised_error"}
    assert {"abs_error", "rel_error", "mean_angle", "heat_error"} <= lower
    own = [metric.title for name, metric in metrics.items() if name not in dense]
    assert own[-3:] == [
        "R2", "Rank correlation", "Quadratic kappa"
    ]  # fmt: skip


# ---- labels


def counted(task: Task, values: list[float]) -> dict[str, float]:
    counts = KINDS[task.kind].make_counts(task)
    for value in values:
        if not math.isnan(value):
            counts.add(KINDS[task.kind].write_label(task, value))
    return counts.to_json() | {"unlabelled": len(values) - counts.num_labelled}


def test_counts_of_numbers_are_those_of_numpy_and_merge_as_if_counted_together() -> None:
    draw = np.random.default_rng(5)
    parts = [draw.normal(1e6, 3, size).tolist() for size in (40, 1, 7)]
    found = KINDS["number"].merge_counts(
        [counted(AGE, part) for part in parts] + [{"unlabelled": 4}]
    )
    together = np.concatenate(parts)
    assert found == {
        "count": 48,
        "mean": pytest.approx(together.mean(), rel=1e-12),
        "deviation": pytest.approx(together.std(), rel=1e-9),
        "min": together.min(),
        "max": together.max(),
        "unlabelled": 4,
    }
    assert KINDS["number"].merge_counts([{"count": 0, "unlabelled": 3}]) == {
        "count": 0,
        "unlabelled": 3,
    }


@pytest.mark.parametrize("task", ALL, ids=lambda task: task.kind)
def test_labels_and_tasks_come_back_as_they_were_written(task: Task) -> None:
    kind = KINDS[task.kind]
    for label in (0.0, 1.0):
        written = json.loads(json.dumps(kind.write_label(task, label)))
        assert kind.read_label(task, written) == label
    assert Task.from_json(json.loads(json.dumps(task.to_json()))) == task
    described = kind.describe_label(task, 1.0)
    assert described.startswith(task.name)


@pytest.mark.parametrize(
    ("task", "value", "words"),
    [
        (AGE, "7", "the label of 'age' should be a number, .*found '7'"),
        (AGE, NAN, "should be a number, .*found nan"),
        (AGE, float("inf"), "should be a number, .*found inf"),
        (AGE, -1e39, "should be a number, at most 3.4e.38, found -1e.39"),
        (AGE, None, "should be a number, .*found None"),
        (SIZE, "Small", "one of its 4 classes, found 'Small'"),
        (ALL[0], 1.5, "a number from 0 to 1, found 1.5"),
    ],
)
def test_a_label_that_is_none_of_its_task_is_told(task: Task, value: object, words: str) -> None:
    with pytest.raises(UserError, match=words):
        KINDS[task.kind].read_label(task, value)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"kind": "number", "deviation": 0.0}, "deviation, above 0"),
        ({"kind": "number", "mean": NAN}, "found mean nan"),
        ({"kind": "number", "classes": ("a", "b")}, "number task has no field 'classes'"),
        (
            {"kind": "binary", "mean": 2.0},
            "binary task has no field 'mean', found 2.0 of the task 'a'",
        ),
        ({"kind": "ordinal", "classes": ("a",)}, "ordinal task has at least two different classes"),
        ({"kind": "numbers"}, "The nearest are number"),
    ],
)
def test_a_task_with_fields_that_its_kind_cannot_use_is_refused(
    fields: dict[str, object], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        Task("a", **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("metric", list(list_metrics()))
def test_counts_tell_which_metrics_the_labels_of_numbers_and_ordered_classes_define(
    metric: str,
) -> None:
    outputs = np.array([[0.3, 1, -1, -1], [0.2, 1, 1, -1], [-0.5, -1, 1, 1]])
    columns = ([30.0, 50, 40], [40.0, 40, 40], [NAN] * 3), ([0.0, 2, 1], [2.0, 2, 2], [NAN] * 3)
    for ages in columns[0]:
        for sizes in columns[1]:
            tasks = [AGE, SIZE]
            rows = task_metrics(tasks, outputs, np.array([ages, sizes]).T)["tasks"]
            known = any(row.get(metric) is not None for row in rows.values())
            counts = {"age": counted(AGE, ages), "size": counted(SIZE, sizes)}
            assert is_defined(metric, tasks, counts) == known


# ---- what is made of them


def test_answers_are_in_the_unit_of_the_task_and_become_columns() -> None:
    number = KINDS["number"]
    answers = number.predict(AGE, torch.tensor([[0.5], [-1.0]]))
    assert answers == [45.0, 30.0]
    assert number.write_answer(AGE, 45.123456789) == {"age": "45.12345679"}
    assert number.write_answer(AGE, 1234567.0) == {"age": "1234567"}
    assert number.describe_answer(AGE, 45.0, 0.5) == "age=45 years"
    assert list(KINDS["ordinal"].write_answer(SIZE, {"small": 0.25, "medium": 0.75})) == [
        "size:small",
        "size:medium",
    ]


def test_two_numbers_that_are_hard_on_the_same_samples_have_a_high_affinity() -> None:
    draw = torch.Generator().manual_seed(6)
    other = Task("other", "number", mean=-5.0, deviation=0.1)
    tasks = TaskSet([AGE, PRICE, other])
    stats = AffinityStats(3)
    for _ in range(40):
        labels = torch.randn(32, 3, generator=draw)
        is_hard = torch.rand(32, 1, generator=draw) < 0.5
        is_hard_too = torch.rand(32, 1, generator=draw) < 0.5
        errors = torch.cat([is_hard, is_hard, is_hard_too], dim=1) * 2.0
        errors += 0.2 * torch.rand(32, 3, generator=draw)
        raw = labels * torch.tensor([10, 500, 0.1]) + torch.tensor([40, 2000, -5])
        stats.update(tasks.compute_margins(labels + errors, raw))
    phi = stats.affinity("phi")
    assert phi[0, 1] > 0.95
    assert abs(phi[0, 2] - 0.5) < 0.1


def test_a_kind_of_a_user_needs_a_loss_and_a_score_only() -> None:
    class Count(Kind):
        """Something countable: the loss of a Poisson distribution."""

        metrics = {"mean_ratio": Metric("Mean ratio", "", lower_is_better=True)}  # noqa: RUF012

        def compute_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
            rate = logits.squeeze(2)
            most = labels - torch.xlogy(labels, labels)  # so that the best loss is 0
            return rate.exp() - labels * rate - most

        def score(self, task: Task, logits: np.ndarray, labels: np.ndarray) -> Metrics:  # noqa: ARG002
            return {"mean_ratio": float(np.exp(logits).mean() / labels.mean())}

    name = "count of a test"
    KINDS.register(name)(Count())
    try:
        tasks = TaskSet([Task("cars", name), Task("hat"), Task("bikes", name)])
        outputs = torch.randn(5, 3, requires_grad=True)
        labels = torch.tensor([[3.0, 1, 0]] * 4 + [[NAN, 0, 2]])
        losses = tasks.compute_losses(outputs, labels)
        losses.sum().backward()  # type: ignore[no-untyped-call]
        margins = tasks.compute_margins(outputs, labels)
        assert (losses >= 0).all()
        assert losses[4, 0] == margins[4, 0] == 0
        assert torch.allclose(margins[:, 0], 1 - (-losses[:, 0]).exp())
        found = task_metrics(tasks.tasks, outputs.detach().numpy(), labels.numpy())
        assert found["tasks"]["cars"]["num_labelled"] == 4
        assert found["mean"]["mean_ratio"] == pytest.approx(
            np.mean([found["tasks"][task]["mean_ratio"] for task in ("cars", "bikes")])
        )
        assert counted(tasks.tasks[0], [3.0, 5.0, NAN])["mean"] == 4
        assert list_metrics()["mean_ratio"].lower_is_better
    finally:
        del KINDS._entries[name]


def test_an_answer_that_is_a_whole_number_is_told_as_it_is() -> None:
    """As a kind of one's own may give it."""
    people = Task("people")
    answer = Kind().summarise_answer(people, 3)
    assert Kind().write_answer(people, answer) == {"people": "3"}
