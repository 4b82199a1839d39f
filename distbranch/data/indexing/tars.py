"""Which tars are meant: paths and URLs, with braces and stars or as folders, and what each is called beside the others."""

import os
from collections.abc import Sequence
from pathlib import Path

from webdataset.shardlists import expand_urls

from distbranch.config.paths import expand_places, is_remote
from distbranch.data.cache import find_system, open_files
from distbranch.data.indexing.scan import WHY_NOT_COMPRESSED
from distbranch.errors import UserError

ENDING = ".tar"
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")


def list_tars(patterns: Sequence[str]) -> list[str]:
    """The absolute paths and URLs of all tars that are meant, in the order of the patterns, below each by name.

    Raises UserError that names all that are compressed or no tars.
    """
    places: list[str] = []
    problems = []
    for pattern in patterns:
        found = _list_places(expand_places(pattern))
        if not found:
            problems.append(f"{pattern} names no file")
        places += found
    for place in dict.fromkeys(places):
        name = place.partition("?")[0].lower()
        if name.endswith(COMPRESSED):
            problems.append(f"{place} is {WHY_NOT_COMPRESSED} (decompress it)")
        elif not name.endswith(ENDING):
            problems.append(f"{place} is no {ENDING}")
    if problems:
        more = ""
        if len(problems) > 3:
            more = f"; and {len(problems) - 3} more"
        raise UserError(
            f"SHARDS should be tars of WebDataset, their folder, or a pattern such as 'train-*.tar' or '{{000..099}}.tar': "
            f"{'; '.join(problems[:3])}{more}."
        )
    return list(dict.fromkeys(places))


def name_tars(places: Sequence[str]) -> dict[str, str]:
    """Every tar by its path below what all have in common, without its ending."""
    common = os.path.commonprefix(list(places)).rpartition("/")[0]  # noqa: RUF071  # whole folders now
    return {
        place: place[len(common) :].strip("/").partition("?")[0].removesuffix(ENDING)
        for place in places
    }


def _list_places(pattern: str) -> list[str]:
    if not is_remote(pattern) and Path(pattern).is_file():
        return [str(Path(pattern).absolute())]
    found = []
    for one in expand_urls(pattern):
        if not is_remote(one):
            one = str(Path(one).absolute())
        else:
            open_files(one)  # says what is missing to read such URLs
        found += _list_matches(one)
    return found


def _list_matches(place: str) -> list[str]:
    """What a star stands for, or the tars of a folder; the place itself otherwise."""
    has_star = "*" in place
    if not has_star and place.partition("?")[0].lower().endswith((ENDING, *COMPRESSED)):
        return [place]
    try:
        system, path = find_system(place)
        if has_star:
            found = system.glob(path)
        elif system.isdir(path):
            found = [one for one in system.find(path) if one.endswith(ENDING)]
        else:
            found = [path]
    except Exception as error:  # every fsspec driver raises errors of its own
        raise UserError(f"{place} cannot be listed ({type(error).__name__}: {error}).") from error
    if not is_remote(place):
        return sorted(found)
    return sorted(map(system.unstrip_protocol, found))
