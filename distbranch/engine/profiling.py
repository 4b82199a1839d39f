"""A torch.profiler trace of a few steps in the middle of training, on request."""

import logging
from pathlib import Path

import torch

logger = logging.getLogger("distbranch")
FIRST_STEP, NUM_STEPS = 10, 5


class Profiler:
    """Traces `NUM_STEPS` steps after `FIRST_STEP` and writes `trace.json` (Chrome's and Perfetto's format) into a folder."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._steps = 0
        self._trace: torch.profiler.profile | None = None

    def close(self) -> None:
        """Say so if training ended before there was a trace."""
        if self.folder is not None and self._steps < FIRST_STEP + NUM_STEPS:
            logger.warning("No trace was written: it takes %d steps, found %d.", FIRST_STEP + NUM_STEPS, self._steps)

    def step(self) -> None:
        """Call after every training step."""
        if self.folder is None:
            return
        self._steps += 1
        if self._steps == FIRST_STEP:
            self._trace = torch.profiler.profile(record_shapes=True)
            self._trace.start()
        elif self._trace is not None and self._steps == FIRST_STEP + NUM_STEPS:
            self._trace.stop()
            self.folder.mkdir(exist_ok=True)
            self._trace.export_chrome_trace(str(self.folder / "trace.json"))
            self._trace = None
