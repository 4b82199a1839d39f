"""train.iterations of a run is raised, or lowered to where it stands: it is resumed from its last checkpoint."""

from pathlib import Path
from typing import Any

import pytest
from rank_server import RankServer
from tiny_runs import anew_config, assert_same_content, config_of, lines_of, train_tiny

from distbranch.config import load_config
from distbranch.engine.results import read_result
from distbranch.engine.run_directory import RunDirectory, append_line
from distbranch.engine.run_start import begin_run, check_has_ended
from distbranch.engine.scout import make_scout_config
from distbranch.errors import UserError

SCHEDULES = [{"optim.schedule": "constant"}, {"optim.schedule": "step", "optim.decay_every": 5}]
SHORT = {"train.evaluate_every": 0, "method.round_iterations": 4}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_finished_run_that_resumes_is_the_run_of_all_its_steps(
    schedule: dict[str, Any], tiny_data: Path, tmp_path: Path
) -> None:
    values = SHORT | schedule
    whole = config_of(tiny_data, tmp_path / "whole", **values, **{"train.iterations": 14})
    assert train_tiny(whole)["end"] == "done"
    # It ends where a round does, whose decision is taken when it goes on.
    for iterations in (8, 14):
        config = config_of(tiny_data, tmp_path, **values, **{"train.iterations": iterations})
        assert train_tiny(config)["end"] == "done"
    assert_same_content(tmp_path / "tiny", tmp_path / "whole" / "tiny")
    (changed,) = lines_of(tmp_path / "tiny" / "metrics.jsonl", "iterations")
    assert changed == {"kind": "iterations", "iteration": 8, "before": 8, "iterations": 14}
    (resumed,) = lines_of(tmp_path / "tiny" / "metrics.jsonl", "resumed")
    assert resumed["iteration"] == 8


def test_two_ranks_continue_as_one_run(tiny_data: Path, ranks: RankServer, tmp_path: Path) -> None:
    values = SHORT | SCHEDULES[0] | {"launch.workers": 2}
    whole = config_of(tiny_data, tmp_path / "whole", **values, **{"train.iterations": 10})
    short, longer = (
        config_of(tiny_data, tmp_path, **values, **{"train.iterations": iterations})
        for iterations in (6, 10)
    )
    for config in (whole, short, longer):
        for ended in ranks.call_all(train_tiny, 2, config=config):
            assert ended["end"] == "done", ended["message"]
    assert_same_content(tmp_path / "tiny", tmp_path / "whole" / "tiny")


def test_a_cosine_is_that_of_the_longer_course_from_there_on_which_is_told(
    tiny_data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    values = SHORT | {"train.log_every": 1, "method": {"name": "fixed"}}
    for iterations in (4, 8):
        config = config_of(tiny_data, tmp_path, **values, **{"train.iterations": iterations})
        assert train_tiny(config)["end"] == "done"
    rates = [line["learning_rate"] for line in lines_of(tmp_path / "tiny/metrics.jsonl", "train")]
    assert rates[3] < rates[4] == pytest.approx(0.005)  # half of it, at half of the way
    assert "new one from here on" in caplog.text


def test_fewer_iterations_are_another_run(tiny_data: Path, tmp_path: Path) -> None:
    values = SHORT | {"method": {"name": "fixed"}}
    done = config_of(tiny_data, tmp_path, **values, **{"train.iterations": 4})
    assert train_tiny(done)["end"] == "done"
    fewer = config_of(tiny_data, tmp_path, **values, **{"train.iterations": 3})
    ended = train_tiny(fewer)
    assert ended["end"] == "failed"
    assert "train.iterations: 4 -> 3" in ended["message"]
    assert (tmp_path / "tiny" / "result.json").exists()


def test_a_stopped_run_ends_where_it_stands_or_later_but_not_before(
    tiny_data: Path, tmp_path: Path
) -> None:
    values = SHORT | {"method": {"name": "fixed"}}
    whole, earlier, here = (
        config_of(tiny_data, tmp_path, **values, **{"train.iterations": iterations})
        for iterations in (12, 5, 6)
    )
    assert train_tiny(here)["end"] == "done"
    begin_run(load_config(whole))  # and no step of it is done
    with pytest.raises(UserError, match=r"or end it where it stands: .* train\.iterations=6`"):
        check_has_ended(tmp_path / "tiny", "is exported")
    assert train_tiny(earlier)["end"] == "failed"
    assert train_tiny(here)["end"] == "done"
    result = read_result(tmp_path / "tiny")
    assert result is not None
    assert result.summary["iterations"] == 6
    check_has_ended(tmp_path / "tiny", "is exported")


def test_a_run_without_checkpoints_keeps_its_network_and_one_that_resumes_has_no_old_answers(
    tiny_data: Path, tmp_path: Path
) -> None:
    values = SHORT | {"method": {"name": "fixed"}}
    short, longer = (
        config_of(tiny_data, tmp_path, **values, **{"train.iterations": iterations})
        for iterations in (4, 6)
    )
    assert train_tiny(short)["end"] == "done"
    run = tmp_path / "tiny"
    (run / "checkpoints").rename(tmp_path / "aside")
    ended = train_tiny(longer)
    assert ended["end"] == "failed"
    assert "train.iterations: 4 -> 6" in ended["message"]
    assert (run / "result.json").exists()
    (tmp_path / "aside").rename(run / "checkpoints")
    (run / "answers").mkdir()
    assert train_tiny(longer)["end"] == "done"
    assert not (run / "answers").exists()


def test_a_scout_that_is_being_trained_keeps_its_steps(tiny_data: Path, tmp_path: Path) -> None:
    short, longer = (
        load_config(anew_config(tiny_data, tmp_path, **{"train.iterations": iterations}))
        for iterations in (12, 14)
    )
    begin_run(short)
    begin_run(make_scout_config(short))
    append_line(RunDirectory(short.run_directory).metrics, {"kind": "train"})
    with pytest.raises(UserError, match=r"train\.iterations: 12 -> 14"):
        begin_run(longer)


def test_a_run_that_patience_ended_is_not_trained_further_which_is_told(
    tiny_data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # Of three classes one is always among the first three, so no evaluation is better than the first.
    values = {"train.evaluate_every": 2, "train.patience": 1, "train.keep_metric": "top3"}
    for iterations in (6, 8):
        changes = values | {"method": {"name": "fixed"}, "train.iterations": iterations}
        assert train_tiny(config_of(tiny_data, tmp_path, **changes))["end"] == "done"
        result = read_result(tmp_path / "tiny")
        assert result is not None
        assert (result.summary["iterations"], result.summary["ended_by"]) == (4, "patience")
    assert "train.patience ended the run" in caplog.text
