"""Places that a configuration names: variables and homes in them, URLs, and where this user keeps copies of what is there."""

import errno
import hashlib
import os
import re
import tempfile
from pathlib import Path
from typing import Any

from distbranch.errors import UsageError, UserError

# A password may stand in a URL: before the host, or among its options, where signed ones have a few names of their own.
USER_OF_URL = re.compile(r"(?<=://)[^/\s'\"]+@")
SECRET_OF_URL = re.compile(
    r"(?i)([?&](?:[^=&\s]*(?:key|token|secret|password|signature|credential)[^=&\s]*|sig)=)[^&\s'\"]+"
)
VARIABLE = re.compile(r"\$(?:(\w+)|\{([^}]*)\})", re.ASCII)  # as os.path.expandvars reads them


def expand_places(value: Any) -> Any:
    """A place, or several, with `$NAME`, `${NAME}` and `~` replaced by what they stand for here; anything else as it is.

    An absolute path whose folders are really called so stays too: a place that was made absolute is read again by every job.

    Raises:
        UsageError: a variable that is not set or empty, or a home that nobody has.
    """
    if isinstance(value, (list, tuple)):
        return type(value)(map(expand_places, value))
    if not isinstance(value, str) or _is_there_as_it_stands(value):
        return value
    # An empty variable would make another place of it, such as /runs.
    unset = [
        found[0] for found in VARIABLE.finditer(value) if not os.environ.get(found[1] or found[2])
    ]
    if unset:
        raise UsageError(
            f"'{value}' names {' and '.join(unset)}, which should be set where this command runs, found nothing; export it, or write "
            "the path out"
        )
    expanded = os.path.expanduser(os.path.expandvars(value))
    # expanduser says nothing of a user who does not exist; a folder called `~name` would be made.
    if expanded.startswith("~"):
        raise UsageError(
            f"'{value}' names a home folder that does not exist on this machine; write the path out"
        )
    return expanded


def _is_there_as_it_stands(place: str) -> bool:
    """Whether `place` is an absolute path in which the last name with a `$` is that of a file or folder."""
    end = place.find("/", place.rfind("$"))
    named = place if end < 0 else place[:end]
    return "$" in place and os.path.isabs(place) and os.path.exists(named)


def hide_secrets(text: str) -> str:
    """The text with `***` for users and keys in URLs: what is shown or sent goes through it, what a run resumes from does not.

    Example:
        >>> hide_secrets("s3://me:mine@bucket/runs?access_key=abc&region=x")
        's3://***@bucket/runs?access_key=***&region=x'
    """
    return SECRET_OF_URL.sub(r"\1***", USER_OF_URL.sub("***@", text))


def is_remote(place: str) -> bool:
    """Whether the place is a URL (`http://`, `s3://`, ...) and not a folder of this machine."""
    return "://" in place


def join_url(url: str, name: str) -> str:
    """The URL of `name` in the folder at `url`, whose options (`?region=...`) stay at the end."""
    place, mark, options = url.partition("?")
    return f"{place.rstrip('/')}/{name}{mark}{options}"


def find_user_cache() -> Path:
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
    return find_user_cache() / purpose / hashlib.sha256(url.encode()).hexdigest()[:16]


def check_can_be_written(out: Path) -> None:
    """Make the folder of a file that is written after much work, and find out beforehand whether it can be.

    Raises:
        UserError: it cannot.
    """
    if re.match(r"\w\w+:/", str(out)):  # `Path` has one slash of a URL
        raise UserError(f"--out should be a file of this machine, found {out}, which is at a URL.")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if out.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        # An existing file is opened and not touched, for the work may fail; a new one is not left behind.
        if out.exists():
            os.close(os.open(out, os.O_WRONLY))
        else:
            tempfile.TemporaryFile(dir=out.parent).close()
    except OSError as error:
        raise UserError(
            f"{out} cannot be written ({error.strerror}). Give another file with --out."
        ) from None
