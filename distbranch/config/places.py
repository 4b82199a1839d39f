"""Places that a configuration names by a URL, and where this user keeps copies of what is there."""

import hashlib
import os
from pathlib import Path


def is_remote(place: str) -> bool:
    """Whether the place is a URL (`http://`, `s3://`, ...) and not a folder of this machine."""
    return "://" in place


def below(url: str, name: str) -> str:
    """The URL of `name` in the folder at `url`, whose options (`?region=...`) stay at the end."""
    place, mark, options = url.partition("?")
    return f"{place.rstrip('/')}/{name}{mark}{options}"


def user_cache() -> Path:
    """The folder of this user for copies of what is elsewhere."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "distbranch"


def copy_of(url: str, purpose: str) -> Path:
    """The folder of this user for a copy of the folder at `url`; one for each purpose."""
    return user_cache() / purpose / hashlib.sha256(url.encode()).hexdigest()[:16]
