"""Errors for people: one sentence that says what should be, what was found and what to do.

The command line prints it, without a traceback.
"""


class UserError(ValueError):
    """Something outside the program is not as it should be (a file, a label, a machine); exit code 1."""


class SharedError(UserError):
    """An error that every rank of a run raises alike, so that one of them is enough to tell it."""


class UsageError(UserError):
    """The command or the configuration asks for something that does not exist; exit code 2."""
