"""A job as a process of this machine: `python -m distbranch.launch.on_slurm.local_job FOLDER COMMAND...`.

Its command line names the folder of the job's files, by which it is told from a later process with the same number, and its exit
code is kept there, for who submitted it may be gone.
"""

import runpy
import sys
from pathlib import Path

EXIT_CODE = "exit-code"  # a file in the folder of a job's files, written when its command has ended


def write_exit_code(folder: Path, code: int) -> None:
    """Keep the exit code of a job's command."""
    (folder / EXIT_CODE).write_text(f"{code}\n")


def read_exit_code(folder: Path) -> int | None:
    """The exit code of a job's command; None if it has not ended by itself."""
    try:
        return int((folder / EXIT_CODE).read_text())
    except (OSError, ValueError):
        return None


def main() -> None:
    """Run `distbranch COMMAND...` in this process."""
    folder, *words = sys.argv[1:]
    sys.argv = ["distbranch", *words]
    code: object = 0
    try:
        runpy.run_module("distbranch", run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        code = ended.code
        raise
    except BaseException:
        code = 1
        raise
    finally:
        write_exit_code(Path(folder), code if isinstance(code, int) else int(code is not None))


if __name__ == "__main__":
    main()
