import json
import logging
import shutil
from pathlib import Path

import pytest

from distbranch.errors import UserError
from distbranch.report.run_files import read_run


@pytest.fixture
def run(grown_run: Path, tmp_path: Path) -> Path:
    """A copy of the run that may be damaged."""
    return Path(shutil.copytree(grown_run, tmp_path / "run"))


def test_a_run_is_read_with_layers_decisions_and_scores(grown_run: Path) -> None:
    run = read_run(grown_run)
    assert (run.name, len(run.layers), len(run.decisions)) == ("fps-branch-16-2", 15, 6)
    assert set(run.get_scores()) == {"val", "test"}
    assert run.read_affinity(run.decisions[0]).keys() == {"agreement", "phi"}


def test_the_tree_tells_the_order_of_the_tasks_and_in_earlier_versions_the_first_decision_did(
    run: Path, task_names: list[str]
) -> None:
    assert read_run(run).tasks == tuple(task_names)
    tree = json.loads((run / "tree.json").read_text())
    (run / "tree.json").write_text(json.dumps(tree | {"tasks": task_names[::-1]}))
    assert read_run(run).tasks == tuple(task_names[::-1])


def test_without_result_the_last_evaluation_of_a_split_counts(run: Path) -> None:
    (run / "result.json").unlink()
    assert read_run(run).get_scores()["val"]["iteration"] == 4000


def test_lines_logged_again_after_a_restart_count_once_and_last(run: Path) -> None:
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"kind": "train", "iteration": 40, "loss": 77.0}) + "\n")
    lines = read_run(run).select_lines("train")
    assert [line["loss"] for line in lines if line["iteration"] == 40] == [77.0]
    assert [line["iteration"] for line in lines] == sorted({line["iteration"] for line in lines})


def test_a_last_line_cut_short_is_left_out_with_a_warning(
    run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with (run / "decisions.jsonl").open("a") as file:
        file.write('{"round": 7, "iter')
    with caplog.at_level(logging.WARNING, logger="distbranch"):
        assert len(read_run(run).decisions) == 6
    assert "incomplete line" in caplog.text


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("config.yaml", None, "not a run directory"),
        ("config.yaml", "a: [1", "should be YAML"),
        ("config.yaml", "- 1", "should hold keys and values"),
        ("tree.json", "{", "tree.json should be JSON"),
        ("tree.json", "[1]", "keys and values"),
        ("tree.json", '{"layers": [{"name": "fc7"}]}', "'branches' is missing"),
        ("result.json", "nonsense", "result.json should be JSON"),
        ("metrics.jsonl", "nonsense\n{}\n", "line 1 should be a JSON object"),
        ("decisions.jsonl", "3\n{}\n", "line 1 should be a JSON object"),
        ("decisions.jsonl", "[]\n{}\n", "line 1 should be a JSON object, but it is list"),
    ],
)
def test_a_missing_or_damaged_file_is_said_in_one_sentence(
    run: Path, name: str, content: str | None, sentence: str
) -> None:
    (run / name).unlink()
    if content is not None:
        (run / name).write_text(content)
    with pytest.raises(UserError, match=sentence) as error:
        read_run(run)
    assert "\n" not in str(error.value)


def test_a_missing_folder_and_damaged_affinities_are_said_in_one_sentence(run: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        read_run(run / "nowhere")
    files = read_run(run)
    path = run / files.decisions[0]["affinity_file"]
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match="cannot be read"):
        files.read_affinity(files.decisions[0])
    path.unlink()
    with pytest.raises(UserError, match="cannot be read"):
        files.read_affinity(files.decisions[0])
