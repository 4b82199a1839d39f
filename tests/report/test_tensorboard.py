import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from distbranch.report.run_files import read_run
from distbranch.report.tensorboard import log_decision


class Writer:
    """Keeps what a SummaryWriter would write."""

    def __init__(self) -> None:
        self.images: dict[str, np.ndarray] = {}
        self.steps: set[int] = set()
        self.texts: list[str] = []

    def add_image(
        self, name: str, image: np.ndarray, *, global_step: int, dataformats: str
    ) -> None:
        assert dataformats == "HWC"
        self.images[name] = image
        self.steps.add(global_step)

    def add_text(self, name: str, text: str, *, global_step: int) -> None:
        self.texts.append(f"{name}: {text}")
        self.steps.add(global_step)


def test_a_decision_becomes_pictures_and_text_at_its_iteration(grown_run: Path) -> None:
    writer = Writer()
    log_decision(writer, read_run(grown_run).decisions[0], grown_run)
    assert set(writer.images) == {"decision/tree", "decision/affinity", "decision/costs"}
    assert writer.steps == {250}
    for image in writer.images.values():
        assert image.dtype == np.uint8
        assert image.shape[2] == 3
        assert image.std() > 5  # something was drawn
    assert writer.texts[0].startswith("decision/groups: **fc7**")


def test_drawing_touches_no_window_system(make_run: Callable[..., Path], tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", tasks=list("abcdef"), counts=(3, 2))
    code = (
        "import sys; from distbranch.report.pictures import list_pictures; from distbranch.report.run_files import read_run; "
        f"[draw() for draw in list_pictures(read_run({str(run)!r})).values()]; "
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
