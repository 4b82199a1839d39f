"""The same command again: a finished run says so, another configuration is refused, two processes never share a run."""

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from rank_server import RankServer
from sweep_files import write_sweep
from tiny_runs import assert_same_content, config_of, train_tiny

from distbranch.config import load_config
from distbranch.config.sweep import load_sweep
from distbranch.engine.run_directory import RunDirectory, RunInUseError
from distbranch.engine.run_start import begin_run
from distbranch.errors import UserError
from distbranch.launch import train
from distbranch.sweep.plan import list_trials
from distbranch.sweep.run import run_sweep


@pytest.fixture
def finished(undisturbed: Callable[[int], Path], tmp_path: Path) -> Path:
    """The directory that holds a copy of a finished run."""
    shutil.copytree(undisturbed(1), tmp_path / "tiny")
    config = tmp_path / "tiny" / "config.yaml"
    config.write_text(config.read_text().replace(str(undisturbed(1).parent), str(tmp_path)))
    return tmp_path


def _state(run: Path) -> dict[str, tuple[str, int]]:
    files = [
        file
        for file in run.rglob("*")
        if file.is_file() and file.name not in (".lock", "config.yaml")
    ]
    return {
        str(file): (hashlib.sha256(file.read_bytes()).hexdigest(), file.stat().st_mtime_ns)
        for file in files
    }


def test_a_finished_run_says_so_and_changes_nothing(finished: Path, tiny_data: Path) -> None:
    before, events = _state(finished / "tiny"), []
    result = train(config_of(tiny_data, finished), report=events.append)
    assert [event["kind"] for event in events] == ["finished"]
    assert result.directory == finished / "tiny"
    assert set(result.metrics) == {"val", "test"}
    assert result.tree.splits
    assert _state(finished / "tiny") == before


def test_another_configuration_under_the_same_name_is_refused_with_the_difference(
    finished: Path, tiny_data: Path
) -> None:
    before = _state(finished / "tiny")
    with pytest.raises(UserError, match=r"method.alpha: 2.0 -> 3.0.*--fresh"):
        train(config_of(tiny_data, finished, **{"method.alpha": 3.0}))
    assert _state(finished / "tiny") == before


def test_fresh_starts_over_beside_the_finished_run(finished: Path, tiny_data: Path) -> None:
    before = _state(finished / "tiny")
    result = train(config_of(tiny_data, finished, **{"train.iterations": 2}), fresh=True)
    again = train(config_of(tiny_data, finished, **{"train.iterations": 2}), fresh=True)
    assert [result.directory.name, again.directory.name] == ["tiny-2", "tiny-3"]
    assert _state(finished / "tiny") == before


def test_a_second_process_on_the_same_run_is_refused(
    tiny_data: Path, ranks: RankServer, tmp_path: Path
) -> None:
    with RunDirectory(tmp_path / "tiny").locked():
        ended = ranks.call(train_tiny, config=config_of(tiny_data, tmp_path))
    assert ended["end"] == "failed"
    assert "is being trained by another process" in ended["message"]
    assert not (tmp_path / "tiny" / "checkpoints").exists()


def test_a_start_that_came_to_nothing_does_not_hold_its_name(
    tiny_data: Path, tmp_path: Path
) -> None:
    config = load_config(config_of(tiny_data, tmp_path))
    changed, files = load_config(config, {"method.alpha": 3.0}), RunDirectory(config.run_directory)
    begin_run(config)
    files.tree.write_text("{}")
    with files.locked(), pytest.raises(RunInUseError):
        begin_run(changed)
    assert load_config(files.config) == config
    begin_run(changed)
    assert load_config(files.config) == changed
    assert not files.tree.exists()
    for file in (
        files.metrics,
        files.result,
        files.checkpoints / "step-00000001",
        files.job,
        files.family,
    ):
        file.parent.mkdir(exist_ok=True)
        file.write_text("{}")
        with pytest.raises(UserError, match="was begun with another configuration"):
            begin_run(config)
        file.unlink()
    begin_run(config)


def test_a_sweep_that_came_to_nothing_does_not_hold_its_name(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nobody(*_: object) -> None:
        raise UserError("nobody answers")

    monkeypatch.setattr("distbranch.sweep.run.open_sweep_cluster", nobody)
    for alpha in (1.0, 2.0):
        sweep = load_sweep(
            write_sweep(tmp_path, tiny_data, seeds=[0], overrides={"method.alpha": alpha})
        )
        with pytest.raises(UserError, match="nobody answers"):
            run_sweep(sweep, lambda _: None)
    [trial] = list_trials(sweep)
    begin_run(trial)
    other = load_sweep(write_sweep(tmp_path, tiny_data, seeds=[0], overrides={"method.alpha": 3.0}))
    with pytest.raises(
        UserError, match=r"begun with another configuration .*method.alpha: 2.0 -> 3.0"
    ):
        run_sweep(other, lambda _: None)


def test_torchrun_gives_the_bits_of_two_ranks(
    tiny_data: Path, undisturbed: Callable[[int], Path], tmp_path: Path
) -> None:
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(config_of(tiny_data, tmp_path, **{"launch.workers": 2})))
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node=2",
        "--standalone",
        "-m",
        "distbranch",
    ]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    run = subprocess.run(
        [*command, "train", str(file)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert_same_content(tmp_path / "tiny", undisturbed(2))
