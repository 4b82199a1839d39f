"""Pictures, tables and the page that show what a run did; the only home of matplotlib.

`distbranch.report(RUN)` is a function of the package too, and a subpackage that is imported takes its name: this one can be called.
"""

import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from distbranch.errors import UsageError

if TYPE_CHECKING:  # this package is imported for a line of progress too
    from distbranch.engine.results import Run


def write_report(run: "Run", out: Path | str | None = None, against: "Run | None" = None) -> Path:
    """See `distbranch.api.report`."""
    from distbranch.engine.results import find_run_folder
    from distbranch.report.sweep_files import is_sweep

    folder = find_run_folder(run)
    place = None if out is None else Path(out)
    if not is_sweep(folder):
        from distbranch.report.page import report_run

        thin = None if against is None else find_run_folder(against)
        return report_run(folder, place, thin)
    # A sweep's folder holds runs; its page compares them.
    if against is not None:
        raise UsageError(
            f"--against is for the page of one run, and {folder} is a sweep: leave it out."
        )
    from distbranch.report.sweep_page import report_sweep

    return report_sweep(folder, place)


class _CallablePackage(ModuleType):
    def __call__(
        self, run: "Run", out: Path | str | None = None, against: "Run | None" = None
    ) -> Path:
        """See `distbranch.api.report`."""
        return write_report(run, out, against)


sys.modules[__name__].__class__ = _CallablePackage
