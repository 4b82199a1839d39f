"""Places that a configuration names by a URL, and where this user keeps copies of what is there."""

import errno
import hashlib
import os
import tempfile
from pathlib import Path

from distbranch.errors import UserError


def is_remote(place: str) -> bool:
    """Whether the place is a URL (`http://`, `s3://`, ...) and not a folder of this machine."""
    return "://" in place


def below(url: str, name: str) -> str:
    """The URL of `name` in the folder at `url`, whose options (`?region=...`) stay at the end."""
    place, mark, options = url.partition("?")
    return f"{place.rstrip('/')}/{name}{mark}{options}"


def user_cache() -> Path:
    """The folder of this user for copies of what is elsewhere.

    Raises:
        UserError: the user has no home, as in some containers.
    """
    given = os.environ.get("XDG_CACHE_HOME")
    if given:
        return Path(given) / "distbranch"
    try:
        return Path.home() / ".cache" / "distbranch"
    except RuntimeError:
        raise UserError(
            "There is no folder for copies of what is at a URL, for HOME is not set and this user is not in passwd. Set XDG_CACHE_HOME "
            "to a folder that can be written (for data alone data.cache_directory does)."
        ) from None


def copy_of(url: str, purpose: str) -> Path:
    """The folder of this user for a copy of the folder at `url`; one for each purpose."""
    return user_cache() / purpose / hashlib.sha256(url.encode()).hexdigest()[:16]


def make_ready(out: Path) -> None:
    """Make the folder of a file that is written after much work, and find out beforehand whether it can be.

    Raises:
        UserError: it cannot.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if out.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        if out.exists():
            os.close(os.open(out, os.O_WRONLY))
        else:
            tempfile.TemporaryFile(dir=out.parent).close()
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error.strerror}). Give another file with --out.") from None
