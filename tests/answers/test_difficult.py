"""Planted wrong labels come first, and what is difficult for a group is found by its tasks alone."""

from pathlib import Path

import numpy as np
import pytest

from distbranch.answers.difficult import GroupMargins, find_wrong, measure_suspicion
from distbranch.answers.findings import find_threshold, measure_task
from distbranch.answers.predictions import TaskAnswers, name_columns
from distbranch.engine.run_directory import replaced_atomically
from distbranch.kinds.kind import Array
from distbranch.report.answers import draw_confusion, list_answer_tables, tabulate_answers
from distbranch.tasks import Task

RARE = Task("rare")
COLOUR = Task("colour", "categorical", ("red", "green", "blue"))
SIZE = Task("size", "ordinal", ("s", "m", "l", "xl"))
AGE = Task("age", "number", mean=40, deviation=10, unit="years")


def make_answers(labels: Array, scores: Array, margins: Array) -> TaskAnswers:
    return TaskAnswers(np.arange(len(labels)), labels.astype(float), scores, margins)


def test_planted_wrong_labels_of_a_rare_task_come_before_its_usual_misses() -> None:
    draw = np.random.default_rng(0)
    truth = draw.random(1000) < 0.05
    # A network that is sure of what is not there, and misses half of what is there.
    scores = np.where(truth, draw.choice([0.02, 0.9], 1000), 0.01)
    labels = truth.copy()
    planted = np.concatenate(
        [np.flatnonzero(truth & (scores > 0.5))[:4], np.flatnonzero(~truth)[:2]]
    )
    labels[planted] = ~labels[planted]
    answers = make_answers(labels, scores[:, None], np.abs(labels - scores))
    suspicion = measure_suspicion(RARE, answers)
    wrong = find_wrong(RARE, answers)
    assert set(np.flatnonzero(wrong)[np.argsort(-suspicion[wrong])][:4]) == set(planted[:4])
    # By margins alone all misses would come first.
    assert (
        answers.margins[(labels == 1) & (scores < 0.5)].min() > answers.margins[planted[:4]].max()
    )


def test_planted_wrong_classes_come_first() -> None:
    draw = np.random.default_rng(1)
    truth = draw.integers(0, 3, 300)
    scores = draw.dirichlet([0.3] * 3, 300) * 0.1
    scores[np.arange(300), truth] += 0.9
    labels = truth.copy()
    labels[:9] = (labels[:9] + 1) % 3
    margins = 1 - scores[np.arange(300), labels]
    answers = make_answers(labels, scores, margins)
    assert set(np.argsort(-measure_suspicion(COLOUR, answers))[:9]) == set(range(9))
    assert set(np.flatnonzero(find_wrong(COLOUR, answers))) == set(range(9))


def test_images_that_a_group_finds_difficult_together_are_its_own() -> None:
    groups = GroupMargins([["a", "b"], ["c", "d"]], 20)
    for name in "abcd":
        margins = np.full(20, 0.1)
        margins[3 if name in "ab" else 7] = 0.6  # together more than the error of one task
        margins[{"a": 11, "b": 12, "c": 13, "d": 14}[name]] = 0.9
        groups.add(name, make_answers(np.zeros(20), np.zeros((20, 1)), margins))
    assert [rows[0] for rows in groups.find_hardest(np.full(20, True), 5)] == [3, 7]
    without = np.arange(20) != 3
    assert 3 not in groups.find_hardest(without, 5)[0]


def test_an_ordinal_answer_is_its_median_and_confusion_counts_it() -> None:
    scores = np.array([[0.4, 0.2, 0.0, 0.4], [0.1, 0.1, 0.1, 0.7], [0.9, 0.1, 0.0, 0.0]])
    answers = make_answers(np.array([1, 3, 1]), scores, np.zeros(3))
    found = measure_task(SIZE, answers, np.full(3, True), None)
    assert found["confusion"] == [[0, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]]
    assert found["accuracy"] == found["base_rate"] == 2 / 3
    assert find_wrong(SIZE, answers).tolist() == [False, False, True]
    figure = draw_confusion(found["confusion"], SIZE.classes)
    assert [text.get_text() for text in figure.axes[0].texts] == ["1", "1", "1"]


def test_only_labelled_rows_of_the_split_count_and_one_label_alone_gives_no_threshold() -> None:
    labels = np.array([1, 0, 1, 1, 1])
    answers = TaskAnswers(
        np.array([0, 2, 3, 5, 6]), labels, np.array([[0.9], [0.4], [0.7], [0.2], [0.1]]), 1 - labels
    )
    is_val = np.array([True, True, True, True, False, False, False])
    threshold = find_threshold(answers, is_val, None)
    assert threshold is not None
    assert threshold["threshold"] == 0.7
    assert find_threshold(answers, ~is_val, None) is None
    found = measure_task(RARE, answers, ~is_val, 0.15)
    # 0.2 and 0.1, of which the threshold makes yes and no.
    assert (found["num_labelled"], found["base_rate"], found["accuracy"]) == (2, 1.0, 0.5)
    assert find_wrong(RARE, answers, 0.15).tolist() == [False, True, False, False, True]
    assert (found["recall"], found["precision"]) == (0.5, 1.0)
    assert "average_precision" not in found
    assert measure_task(RARE, answers, is_val & False, 0.15)["num_labelled"] == 0


def test_a_table_of_tasks_has_units_intervals_and_dashes_for_what_a_kind_lacks() -> None:
    ages = make_answers(np.array([20, 30]), np.array([[22.0], [26.0]]), np.zeros(2))
    binary = make_answers(np.array([0, 1]), np.array([[0.2], [0.7]]), np.array([0.2, 0.3]))
    everything = np.full(2, True)
    cells = tabulate_answers(
        {
            "age": measure_task(AGE, ages, everything, None),
            "rare": measure_task(RARE, binary, everything, 0.5),
        }
    )
    age, rare = cells.to_dict("records")
    assert age["mean absolute error"] == "3 years"
    assert age["error, 95 % interval"] == "2 \u2013 4"
    assert (age["accuracy %"], rare["accuracy %"]) == ("\u2013", "100.0")
    assert (rare["base rate %"], rare["threshold"]) == ("50.0", "0.5")


def test_a_page_has_numbers_in_a_table_of_their_own() -> None:
    ages = make_answers(np.array([20, 30]), np.array([[22.0], [26.0]]), np.zeros(2))
    binary = make_answers(np.array([0, 1]), np.array([[0.2], [0.7]]), np.array([0.2, 0.3]))
    everything = np.full(2, True)
    age = {"age": measure_task(AGE, ages, everything, None)}
    rare = {"rare": measure_task(RARE, binary, everything, 0.5)}
    shares, numbers = list_answer_tables(age | rare)
    assert "mean absolute error" not in shares
    assert list(numbers) == ["task", "mean absolute error", "error, 95 % interval", "labelled"]
    assert len(list_answer_tables(age)) == 1


def test_columns_of_odd_names_do_not_collide() -> None:
    tasks = [Task("key"), Task("a", "categorical", ("b", "c")), Task("a:b"), Task("label:key")]
    columns = name_columns(tasks)
    names = [name for one in columns.values() for name in (one.label, one.margin, *one.scores)]
    assert len(set(names) | {"key", "split", "dataset", "position"}) == len(names) + 4
    assert columns["a"].scores == ("a:b", "a:c")


def write_half(file: Path) -> None:
    with replaced_atomically(file) as aside:
        aside.write_text("half")
        raise KeyboardInterrupt


def test_nothing_is_left_of_a_file_that_could_not_be_finished(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("before")
    with pytest.raises(KeyboardInterrupt):
        write_half(tmp_path / "file")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["before"]
