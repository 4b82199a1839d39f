"""Table and page of a sweep while it runs: every trial that ends brings them up to date, in a thread beside the driver.

What a trial that ends has reached is told at once, with the best so far.
"""

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from distbranch.config import Config
from distbranch.config.sweep import SweepConfig
from distbranch.engine.run_log import Event, Report
from distbranch.metrics import list_metrics
from distbranch.report.sweep_page import report_sweep
from distbranch.sweep.results import Row, list_variants, make_rows, write_table
from distbranch.sweep.trial_status import FINISHED, SweepDirectory

SECONDS_BETWEEN_PAGES = 10.0  # as often as somebody who waits reloads a page
# A page of thousands of trials takes seconds, in which the driver would stand in line: one second in ten at most.
SHARE_OF_TIME = 0.1
logger = logging.getLogger("distbranch")


class LiveResults:
    """Passes on what is reported, adds to every trial that finished what it reached, and keeps the files up to date.

    Args:
        sweep: of the trials.
        trials: all of them; those that Optuna proposes are added to this very list.
        directory: of the sweep.
        report: told everything; `ended` also has `metric`, `value`, `best` and `best_trial` where a trial has finished.
    """

    def __init__(
        self,
        sweep: SweepConfig,
        trials: Sequence[Config],
        directory: SweepDirectory,
        report: Report,
    ) -> None:
        self.sweep, self.trials, self.directory, self.report = sweep, trials, directory, report
        self.lower_is_better = list_metrics()[sweep.metric].lower_is_better
        self._variants = list_variants(sweep)
        self._finished: dict[str, Row] = {}  # rows of finished trials, which change no more
        self._best: tuple[float, str] | None = None
        self._changed, self._over = threading.Event(), threading.Event()
        self._has_warned = False

    def __call__(self, event: Event) -> None:
        """Pass on an event; a trial that ended makes the files old."""
        if event["kind"] == "ended":
            if event["status"] == FINISHED:
                with self._only_warned():
                    event = {**event, **self._compare_trial(event["trial"])}
            self._changed.set()
        self.report(event)

    def make_rows(self) -> list[Row]:
        """The rows of all trials as they stand; those of finished ones are read once."""
        return make_rows(
            self.sweep,
            list(self.trials),
            self.directory,
            variants=self._variants,
            known=self._finished,
        )

    @contextmanager
    def rewritten(self) -> Iterator[None]:
        """Keep table and page up to date inside it; whoever leaves it writes them a last time."""
        # What earlier drivers have reached counts for the best.
        for row in self.make_rows():
            self._note_value(row)
        self._changed.set()
        thread = threading.Thread(target=self._rewrite, name="sweep-results", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            self._changed.set()
            thread.join()

    def _compare_trial(self, name: str) -> Event:
        config = next(one for one in reversed(self.trials) if one.run.name == name)
        [row] = make_rows(
            self.sweep, [config], self.directory, variants=self._variants, known=self._finished
        )
        value = self._note_value(row)
        if value is None or self._best is None:
            return {}
        best, best_trial = self._best
        return {
            "metric": self.sweep.metric,
            "value": value,
            "best": best,
            "best_trial": best_trial,
        }

    def _note_value(self, row: Row) -> float | None:
        """What a finished trial reached on val; None where that is undefined, or the trial has not finished."""
        value = row.get(f"val_{self.sweep.metric}")
        if row["status"] != FINISHED or value is None:
            return None
        sign = -1 if self.lower_is_better else 1
        if self._best is None or sign * value > sign * self._best[0]:
            self._best = value, row["trial"]
        return float(value)

    @contextmanager
    def _only_warned(self) -> Iterator[None]:
        """Whatever goes wrong inside it is warned of once: a page that is old is not worth a sweep."""
        try:
            yield
        except Exception as error:  # of any kind
            if not self._has_warned:
                logger.warning(
                    "Table and page of the sweep cannot be brought up to date (%r); its trials run on.",
                    error,
                )
            self._has_warned = True

    def _rewrite(self) -> None:
        while not self._over.is_set():
            self._changed.wait()
            if self._over.is_set():
                return
            self._changed.clear()
            began = time.monotonic()
            with self._only_warned():
                rows = self.make_rows()
                if rows:  # none of Optuna before its first proposal
                    write_table(rows, self.directory)
                    # Whoever loads the page meanwhile sees the old one, never half of the new one.
                    aside = report_sweep(self.directory.path, self.directory.path / ".report.html")
                    aside.replace(aside.with_name("report.html"))
            self._over.wait(choose_pause(time.monotonic() - began))


def choose_pause(seconds: float) -> float:
    """Seconds until the files may be written again, after they took so many."""
    return max(SECONDS_BETWEEN_PAGES, seconds / SHARE_OF_TIME)
