"""Runs a benchmark as a person does, but in this process, for every new one would import torch."""

import io
import runpy
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from unittest import mock

from tiny_world import Ended

FOLDER = Path(__file__).resolve().parent


def run_benchmark(name: str, *arguments: str) -> Ended:
    """`python tests/benchmarks/NAME ARGUMENTS` in the current folder."""
    out = io.StringIO()
    err = io.StringIO()
    code: object = 0
    with (
        redirect_stdout(out),
        redirect_stderr(err),
        mock.patch.object(sys, "argv", [name, *arguments]),
    ):
        try:
            runpy.run_path(str(FOLDER / name), run_name="__main__")
        except SystemExit as ended:
            code = ended.code
    return Ended(
        code if isinstance(code, int) else int(code is not None), out.getvalue(), err.getvalue()
    )
