"""Pictures, tables and the page that show what a run did; the only home of matplotlib.

`distbranch.report(RUN)` is a function of the package too, and a subpackage that is imported takes its name: this one can be called.
"""

import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # this package is imported for a line of progress too
    from distbranch.engine.results import Run


def write_report(run: "Run", out: Path | str | None = None) -> Path:
    """See `distbranch.api.report`."""
    from distbranch.engine.results import find_run_folder
    from distbranch.report.sweep_files import is_sweep

    # A sweep's folder holds runs; its page compares them.
    folder = find_run_folder(run)
    if is_sweep(folder):
        from distbranch.report.sweep_page import report_sweep as write_page
    else:
        from distbranch.report.page import report_run as write_page
    return write_page(folder, None if out is None else Path(out))


class _CallablePackage(ModuleType):
    def __call__(self, run: "Run", out: Path | str | None = None) -> Path:
        """See `distbranch.api.report`."""
        return write_report(run, out)


sys.modules[__name__].__class__ = _CallablePackage
