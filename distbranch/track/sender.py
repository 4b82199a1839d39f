"""A thread that brings what a run reports to its page, one thing after the other, and says in the run directory how far it is.

Training hands over and continues. A page that fails is given up with one warning; a resumed run tries it again.
"""

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from queue import SimpleQueue
from typing import Any

from distbranch.config import Config
from distbranch.config.paths import hide_secrets
from distbranch.engine.run_directory import RunDirectory, write_json
from distbranch.engine.run_log import Report
from distbranch.errors import reason_of
from distbranch.track.page import FINISHED, Page, abandon_page, open_page

logger = logging.getLogger("distbranch")
# At the end. A run that was stopped is resumed soon, and its machine is perhaps about to be taken away.
SECONDS_TO_END, SECONDS_TO_STOP = 60.0, 5.0
SECONDS_TO_WONDER = 300.0  # without any answer: longer than a slow server takes
KEPT_IN = "Everything is in metrics.jsonl of the run; training is not disturbed."
Send = Callable[[Page], None]


def wait_for_pages(senders: "Sequence[PageSender]", end: str) -> None:
    """Wait until all pages are closed, but not for long."""
    until = time.monotonic() + (SECONDS_TO_END if end == FINISHED else SECONDS_TO_STOP)
    for sender in senders:
        sender.wait(max(0.0, until - time.monotonic()))


class PageSender:
    """Sends to the page of one tracker.

    Args:
        tracker: as `track` names it.
        config: of the run.
        report: learns where the page is.
    """

    def __init__(self, tracker: str, config: Config, report: Report) -> None:
        self.tracker = tracker
        self.config = config
        self._report = report
        self._record = RunDirectory(config.run_directory).trackers / f"{tracker}.json"
        on_record = _read(self._record)
        self._identity: str | None = on_record.get("identity")
        self._sent: dict[str, int] = on_record.get("sent", {})
        self._queued = dict(self._sent)
        self._queue: SimpleQueue[tuple[str, int, Send] | None] = SimpleQueue()
        self._end: tuple[str, Mapping[str, float]] = (FINISHED, {})
        self._heard_at = time.monotonic()
        self._opened_at = time.time()
        self._is_given_up = False
        self._has_warned = False
        self._thread = threading.Thread(target=self._run, name=f"track-{tracker}", daemon=True)
        self._thread.start()

    def lacks(self, what: str, iteration: int) -> bool:
        """Whether a kind of thing at a step is still to be sent: steps that are repeated are not."""
        return not self._is_given_up and iteration > self._queued.get(what, -1)

    def send(self, what: str, iteration: int, send: Send) -> None:
        """Have it sent, if the page lacks it; things of one kind come in the order of their steps."""
        if not self.lacks(what, iteration):
            return
        if self._queue.empty():
            self._heard_at = time.monotonic()
        elif time.monotonic() - self._heard_at > SECONDS_TO_WONDER:
            self._warn(f"{self.tracker} has not answered for {SECONDS_TO_WONDER:.0f} seconds.")
        self._queued[what] = iteration
        self._queue.put((what, iteration, send))

    def end(self, end: str, summary: Mapping[str, float]) -> None:
        """Close the page when all is sent."""
        self._end = (end, summary)
        self._queue.put(None)

    def wait(self, seconds: float) -> None:
        """Wait so long until the page is closed."""
        self._thread.join(seconds)
        if self._thread.is_alive():
            self._warn(f"{self.tracker} did not take all of the run in time at its end.")
        if self._is_given_up or self._thread.is_alive():
            abandon_page(self.tracker, self._opened_at)

    def _run(self) -> None:
        try:
            page, self._identity = open_page(self.tracker, self.config, self._identity)
            self._write_record()
            place = hide_secrets(page.place)
            self._report({"kind": "tracked", "tracker": self.tracker, "place": place})
            while (item := self._queue.get()) is not None:
                what, iteration, send = item
                send(page)
                self._heard_at = time.monotonic()
                self._sent[what] = iteration
                self._write_record()
            page.finish(*self._end)
        # Of whatever kind: no tracker is worth a run.
        except Exception as error:
            self._is_given_up = True
            reason = hide_secrets(reason_of(error))[:300]
            self._warn(f"{self.tracker} does not show the run any longer ({reason}).")

    def _write_record(self) -> None:
        self._record.parent.mkdir(exist_ok=True)
        write_json(self._record, {"identity": self._identity, "sent": self._sent})

    def _warn(self, sentence: str) -> None:
        if not self._has_warned:
            self._has_warned = True
            logger.warning("%s %s", sentence, KEPT_IN)


def _read(path: Any) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}
