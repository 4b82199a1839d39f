"""The functions of the package: what they give is what the commands say, and a notebook shows it."""

import io
import json
import subprocess
import sys
from pathlib import Path

import nbclient
import nbformat
import pandas
import pytest
from matplotlib.figure import Figure
from PIL import Image
from tiny_world import TASKS, run_command

import distbranch
from distbranch.errors import UserError
from distbranch.report.shown_result import ShownResult

RUN = "runs/tiny"
NOTEBOOK = Path(__file__).resolve().parents[1] / "configs" / "first-steps.ipynb"


def test_what_the_package_offers_is_listed_before_any_of_it_is_loaded() -> None:
    program = (
        "import sys, distbranch; assert {'evaluate', 'load', 'predict', 'report', 'train'} <= set(dir(distbranch));"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_predictions_are_the_table_that_the_command_writes(world: Path) -> None:
    written = run_command(["predict", RUN, "images", "photo.jpg", "--format", "csv"]).out
    answers = distbranch.predict(RUN, ["images", "photo.jpg"])
    pandas.testing.assert_frame_equal(answers, pandas.read_csv(io.StringIO(written)))
    assert answers["image"].tolist() == [*(f"images/{name}.jpg" for name in "abcd"), "photo.jpg"]
    assert answers["bright"].between(0, 1).all()
    assert distbranch.predict(RUN, "photo.jpg")["bright"].tolist() == [answers["bright"].iloc[-1]]


def test_an_exported_file_predicts_too_and_what_is_no_image_is_refused(world: Path) -> None:
    assert run_command(["export", RUN, "--out", "served.onnx"]).code == 0
    answers = distbranch.predict("served.onnx", Path("photo.jpg"))
    expected = distbranch.predict(RUN, "photo.jpg")
    assert answers["bright"].iloc[0] == pytest.approx(expected["bright"].iloc[0], abs=1e-4)
    with pytest.raises(UserError, match=r"table.csv"):
        distbranch.predict(RUN, "table.csv")


def test_a_file_called_na_keeps_its_name(world: Path) -> None:
    Path("NA").write_bytes(Path("photo.jpg").read_bytes())
    assert distbranch.predict(RUN, "NA")["image"].tolist() == ["NA"]


def test_scores_are_those_of_the_end_of_the_run(world: Path) -> None:
    result = distbranch.train("tiny.yaml")
    scores = distbranch.evaluate(result, "val")
    assert scores["tasks"] == result.metrics["val"]["tasks"]
    assert distbranch.evaluate(RUN, data="data")["mean"] == result.metrics["test"]["mean"]


def test_a_result_draws_its_tree_as_the_command_does(world: Path) -> None:
    shown = run_command(["train", "tiny.yaml"]).out
    result = distbranch.train("tiny.yaml")
    assert str(result.tree) in shown
    assert all(task.name in str(result.tree) for task in TASKS)
    figure = result.plot()
    assert isinstance(figure, Figure)
    figure.savefig("tree.png", dpi=figure.dpi)
    with Image.open("tree.png") as picture:  # with the names, which stand beside the canvas
        assert picture.width > 1.05 * figure.get_figwidth() * figure.dpi
    assert "num_samples" not in repr(result)
    page = result._repr_html_()
    assert "<svg" in page
    assert "<td>test</td>" in page


def test_a_result_whose_tasks_share_by_no_tree_is_not_drawn(world: Path) -> None:
    result = distbranch.train("tiny.yaml")
    other = ShownResult(**{**vars(result), "summary": result.summary | {"method": "mtan"}})
    with pytest.raises(UserError, match="share by no tree"):
        other.plot()
    assert "<svg" not in other._repr_html_()


def test_a_report_is_written_though_a_subpackage_has_the_name_of_the_function(world: Path) -> None:
    assert distbranch.report is sys.modules["distbranch.report"]
    assert distbranch.report(RUN) == Path(RUN, "report.html")
    assert "<svg" in Path(RUN, "report.html").read_text()


def test_progress_is_shown_where_it_is_asked_for_and_else_in_a_terminal_only(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    distbranch.train("tiny.yaml")
    assert capsys.readouterr().out == ""
    distbranch.train("tiny.yaml", progress=True)
    assert "is finished; nothing was changed" in capsys.readouterr().out


def test_the_notebook_runs_from_its_first_cell_to_its_last_and_is_kept_without_outputs(
    tmp_path: Path,
) -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in cells)
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=600, resources=resources).execute()
    outputs = [json.dumps(cell.outputs) for cell in cells]
    trained, tree, plotted, result, predicted, evaluated = outputs
    assert "step 40" in trained  # progress is shown by default
    assert "conv1" in tree
    assert "image/png" in plotted
    assert "<svg" in result
    assert "photos/" in predicted
    assert "average_precision" in evaluated
