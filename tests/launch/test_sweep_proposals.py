"""Optuna as the chooser: what it proposed and what came of it is read again from the disk."""

import json
import sys
from pathlib import Path

import pytest
from sweep_files import write_sweep

from distbranch.config import Config
from distbranch.config.sweep import Range, SweepConfig, load_sweep
from distbranch.errors import UsageError
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
    summary = {"metrics": {"val": {"mean": means}}}
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
