"""The Python interface: what the commands do, as functions that give values instead of printing them."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from distbranch import launch
from distbranch.config import Config
from distbranch.engine.answer_pictures import summarise_predictions
from distbranch.engine.artifact import load_model
from distbranch.engine.predict import find_images, predict_images
from distbranch.engine.results import Run, find_run_folder
from distbranch.engine.run_log import Report
from distbranch.engine.session import evaluate_run
from distbranch.export import load_predictor
from distbranch.models.network import Network
from distbranch.report import write_report
from distbranch.report.prediction_table import read_thresholds, tabulate_predictions
from distbranch.report.progress import ProgressDisplay

if TYPE_CHECKING:  # both take a while to load
    import pandas

    from distbranch.report.shown_result import ShownResult

__all__ = ["evaluate", "load", "predict", "report", "train"]


def train(
    config: Config | Path | str | Mapping[str, Any],
    *,
    fresh: bool = False,
    report: Report | None = None,
    progress: bool | None = None,
    **dotted: Any,
) -> "ShownResult":
    """Train one run, or resume it where it was left; a finished run is returned as it is.

    Several workers, or a cluster, have their driver in a process of its own: the environment of this one stays as it is, and it
    may use Ray for other things before, meanwhile and afterwards.

    Args:
        config: a Config, a YAML file, or a nested mapping.
        fresh: start over in a new directory if the run's own exists (`name-2`, `name-3`, ...).
        report: called with what happens (progress, decisions, evaluations) instead of showing it.
        progress: whether it is shown; if None, in a terminal and in a notebook.
        dotted: overrides, `train("x.yaml", **{"method.alpha": 2})`.

    Raises:
        UsageError: the configuration is not valid.
        UserError: data, storage, machines or numbers are not as they should be.
        StoppedEarly: a signal asked to stop; a checkpoint holds everything.

    Example:
        >>> result = distbranch.train("configs/quickstart.yaml", **{"run.name": "mine"})
        >>> print(result.tree)
    """
    from distbranch.report.shown_result import ShownResult

    console = Console()
    if progress is None:
        progress = console.is_terminal or console.is_jupyter
    shown: Any = nullcontext(report)
    if report is None and progress:
        shown = ProgressDisplay(console)
    with shown as told:
        result = launch.train(config, fresh=fresh, report=told, apart=True, **dotted)
    return ShownResult(**vars(result))


def load(run: Run) -> Network:
    """The network of a run (a folder or a URL), in eval mode: `net(images [B, 3, H, W])` gives {task name: logits}.

    uint8 images are normalised by the network; float images are taken as normalised already.

    Raises:
        UserError: no run there, or its model is damaged.
    """
    network, _ = load_model(find_run_folder(run))
    return network


def predict(
    run: Run,
    images: Path | str | Sequence[Path | str],
    *,
    on_bad_image: str = "fail",
    bits: int | None = None,
) -> "pandas.DataFrame":
    """Predict all tasks of images: a row per image, and the columns of `distbranch predict --format csv`.

    Args:
        run: a run, or an .onnx file that `distbranch export` wrote.
        images: files, or folders of them.
        on_bad_image: `fail`, or `skip`: leave them out with a warning.
        bits: that images of 16 bits use; those of the training images if None.

    Raises:
        UserError: no run or file there, no images, or one that cannot be read.

    Example:
        >>> answers = distbranch.predict("runs/mine", "photos/")
        >>> answers[answers["Shoes"] >= 0.5]
    """
    network, preprocessing = load_predictor(find_run_folder(run))
    if bits is not None:
        preprocessing = replace(preprocessing, bits=bits)
    if isinstance(images, Path | str):
        images = [images]
    files = find_images(map(Path, images))
    predictions = predict_images(network, preprocessing, files, on_bad_image=on_bad_image)
    tasks = network.tasks.tasks
    found = list(summarise_predictions(tasks, predictions))
    return tabulate_predictions(tasks, found, read_thresholds(network))


def evaluate(run: Run, split: str = "test", data: Path | str | None = None) -> dict[str, Any]:
    """Metrics (in 0..1) of a run on one split: {"mean": {metric: value}, "tasks": {name: {metric: value}}, ...}.

    Args:
        run: a run.
        split: train, val or test.
        data: another packed data set with tasks of the run.

    Raises:
        UserError: no such run, split or data set, or other tasks.

    Example:
        >>> distbranch.evaluate("runs/mine", "val")["mean"]["accuracy"]
    """
    return evaluate_run(find_run_folder(run), split, str(data) if data else None)


def report(run: Run, out: Path | str | None = None, against: Run | None = None) -> Path:
    """Write one HTML page about a run or a sweep (by default report.html in it), and its figures as PNG; the path of the page.

    Args:
        run: a run or a sweep.
        out: the file of the page.
        against: a thin run, over which every task of a run has its gain; its scout if it has one.

    Raises:
        UserError: no run there, a damaged file in it, or a place that cannot be written.

    Example:
        >>> distbranch.report("runs/mine")
    """
    return write_report(run, out, against)
