"""Errors for people: one sentence that says what should be, what was found and what to do; and the early end of a run.

The command line prints it, without a traceback.
"""

from collections.abc import Sequence


class UserError(ValueError):
    """Something outside the program is not as it should be (a file, a label, a machine); exit code 1.

    With `problems`, sentences each, the text names what they are problems of. Several are numbered behind it, and the command
    line gives each a line.
    """

    lines: Sequence[str] = ()

    def __init__(self, *told: object, problems: Sequence[str] = ()) -> None:
        if len(problems) == 1:
            told = (f"{told[0]} has a problem: {problems[0]}",)
        elif problems:
            numbered = [f"({number}) {one}" for number, one in enumerate(problems, start=1)]
            self.lines = [f"{told[0]} has {len(problems)} problems:", *numbered]
            told = (" ".join(self.lines),)
        super().__init__(*told)


class SharedError(UserError):
    """An error that every rank of a run raises alike, so that one of them is enough to tell it."""


class UsageError(UserError):
    """The command or the configuration asks for something that does not exist; exit code 2."""


def reason_of(error: Exception) -> str:
    """What an error says, for brackets in a sentence that names the file: of the system's errors the words alone."""
    said = error.strerror if isinstance(error, OSError) else None
    return " ".join((said or str(error) or type(error).__name__).split()).rstrip(".")


class StoppedEarly(BaseException):  # not an error: everything is saved
    """Training ended before its last step because it was asked to; a checkpoint holds everything.

    No `Exception`, so that a loop over seeds that outlives errors (`except Exception`) ends here as it does at Ctrl-C.

    Attributes:
        exit_code: of the process, for the command line.
        by_one_rank: whether this rank alone knows of it and has to tell.
    """

    exit_code = 75
    by_one_rank = False


class Interrupted(StoppedEarly, KeyboardInterrupt):
    """The same after Ctrl-C."""

    exit_code = 130
