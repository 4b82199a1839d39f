"""What to say of a file that cannot be used: whose it is if it may not be read, else that it is damaged, and what to do."""

import os
import pwd
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from distbranch.errors import UserError, reason_of


class DeniedError(UserError):
    """A file is there, and this user may not use it."""


@contextmanager
def explain_damage(what: str, advice: str) -> Iterator[None]:
    """Read and understand files inside it: whatever is wrong with them becomes `what` (with the reason in brackets) and `advice`.

    Raises:
        DeniedError: this user may not read a file, which may be sound.
        UserError: one is absent, cut, changed, or of another form.
    """
    try:
        yield
    except UserError:
        raise
    except PermissionError as error:
        raise make_denied_error(error) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        reason = reason_of(error)[:300]
        if isinstance(error, OSError) and error.filename:
            reason = f"{Path(error.filename).name}: {reason}"
        raise UserError(f"{what} ({reason}). {advice}") from None


def make_denied_error(error: PermissionError, what: Path | str = "A file") -> DeniedError:
    """What to raise for `error`; `what` is named where the error does not say of which file it is, as those of stores of objects."""
    if error.filename is None:
        return DeniedError(
            f"{what} cannot be used: permission denied ({error}). Give this user the right to."
        )
    named = os.fsdecode(error.filename)
    culprit = _find_closed(Path(named))
    try:
        status = culprit.stat()
    except OSError:
        return DeniedError(
            f"{culprit} cannot be used: permission denied. {_advise_owner('its owner')}"
        )
    owner = _read_user_name(status.st_uid)
    mode = f"{stat.S_IMODE(status.st_mode):04o}"
    return DeniedError(
        f"{named} cannot be used: permission denied ({culprit} belongs to {owner}, its mode is {mode}). {_advise_owner(owner)}"
    )


def _advise_owner(owner: str) -> str:
    return f"Ask {owner} to allow it (chmod a+rX to read), or run as a user who may."


def _find_closed(path: Path) -> Path:
    """The outermost folder above `path` that this user may not enter, else `path`, or the folder in which it cannot be made."""
    for folder in reversed(path.absolute().parents):
        if not os.access(folder, os.X_OK):
            return folder
    if os.path.lexists(path):
        return path
    return path.absolute().parent


def _read_user_name(user: int) -> str:
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:  # a container's user without an entry
        return f"user {user}"
