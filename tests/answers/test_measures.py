"""Thresholds, curves and intervals: what scikit-learn and brute force say, and what was planted."""

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import (
    average_precision_score,
    f1_score,
    precision_recall_curve,
    precision_score,
    recall_score,
)

from distbranch.answers.measures import (
    average_precision,
    choose_threshold,
    find_intervals,
    measure_reliability,
    measure_yes,
    thin_curve,
)
from distbranch.kinds.kind import Array

SEEDS = range(3)


def draw_answers(seed: int, num_samples: int = 40) -> tuple[Array, Array]:
    """Truth and scores, many of them equal to others."""
    draw = np.random.default_rng(seed)
    truth = draw.random(num_samples) < 0.3
    scores = (0.3 * truth + 0.7 * draw.random(num_samples)).round(2)
    return truth, scores


@pytest.mark.parametrize("seed", SEEDS)
def test_the_threshold_has_the_best_f1_of_all_that_could_be_tried(seed: int) -> None:
    truth, scores = draw_answers(seed)
    chosen = choose_threshold(truth, scores)
    tried = {at: f1_score(truth, scores >= at) for at in np.unique(scores)}
    assert chosen["f1"] == pytest.approx(max(tried.values()))
    assert tried[chosen["threshold"]] == max(tried.values())
    predicted = scores >= chosen["threshold"]
    assert chosen["precision"] == pytest.approx(precision_score(truth, predicted))
    assert chosen["recall"] == pytest.approx(recall_score(truth, predicted))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("wanted", [0.4, 0.7])
def test_of_thresholds_that_are_precise_enough_the_one_that_recalls_most_is_chosen(
    seed: int, wanted: float
) -> None:
    truth, scores = draw_answers(seed)
    recalls = {
        at: recall_score(truth, scores >= at)
        for at in np.unique(scores)
        if precision_score(truth, scores >= at) >= wanted
    }
    chosen = choose_threshold(truth, scores, wanted)
    assert chosen["reached"]
    assert chosen["precision"] >= wanted
    assert recalls[chosen["threshold"]] == max(recalls.values())
    alike = [at for at, recall in recalls.items() if recall == max(recalls.values())]
    assert chosen["threshold"] == max(alike)


def test_a_precision_that_nothing_reaches_is_told_and_gives_the_most_precise_threshold() -> None:
    truth = np.array([False, True, False, True])
    chosen = choose_threshold(truth, np.array([0.9, 0.8, 0.7, 0.6]), 0.9)
    assert not chosen["reached"]
    assert (chosen["threshold"], chosen["precision"]) == (0.6, 0.5)


@pytest.mark.parametrize("seed", SEEDS)
def test_weighted_metrics_are_those_of_repeated_samples(seed: int) -> None:
    truth, scores = draw_answers(seed)
    weights = np.random.default_rng(seed).integers(0, 4, (3, len(truth))).astype(float)
    found = average_precision(truth, scores, weights)
    yes = measure_yes(truth, scores >= 0.5, weights)
    for row, of_row in enumerate(weights.astype(int)):
        own, shown = truth.repeat(of_row), scores.repeat(of_row)
        assert found[row] == pytest.approx(average_precision_score(own, shown))
        assert yes["f1"][row] == pytest.approx(f1_score(own, shown >= 0.5))
        assert yes["precision"][row] == pytest.approx(precision_score(own, shown >= 0.5))
        assert yes["recall"][row] == pytest.approx(recall_score(own, shown >= 0.5))


def test_intervals_cover_the_truth_about_as_often_as_they_say_and_a_seed_draws_the_same() -> None:
    draw = np.random.default_rng(0)
    covered = 0
    for _ in range(60):
        is_right = draw.random(200) < 0.8
        found = find_intervals(lambda weights: {"accuracy": weights @ is_right / 200}, 200)  # noqa: B023
        low, high = found["accuracy"]
        covered += low <= 0.8 <= high
    # Of 60 intervals of 95 % fewer than 52 cover the truth once in ten thousand times.
    assert covered >= 52
    repeated = find_intervals(lambda weights: {"accuracy": weights @ is_right / 200}, 200)
    assert repeated["accuracy"] == (low, high)
    spread = np.sqrt(is_right.mean() * (1 - is_right.mean()) / 200)
    assert high - low == pytest.approx(2 * 1.96 * spread, rel=0.15)


def test_samples_drawn_in_parts_have_the_interval_of_all_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    truth, scores = draw_answers(1)

    def measure(weights: Array) -> dict[str, Array]:
        assert (weights.sum(axis=1) == len(truth)).all()
        return {"average_precision": average_precision(truth, scores, weights)}

    together = find_intervals(measure, len(truth))
    monkeypatch.setattr("distbranch.answers.measures.MOST_WEIGHTS", 500)
    assert find_intervals(measure, len(truth)) == together


@pytest.mark.parametrize("seed", SEEDS)
def test_reliability_is_the_calibration_curve_of_scikit_learn(seed: int) -> None:
    truth, scores = draw_answers(seed, 400)
    scores = scores * 0.999  # no score on the edge of two bins
    table, error = measure_reliability(truth, scores)
    confidence, share, count = np.array(table).T
    expected = calibration_curve(truth, scores, n_bins=10)
    np.testing.assert_allclose((share, confidence), expected)
    assert error == pytest.approx((count * np.abs(share - confidence)).sum() / 400)


def test_what_is_as_probable_as_it_says_has_no_calibration_error() -> None:
    confidence = np.repeat([0.25, 0.75], 400)
    is_right = np.tile(np.arange(400) % 4 == 0, 2)
    is_right[400:] = ~is_right[400:]
    assert measure_reliability(is_right, confidence)[1] == 0
    assert measure_reliability(~is_right, confidence)[1] == 0.5


def test_a_thin_curve_keeps_its_ends_and_only_points_of_the_whole_one() -> None:
    truth, scores = draw_answers(2, 3000)
    curve = thin_curve(truth, scores, most=50)
    assert len(curve) <= 51
    assert curve[0] == pytest.approx([1, truth.mean()], abs=1e-5)
    precisions, recalls, _ = precision_recall_curve(truth, scores)
    whole = np.stack([recalls, precisions], axis=1).round(5).tolist()
    assert all(point in whole for point in curve)
