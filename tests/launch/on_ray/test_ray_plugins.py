"""Plug-ins on Ray's workers: a run of one of each on two of them, a killed one, and every command that follows; trials of a sweep."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from plugin_files import make_config, pack_angles, write_page_file
from rank_server import RankServer
from tiny_runs import assert_same_content, lines_of, train_tiny
from tiny_world import run_command

KILLING = """

import os
import signal
from pathlib import Path


@AFFINITIES.register("killing")
def kill_once(sums):
    mark = Path(__file__).with_suffix(".killed")
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return cube_agreement(sums)
"""


def pack_data(folder: str, plugin: str) -> None:
    """A job: the data, whose kind of task a plug-in brings."""
    from distbranch.plugins import load_plugins

    load_plugins([plugin])
    pack_angles(Path(folder))


def train_without_file(config: Mapping[str, Any], plugin: str) -> dict[str, Any]:
    """A job: the driver, which loads the file; then it is gone, as on a node that never had it."""
    from distbranch.config import load_config

    load_config(config)
    os.unlink(plugin)
    return train_tiny(config)


def run_commands(commands: list[list[str]], folder: str) -> list[tuple[int, str]]:
    """A job: commands, one after the other, in a process that knows of no plug-in."""
    os.chdir(folder)
    ended = [run_command(command) for command in commands]
    return [(one.code, one.out + one.err) for one in ended]


@pytest.mark.cluster
def test_a_run_of_plugins_survives_a_killed_worker_that_has_no_file_and_every_command_knows_it(
    ranks: RankServer, tmp_path: Path
) -> None:
    plugin = write_page_file(tmp_path)
    plugin.write_text(plugin.read_text() + KILLING)
    mark = tmp_path / "mine.killed"
    data = tmp_path / "data"
    ranks.call(pack_data, folder=str(data), plugin=str(plugin))

    # The reference: two ranks of torchrun, nobody killed.
    mark.touch()
    config = make_config(data, tmp_path / "calm", plugin, workers=2)
    config["method"]["affinity"] = "killing"
    calm = ranks.call_all(train_tiny, 2, config=config)
    assert {one["end"] for one in calm} == {"done"}, calm

    mark.unlink()
    config["run"]["directory"] = str(tmp_path / "runs")
    [ended] = ranks.run(train_without_file, config=config, plugin=str(plugin), timeout_s=300)
    assert ended.value is not None, ended.output
    assert ended.value["end"] == "done", ended.value
    assert mark.exists()
    run = tmp_path / "runs" / "own"
    assert lines_of(run / "metrics.jsonl", "resumed")
    assert_same_content(run, tmp_path / "calm" / "own")
    assert {line["affinity_kind"] for line in lines_of(run / "decisions.jsonl")} == {"killing"}
    [sha256] = json.loads((run / "environment.json").read_text())["plugins"].values()
    assert sha256 == json.loads((run / "plugins/plugins.json").read_text())[0]["sha256"]

    from PIL import Image

    Image.new("RGB", (40, 40), (90, 30, 200)).save(tmp_path / "photo.png")
    commands = {
        "evaluate runs/own": "angle",
        "predict runs/own photo.png --format csv": "image,up,left,dark,angle",
        "export runs/own --format torch --out own.pt2": "4 tasks",
        "report runs/own --out own.html": "own.html",
        "data check data": "80 samples",
    }
    found = ranks.call(
        run_commands, commands=[command.split() for command in commands], folder=str(tmp_path)
    )
    for (command, words), (code, said) in zip(commands.items(), found, strict=True):
        assert code == 0, (command, said)
        assert words in said


@pytest.mark.cluster
def test_trials_of_a_sweep_use_the_plugins_of_their_driver(
    ranks: RankServer, tmp_path: Path
) -> None:
    plugin = write_page_file(tmp_path)
    ranks.call(pack_data, folder=str(tmp_path / "data"), plugin=str(plugin))
    base = make_config(tmp_path / "data", tmp_path, plugin)
    del base["run"]
    base["plugins"] = ["mine.py"]
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base))
    sweep = {
        "base": "base.yaml",
        "name": "own",
        "directory": "runs",
        "metric": "accuracy",
        "grid": {"method.affinity": ["cubed", "phi"]},
    }
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(sweep))
    [(code, said)] = ranks.call(
        run_commands, commands=[["sweep", "own.yaml"]], folder=str(tmp_path), timeout_s=300
    )
    assert code == 0, said
    runs = [file.parent for file in (tmp_path / "runs/own").glob("*/result.json")]
    assert len(runs) == 2
    for run in runs:
        kinds = {line["affinity_kind"] for line in lines_of(run / "decisions.jsonl")}
        assert kinds == {"cubed" if "cubed" in run.name else "phi"}
        assert (run / "plugins/0-mine.py").read_bytes() == plugin.read_bytes()
