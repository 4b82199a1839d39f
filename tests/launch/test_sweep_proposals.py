"""Optuna as the chooser: what it proposed and what came of it is read again from the disk."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from sweep_files import write_sweep

from distbranch.config import Config
from distbranch.config.sweep import Range, SweepConfig, load_sweep
from distbranch.errors import UsageError
from distbranch.report.sweep_files import find_pareto_front
from distbranch.sweep.proposals import OptunaSearch
from distbranch.sweep.trial_status import FAILED, SweepDirectory

SPACE = {
    "optim.lr": {"low": 1e-4, "high": 1e-1, "log": True},
    "model.width": {"low": 2, "high": 8, "int": True},
    "data.image_size": {"choices": [[32, 32], [48, 64]]},
}


@pytest.fixture
def sweep(tmp_path: Path) -> SweepConfig:
    loaded = load_sweep(
        write_sweep(
            tmp_path, search="optuna", num_trials=20, seeds=[0, 1], space=SPACE, metric="accuracy"
        )
    )
    loaded.path.mkdir(parents=True)
    return loaded


def finish(config: Config) -> None:
    """Give a trial a result that is the better, the nearer its learning rate is to 0.01."""
    config.run_directory.mkdir()
    value = 1 - abs(config.optim.lr - 0.01)
    means = {"accuracy": value, "standardised_error": 1 - value}
    costs = {"weights": 10 * config.model.width, "multiply_adds": config.model.width**2}
    summary = {"metrics": {"val": {"mean": means}}, **costs}
    (config.run_directory / "result.json").write_text(json.dumps(summary))
    tree = {"layers": ["conv"], "num_tasks": 1, "splits": []}
    (config.run_directory / "tree.json").write_text(json.dumps({"tree": tree}))


def test_proposals_come_with_every_seed_in_range_and_are_told_the_mean(sweep: SweepConfig) -> None:
    proposals = OptunaSearch(sweep, SweepDirectory(sweep.path))
    while trials := proposals.propose_trials():
        assert [trial.seed for trial in trials] == [0, 1]
        assert 1e-4 <= trials[0].optim.lr <= 1e-1
        assert 2 <= trials[0].model.width <= 8
        assert trials[0].data.image_size in ((32, 32), (48, 64))
        for trial in trials:
            finish(trial)
    assert len(proposals.trials) == 2 * 20
    told = [
        (trial.value, trials[0].optim.lr)
        for trial, (_, trials) in zip(
            proposals.make_study().trials, proposals.proposals, strict=True
        )
    ]
    assert all(value == pytest.approx(1 - abs(rate - 0.01)) for value, rate in told)


@pytest.mark.parametrize("metric", ["accuracy", "standardised_error"])
def test_the_best_of_a_study_is_the_most_accurate_or_that_of_the_least_error(
    sweep: SweepConfig, metric: str
) -> None:
    proposals = OptunaSearch(
        sweep.model_copy(update={"metric": metric, "num_trials": 5}), SweepDirectory(sweep.path)
    )
    while trials := proposals.propose_trials():
        for trial in trials:
            finish(trial)
    study = proposals.make_study()
    rates = [trials[0].optim.lr for _, trials in proposals.proposals]
    assert study.best_trial.number == min(range(5), key=lambda n: abs(rates[n] - 0.01))


def load_journal(directory: SweepDirectory) -> Any:
    """The study as `optuna-dashboard FILE` finds it."""
    storage = JournalStorage(JournalFileBackend(str(directory.journal)))
    return optuna.load_study(study_name=None, storage=storage)


def test_with_a_cost_the_best_of_a_study_are_the_pareto_front_of_worth_and_cost(
    sweep: SweepConfig,
) -> None:
    weighed = sweep.model_copy(update={"cost": "multiply_adds"})
    proposals = OptunaSearch(weighed, SweepDirectory(sweep.path))
    while trials := proposals.propose_trials():
        for trial in trials:
            finish(trial)
    study = proposals.make_study()
    assert [direction.name for direction in study.directions] == ["MAXIMIZE", "MINIMIZE"]
    told = [
        (1 - abs(trials[0].optim.lr - 0.01), trials[0].model.width ** 2)
        for _, trials in proposals.proposals
    ]
    assert [tuple(trial.values) for trial in study.trials] == [pytest.approx(pair) for pair in told]
    points = pandas.DataFrame(told, columns=["value", "cost"]).assign(is_complete=True)
    best = [told[number] for number in find_pareto_front(points, "cost", "value")]
    found = sorted(trial.values[::-1] for trial in study.best_trials)
    assert [tuple(values[::-1]) for values in found] == [pytest.approx(pair) for pair in best]


def test_a_search_for_a_front_comes_to_try_cheap_networks(sweep: SweepConfig) -> None:
    # The metric does not depend on the width, so only the cost can draw the search to narrow networks.
    weighed = sweep.model_copy(update={"cost": "weights", "num_trials": 30, "seeds": (0,)})
    proposals = OptunaSearch(weighed, SweepDirectory(weighed.path))
    while trials := proposals.propose_trials():
        finish(trials[0])
    widths = [trials[0].model.width for _, trials in proposals.proposals]
    # Of widths from 2 to 8 drawn evenly the mean of twenty is 5, give or take 0.4.
    assert np.mean(widths[10:]) < 4


def test_the_journal_is_what_the_disk_says_also_after_a_driver_was_killed_while_it_wrote(
    sweep: SweepConfig,
) -> None:
    directory = SweepDirectory(sweep.path)
    before = OptunaSearch(sweep, directory)
    groups = [before.propose_trials() for _ in range(5)]
    for trial in groups[0]:
        finish(trial)
    before.write_journal()
    # The driver dies in the middle of a line, and a trial ends that it had heard nothing of.
    directory.journal.write_bytes(directory.journal.read_bytes()[:-20])
    for trial in groups[1]:
        finish(trial)
    for trial in groups[2]:
        directory.record_end(str(trial.run.name), FAILED, "no room")
    after = OptunaSearch(sweep, directory)
    after.write_journal()
    study = load_journal(directory)
    assert [trial.state.name for trial in study.trials] == [
        *("COMPLETE", "COMPLETE", "FAIL", "RUNNING", "RUNNING")
    ]
    for trial, trials in zip(study.trials, groups, strict=True):
        assert trial.params["optim.lr"] == trials[0].optim.lr, "as trained, not as drawn"
        assert json.loads(trial.params["data.image_size"]) == list(trials[0].data.image_size)
        assert trial.user_attrs["runs"] == [config.run.name for config in trials]
    assert study.metric_names == ["accuracy"]

    # What has ended cannot be changed in a journal: it is written anew where a failed trial was tried again.
    for trial in groups[2]:
        finish(trial)
    after.write_journal()
    values = [trial.value for trial in load_journal(directory).trials]
    assert values == [trial.value for trial in after.make_study().trials]
    assert values.count(None) == 2


def test_a_setting_whose_metric_is_undefined_fails_and_the_search_proposes_on(
    sweep: SweepConfig,
) -> None:
    proposals = OptunaSearch(sweep, SweepDirectory(sweep.path))
    for number in range(3):
        for trial in proposals.propose_trials():
            finish(trial)
            if number == 1:
                means: dict[str, Any] = {"accuracy": None}
                summary = {"metrics": {"val": {"mean": means}}, "weights": 1}
                (trial.run_directory / "result.json").write_text(json.dumps(summary))
    study = proposals.make_study()
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "FAIL", "COMPLETE"]
    assert proposals.propose_trials()


def test_nothing_is_written_to_a_journal_that_is_in_step(sweep: SweepConfig) -> None:
    directory = SweepDirectory(sweep.path)
    proposals = OptunaSearch(sweep.model_copy(update={"num_trials": 3}), directory)
    while trials := proposals.propose_trials():
        for trial in trials:
            finish(trial)
    proposals.write_journal()
    written = directory.journal.read_bytes()
    OptunaSearch(sweep, directory).write_journal()
    assert directory.journal.read_bytes() == written


def test_a_new_process_knows_every_proposal_and_what_it_reached(sweep: SweepConfig) -> None:
    directory = SweepDirectory(sweep.path)
    before = OptunaSearch(sweep, directory)
    groups = [before.propose_trials() for _ in range(4)]
    for trial in (*groups[0], groups[1][0]):
        finish(trial)
    for trial in groups[2]:
        directory.record_end(str(trial.run.name), FAILED, "no room")
    after = OptunaSearch(sweep, directory)
    assert [trials for _, trials in after.proposals] == groups
    assert before.propose_trials() == after.propose_trials(), "both ask a study of the same runs"
    states = [trial.state.name for trial in after.make_study().trials]
    assert states == ["COMPLETE", "RUNNING", "FAIL", "RUNNING", "RUNNING"]
    assert [trial.params for trial in after.make_study().trials] == [
        line["drawn"] for line, _ in before.proposals
    ]


def test_no_setting_is_proposed_twice_and_the_search_ends_where_nothing_is_new(
    sweep: SweepConfig, caplog: pytest.LogCaptureFixture
) -> None:
    few = sweep.model_copy(
        update={"space": {"model.width": Range(choices=(2, 4, 8))}, "num_trials": 5}
    )
    directory = SweepDirectory(few.path)
    widths = []
    for _ in range(2):  # another process knows what the one before proposed
        proposals = OptunaSearch(few, directory)
        while trials := proposals.propose_trials():
            widths.append(trials[0].model.width)
            for trial in trials:
                finish(trial)
    assert sorted(widths) == [2, 4, 8]
    assert "ends after 3 settings instead of num_trials=5" in caplog.text


def test_without_optuna_one_sentence_says_what_to_install(
    sweep: SweepConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UsageError, match=r"pip install 'distbranch\[optuna\]'"):
        OptunaSearch(sweep, SweepDirectory(sweep.path))
