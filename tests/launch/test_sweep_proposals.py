"""Optuna as the chooser: what it proposed and what came of it is read again from the disk."""

import json
import sys
from pathlib import Path

import pytest
from sweep_files import write_sweep

from distbranch.config import Config
from distbranch.config.sweep import Range, SweepConfig, load_sweep
from distbranch.errors import UsageError
from distbranch.sweep.proposals import Proposals
from distbranch.sweep.trial_status import FAILED, SweepDirectory

SPACE = {
    "optim.lr": {"low": 1e-4, "high": 1e-1, "log": True},
    "model.width": {"low": 2, "high": 8, "int": True},
    "data.image_size": {"choices": [[32, 32], [48, 64]]},
}


@pytest.fixture
def sweep(tmp_path: Path) -> SweepConfig:
    loaded = load_sweep(
        write_sweep(tmp_path, search="optuna", num_trials=20, seeds=[0, 1], space=SPACE, metric="accuracy")
    )
    loaded.path.mkdir(parents=True)
    return loaded


def finish(config: Config) -> None:
    """Give a trial a result that is the better, the nearer its learning rate is to 0.01."""
    config.run_directory.mkdir()
    value = 1 - abs(config.optim.lr - 0.01)
    summary = {"metrics": {"val": {"mean": {"accuracy": value}}}}
    (config.run_directory / "result.json").write_text(json.dumps(summary))
    tree = {"layers": ["conv"], "num_tasks": 1, "splits": []}
    (config.run_directory / "tree.json").write_text(json.dumps({"tree": tree}))


def test_proposals_come_with_every_seed_in_range_and_are_told_the_mean(sweep: SweepConfig) -> None:
    proposals = Proposals(sweep, SweepDirectory(sweep.path))
    while trials := proposals.next():
        assert [trial.seed for trial in trials] == [0, 1]
        assert 1e-4 <= trials[0].optim.lr <= 1e-1
        assert 2 <= trials[0].model.width <= 8
        assert trials[0].data.image_size in ((32, 32), (48, 64))
        for trial in trials:
            finish(trial)
    assert len(proposals.trials) == 20
    told = [
        (trial.value, group[0].optim.lr) for trial, group in zip(proposals.study.trials, proposals.trials, strict=True)
    ]
    assert all(value == pytest.approx(1 - abs(rate - 0.01)) for value, rate in told)


def test_a_new_process_knows_every_proposal_and_what_it_reached(sweep: SweepConfig) -> None:
    directory = SweepDirectory(sweep.path)
    before = Proposals(sweep, directory)
    groups = [before.next() for _ in range(4)]
    for trial in (*groups[0], groups[1][0]):
        finish(trial)
    for trial in groups[2]:
        directory.end(str(trial.run.name), FAILED, "no room")
    after = Proposals(sweep, directory)
    assert after.trials == groups
    new = after.next()  # the sampler draws as in the process before, and what it draws again is passed over
    assert new[0].optim.lr not in [group[0].optim.lr for group in groups]
    states = [after.study.trials[asked.number].state.name for asked in after.asked]
    assert states == ["COMPLETE", "RUNNING", "FAIL", "RUNNING", "RUNNING"]
    assert after.study.trials[0].params == before.study.trials[0].params


def test_no_setting_is_proposed_twice_and_the_search_ends_where_nothing_is_new(
    sweep: SweepConfig, caplog: pytest.LogCaptureFixture
) -> None:
    few = sweep.model_copy(update={"space": {"model.width": Range(choices=(2, 4, 8))}, "num_trials": 5})
    directory = SweepDirectory(few.path)
    widths = []
    for _ in range(2):  # another process knows what the one before proposed
        proposals = Proposals(few, directory)
        while trials := proposals.next():
            widths.append(trials[0].model.width)
            for trial in trials:
                finish(trial)
    assert sorted(widths) == [2, 4, 8]
    assert "ends after 3 settings instead of num_trials=5" in caplog.text


def test_without_optuna_one_sentence_says_what_to_install(sweep: SweepConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UsageError, match=r"pip install 'distbranch\[optuna\]'"):
        Proposals(sweep, SweepDirectory(sweep.path))
