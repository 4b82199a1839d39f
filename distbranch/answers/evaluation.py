"""`distbranch evaluate --out`: predictions as a file, and in RUN/answers what follows from them, task by task.

`answers.json` has all numbers and curves, for the report; `tasks.csv` the numbers, `suspects.csv` every label that the network
disagrees with, the most suspicious first, and `*.jpg` show the photographs.
"""

import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas
from pyarrow import csv, parquet

from distbranch.answers.difficult import GroupMargins, find_wrong, measure_suspicion
from distbranch.answers.findings import Finding, find_threshold, measure_task, tabulate_findings
from distbranch.answers.predictions import Predictions, write_predictions
from distbranch.answers.sheets import (
    NUM_PICTURES,
    ReadImage,
    describe_answer,
    describe_label,
    open_images,
    write_sheet,
)
from distbranch.config.paths import check_can_be_written, is_remote, join_url
from distbranch.engine.answer_pictures import fill_folder
from distbranch.engine.artifact import DESCRIPTION, save_thresholds
from distbranch.engine.distributed import Ranks
from distbranch.engine.remote_run import RemoteRun
from distbranch.engine.results import find_run_folder
from distbranch.engine.run_directory import RunDirectory, replaced_atomically
from distbranch.engine.session import load_evaluation
from distbranch.errors import UsageError, UserError, reason_of
from distbranch.kinds import KINDS
from distbranch.kinds.kind import Array
from distbranch.models.network import Network
from distbranch.report.layers import format_name, list_layers, list_top_groups
from distbranch.tasks import Task, unused_name

logger = logging.getLogger("distbranch")

SUFFIXES = (".parquet", ".csv")
TASKS_SHOWN = 4  # below a photograph that a group finds difficult


@dataclass(frozen=True)
class AnsweredRun:
    """What `answer_run` found: {task: finding} on `split`, and the folder or URL with the files."""

    findings: dict[str, Finding]
    split: str
    folder: str
    num_rows: int


def answer_run(
    run: Path | str,
    out: Path,
    *,
    data: str | None = None,
    with_train: bool = False,
    precision: float | None = None,
) -> AnsweredRun:
    """Write the predictions of a run on val and test, choose thresholds, and write what the answers are worth.

    Args:
        run: a folder or a URL, whose model.json keeps the thresholds.
        out: a .parquet or .csv file.
        data: another data set with tasks of the run, to which the run's thresholds are applied; its files come to
            RUN/answers/<its name>.
        with_train: whether the train split is written too.
        precision: in 0..1, at which thresholds recall most; None: they have the best F1.

    Raises:
        UsageError: another kind of file.
        UserError: no such run, splits or data; other tasks; samples that cannot be read; a place that cannot be written.
    """
    url = str(run) if is_remote(str(run)) else None
    if out.suffix.lower() not in SUFFIXES:
        raise UsageError(f"--out should end in {' or '.join(SUFFIXES)}, found {out}.")
    check_can_be_written(out)
    directory = find_run_folder(run)
    network, config, info = load_evaluation(directory, data)
    network.to(Ranks.alone().device)
    files = RunDirectory(directory)
    bf16 = files.precision == "bf16"
    splits = ["train"] * with_train + ["val", "test"]
    folder = files.answers
    if data is not None:
        folder /= Path(info.path).resolve().name
    given = {}
    if data is not None and precision is None:
        given = network.thresholds or {}
    try:
        with TemporaryDirectory(dir=out.parent, prefix=".unfinished-") as aside:
            file = Path(aside) / "predictions.parquet"
            batch_size = config.train.eval_batch_size
            table = write_predictions(
                file, network, config, info, splits, batch_size=batch_size, bf16=bf16
            )
            _publish(file, out)
            with open_images(info, config.data) as read_image, fill_folder(folder) as unfinished:
                answers = _Answers(table, list_groups(network), unfinished, read_image)
                answers.measure(given, precision)
                answers.write()
                written = {path.name for path in unfinished.iterdir()}
    except OSError as error:
        raise UserError(
            f"{out} cannot be written ({reason_of(error)}). Give another file with --out."
        ) from None
    for sheet in folder.glob("*.jpg"):  # of an earlier evaluation
        if sheet.name not in written:
            sheet.unlink()
    if data is None:
        _keep_thresholds(directory, answers.thresholds)
    changed = [files.answers, files.model / DESCRIPTION]
    names = [str(file.relative_to(directory)) for file in changed if file.exists()]
    RemoteRun(url, directory).upload_files(*names)
    place = join_url(url, str(folder.relative_to(directory))) if url else str(folder)
    return AnsweredRun(answers.findings, answers.split, place, len(answers.places))


def list_groups(network: Network) -> list[list[str]]:
    """The tasks of every branch of the top layer, in the order of the report's groups."""
    layers = list_layers(network.architecture.tree.describe_layers(network.tasks.names))
    return list(map(list, list_top_groups(layers)))


def _publish(table: Path, out: Path) -> None:
    """The table under its name, as Parquet or CSV, batch by batch."""
    with replaced_atomically(out) as aside:
        source = parquet.ParquetFile(table)
        as_csv = out.suffix.lower() == ".csv"
        make_writer = csv.CSVWriter if as_csv else parquet.ParquetWriter
        with make_writer(aside, source.schema_arrow) as writer:
            for batch in source.iter_batches():
                writer.write_batch(batch)


def _keep_thresholds(directory: Path, thresholds: Mapping[str, Finding]) -> None:
    if (directory / "model" / DESCRIPTION).exists():
        save_thresholds(directory, thresholds)
    else:
        logger.warning(
            "The run has not finished, so its thresholds stand in answers.json alone. Evaluate it again when it has."
        )


class _Answers:
    """What is found in a table of predictions, one task in memory at a time, and the files that tell it."""

    def __init__(
        self,
        table: Predictions,
        groups: Sequence[Sequence[str]],
        folder: Path,
        read_image: ReadImage,
    ) -> None:
        self.table = table
        self.folder = folder
        self.read_image = read_image
        self.places = table.read_places()
        splits = self.places["split"]
        self.chosen_on = np.asarray(splits == "val")
        # What is shown is measured on samples that nothing was chosen on.
        self.split = "test" if (splits == "test").any() else "val"
        self.measured_on = np.asarray(splits == self.split)
        scalar = {task.name for task in table.tasks}
        members = [[name for name in group if name in scalar] for group in groups]
        self.groups = GroupMargins([group for group in members if len(group) > 1], len(splits))
        self.thresholds: dict[str, Finding] = {}
        self.findings: dict[str, Finding] = {}
        self.sheets: dict[str, str] = {}  # title by file

    def measure(self, given: Mapping[str, Finding], precision: float | None) -> None:
        """Find thresholds, but for those that are given, and all that follows, and draw the worst errors of every task."""
        suspects = []
        for task in self.table.tasks:
            answers = self.table.read_task(task)
            threshold = given.get(task.name)
            if KINDS[task.kind].is_share:
                threshold = threshold or find_threshold(answers, self.chosen_on, precision)
            if threshold is not None:
                self.thresholds[task.name] = threshold
            value = threshold["threshold"] if threshold else None
            self.findings[task.name] = measure_task(task, answers, self.measured_on, value)
            self.groups.add(task.name, answers)
            wrong = find_wrong(task, answers, self._get_threshold(task))
            self._draw_errors(task, answers, wrong & self.measured_on[answers.rows])
            # A label is suspected for what is probable, wherever the answer turns to yes.
            suspects.append(self._list_suspects(task, answers, find_wrong(task, answers)))
        self._warn_of_thresholds(given)
        if self.split == "val" and self.thresholds and not given:
            logger.warning(
                "There is no test, so what thresholds are worth is told on val, where they were chosen."
            )
        self._write_suspects(pandas.concat(suspects, ignore_index=True))
        self._draw_groups()

    def _get_threshold(self, task: Task) -> float:
        """From where the answer is yes; without effect on other kinds."""
        chosen = self.thresholds.get(task.name)
        return chosen["threshold"] if chosen else 0.5

    def write(self) -> None:
        """The numbers, as answers.json and tasks.csv."""
        content = {
            "split": self.split,
            "num_samples": self.places["split"].value_counts(sort=False).to_dict(),
            "thresholds": self.thresholds,
            "tasks": self.findings,
            "sheets": self.sheets,
        }
        (self.folder / "answers.json").write_text(json.dumps(content, indent=1) + "\n")
        rows = pandas.DataFrame(tabulate_findings(self.findings))
        rows.to_csv(self.folder / "tasks.csv", index=False)

    def _warn_of_thresholds(self, given: Mapping[str, Finding]) -> None:
        shares = [task.name for task in self.table.tasks if KINDS[task.kind].is_share]
        without = [name for name in shares if name not in self.thresholds]
        if without:
            logger.warning(
                "No threshold was chosen for %s, for val has no labels of both values.",
                _name_some(without),
            )
        unreached = [
            name
            for name, one in self.thresholds.items()
            if name not in given and not one["reached"]
        ]
        if unreached:
            logger.warning(
                "The precision is not reached on val by %s, whose thresholds are the most precise ones.",
                _name_some(unreached),
            )

    def _list_suspects(self, task: Task, answers: Any, wrong: Array) -> pandas.DataFrame:
        suspicion = measure_suspicion(task, answers)[wrong]
        labels, scores = answers.labels[wrong], answers.scores[wrong]
        return pandas.DataFrame(
            {
                "suspicion": suspicion,
                "margin": answers.margins[wrong],
                "task": task.name,
                "label": [describe_label(task, label) for label in labels],
                "answer": [describe_answer(task, row) for row in scores],
                "row": answers.rows[wrong],
            }
        )

    def _write_suspects(self, suspects: pandas.DataFrame) -> None:
        suspects = suspects.sort_values("suspicion", ascending=False, kind="stable")
        rows = suspects.pop("row").to_numpy()
        places = self.places.iloc[rows].reset_index(drop=True)
        table = pandas.concat([suspects.reset_index(drop=True), places], axis=1)
        table.to_csv(self.folder / "suspects.csv", index=False, float_format="%.6f")
        lines = [
            [f"{format_name(one.task)}: {one.label}", f"answer: {one.answer}"]
            for one in table.head(2 * NUM_PICTURES).itertuples()
        ]
        self._draw(
            "suspects",
            "Suspected wrong labels, the most suspicious first",
            rows[: len(lines)],
            lines,
        )

    def _draw_errors(self, task: Task, answers: Any, wrong: Array) -> None:
        numbers = np.flatnonzero(wrong)
        numbers = numbers[np.argsort(-answers.margins[numbers], kind="stable")[:NUM_PICTURES]]
        lines = []
        for number in numbers:
            label = describe_label(task, answers.labels[number])
            answer = describe_answer(task, answers.scores[number], self._get_threshold(task))
            lines.append([f"label: {label}", f"answer: {answer}"])
        title = f"{format_name(task.name)}: worst errors on {self.split}, {len(numbers)} of {wrong.sum():,}"
        self._draw(f"errors-{task.name}", title, answers.rows[numbers], lines)

    def _draw_groups(self) -> None:
        """The images that are difficult for all tasks of a group together, each with what was missed most."""
        hardest = self.groups.find_hardest(self.measured_on, NUM_PICTURES)
        for number, (group, rows) in enumerate(
            zip(self.groups.groups, hardest, strict=True), start=1
        ):
            missed = self._list_missed(group, rows)
            lines = []
            for row in rows.tolist():
                texts = [text for _, text in sorted(missed[row], reverse=True)]
                if len(texts) > TASKS_SHOWN:
                    texts[TASKS_SHOWN:] = [f"and {len(texts) - TASKS_SHOWN} more"]
                lines.append(texts)
            title = (
                f"{_name_some(group)}: hardest on {self.split} for all of them, with wrong answers"
            )
            self._draw(f"hardest-{number}", title, rows, lines)

    def _list_missed(self, group: Sequence[str], rows: Array) -> dict[int, list[tuple[float, str]]]:
        """What tasks of a group answer wrongly, with its margin, by row of the table."""
        missed: dict[int, list[tuple[float, str]]] = {row: [] for row in rows.tolist()}
        for task in self.table.tasks:
            if task.name not in group:
                continue
            answers = self.table.read_task(task)  # once more, for rows that were not known before
            threshold = self._get_threshold(task)
            wanted = find_wrong(task, answers, threshold) & np.isin(answers.rows, rows)
            for number in np.flatnonzero(wanted).tolist():
                answer = describe_answer(task, answers.scores[number], threshold)
                text = f"{format_name(task.name)}: {answer}"
                if not KINDS[task.kind].is_share:  # of which the label is the other one
                    text += f", labelled {describe_label(task, answers.labels[number])}"
                missed[int(answers.rows[number])].append((float(answers.margins[number]), text))
        return missed

    def _draw(self, name: str, title: str, rows: Array, lines: Sequence[Sequence[str]]) -> None:
        if not lines:
            return
        stem = unused_name(
            re.sub(r"[^\w.-]", "_", name)[:100], [file.removesuffix(".jpg") for file in self.sheets]
        )
        self.sheets[f"{stem}.jpg"] = title
        write_sheet(
            self.folder / f"{stem}.jpg", title, self.places.iloc[rows], lines, self.read_image
        )


def _name_some(names: Sequence[str]) -> str:
    shown = ", ".join(map(format_name, names[:6]))
    return f"{shown} and {len(names) - 6} more" if len(names) > 6 else shown
