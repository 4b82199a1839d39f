"""What a run is made of: the code with its uncommitted changes, the packages, and the command; and how two starts of it differ.

Nothing of the environment's variables is kept, for their values may be secrets.
"""

import hashlib
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from distbranch.config.paths import hide_secrets
from distbranch.engine.run_directory import write_atomically

PACKAGE = Path(__file__).resolve().parents[1]
# Some file systems take long to answer `git diff`; a run does not wait for that.
SECONDS_FOR_GIT = 10
# Whatever the user's own settings of git are, for `git apply` should take it.
DIFF = (
    *("-c", "diff.noprefix=false", "-c", "diff.mnemonicPrefix=false"),
    *("diff", "--binary", "--no-color", "--no-ext-diff", "--no-textconv", "--no-relative"),
)
DIGITS = 9  # of a hash, for people
MOST_NAMED = 3  # of the packages that differ
# Ray brings packages of its own along, which are found first once it is loaded.
OF_RAY = "thirdparty_files"


@dataclass(frozen=True)
class Source:
    """The code of this package: its commit, with '+' if files differ from it, and these differences as `git apply` takes them."""

    commit: str | None  # None outside a checkout
    diff: str = ""


@cache
def read_source() -> Source:
    """The code that this process has loaded: asked once, for the files may change while it runs.

    The differences are those of the package's folder, new files included; what else lies in the checkout is not read.
    """
    try:
        # A package that is installed in a folder of some other checkout is not of that one's commit.
        _ask_git("ls-files", "--error-unmatch", "__init__.py")
        commit = _ask_git("rev-parse", "HEAD").strip()
        known = _ask_git(*DIFF, "HEAD", "--", ".")
        top = _ask_git("rev-parse", "--show-toplevel").rstrip("\n")
        new = _ask_git("ls-files", "-z", "--others", "--exclude-standard", "--full-name", ".")
        # As a difference from nothing, for git does not know them yet. Its exit code says that there is one.
        added = [
            _ask_git("-C", top, *DIFF, "--no-index", "/dev/null", file, codes=(0, 1))
            for file in new.split("\0")[:-1]
        ]
    except (OSError, subprocess.SubprocessError):
        return Source(None)
    diff = "".join([known, *added])
    return Source(commit + "+" * bool(diff), diff)


def _ask_git(*command: str, codes: Sequence[int] = (0,)) -> str:
    ended = subprocess.run(
        # A checkout of somebody else, as in a container or a shared folder, is refused otherwise; its code is running already.
        ["git", "-c", "safe.directory=*", "-C", str(PACKAGE), *command],
        capture_output=True,
        check=False,
        timeout=SECONDS_FOR_GIT,
    )
    if ended.returncode not in codes:
        raise subprocess.CalledProcessError(ended.returncode, command)
    return ended.stdout.decode(errors="replace")


@cache
def hash_code() -> str:
    """The sha256 of all modules of this package: the same in a checkout, at another commit that left them alone, and in an image."""
    hashed = hashlib.sha256()
    for file in sorted(PACKAGE.rglob("*.py")):
        content = file.read_bytes()
        hashed.update(f"{file.relative_to(PACKAGE).as_posix()} {len(content)}\n".encode())
        hashed.update(content)
    return hashed.hexdigest()


@cache
def list_packages() -> tuple[str, ...]:
    """All installed packages but this one, as `name==version`, sorted: a file of them is one that `pip install -r` takes."""
    found: dict[str, str] = {}
    for package in distributions():
        name = package.name
        if name is None or OF_RAY in str(package.locate_file("")):
            continue
        # Of several the first is imported.
        found.setdefault(re.sub(r"[-_.]+", "-", name).lower(), package.version)
    found.pop("distbranch", None)
    return tuple(f"{name}=={version}" for name, version in sorted(found.items()))


def describe_code() -> dict[str, Any]:
    """Code and packages of this process, as environment.json names them."""
    source = read_source()
    return {
        "python": platform.python_version(),
        "code_sha256": hash_code(),
        "commit": source.commit,
        "uncommitted_sha256": hash_text(source.diff) if source.diff else None,
        "packages_sha256": hash_text(format_packages()),
    }


def format_packages() -> str:
    """The text of packages.txt."""
    return "".join(f"{one}\n" for one in list_packages())


def describe_command() -> str:
    """The command line of this process, without the folder of the program and without passwords in URLs."""
    program, *arguments = sys.argv or [""]
    name = Path(program).name
    words = [name]
    if name in ("", "-c"):  # a program without a file
        words = ["python", *filter(None, words)]
    elif name == "__main__.py":
        words = ["python", "-m", Path(program).parent.name]
    return hide_secrets(shlex.join([*words, *arguments]))


def hash_text(text: str) -> str:
    """Its sha256."""
    return hashlib.sha256(text.encode()).hexdigest()


def keep_text(path: Path, text: str) -> None:
    """Write a file of a run. One of an earlier start that differs stays beside it, under the beginning of its sha256.

    An empty text is no file.
    """
    if path.exists():
        before = path.read_bytes().decode(errors="replace")
        if before == text:
            return
        path.replace(path.with_name(name_earlier(path.name, hash_text(before))))
    if text:
        write_atomically(path, text)


def name_earlier(file: str, sha256: str) -> str:
    """The name of a file of an earlier start: `packages-1a2b3c4d5.txt`."""
    path = Path(file)
    return f"{path.stem}-{sha256[:DIGITS]}{path.suffix}"


def list_starts(environment: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What environment.json tells of every start, first to last; of earlier versions the last one alone, without its time."""
    if "starts" in environment or not environment:
        return list(environment.get("starts", ()))
    known = ("host", "python", "commit", "data", "device", "world_size")
    return [{key: environment[key] for key in known if key in environment}]


def list_changes(
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    packages_before: Iterable[str],
    packages_now: Iterable[str],
) -> list[str]:
    """What differs between two starts of environment.json in code, packages and data, in a few words each.

    What either of them does not tell, as those of earlier versions, does not count.
    """
    differing = {key for key in before.keys() & now.keys() if before[key] != now[key]}
    changes = []
    if "code_sha256" in differing:
        changes.append(_describe_code_change(before, now))
    if "python" in differing:
        changes.append(f"python {before['python']} -> {now['python']}")
    if "packages_sha256" in differing:
        changes += _list_changed_packages(packages_before, packages_now)
    if "data" in differing:
        changes.append(f"data {before['data'][:DIGITS]} -> {now['data'][:DIGITS]}")
    return changes


def _describe_code_change(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """By commits where these tell it."""
    commits = [one["commit"] for one in (before, now)]
    if commits[0] == commits[1] and commits[0] is not None:
        return "other uncommitted changes"
    if None not in commits:
        return f"commit {' -> '.join(map(shorten_commit, commits))}"
    return f"code {' -> '.join(one['code_sha256'][:DIGITS] for one in (before, now))}"


def shorten_commit(commit: str | None) -> str:
    """For people: the first digits, with the '+' of uncommitted changes."""
    if commit is None:
        return "unknown"
    return commit.rstrip("+")[:DIGITS] + "+" * commit.endswith("+")


def _list_changed_packages(before: Iterable[str], now: Iterable[str]) -> list[str]:
    """The first few by name, and how many more there are."""
    old, new = (dict(one.split("==", 1) for one in packages) for packages in (before, now))
    names = [name for name in sorted(old | new) if old.get(name) != new.get(name)]
    # What computes comes first.
    names.sort(key=lambda name: name not in ("torch", "numpy", "ray"))
    said = [f"{name} {old.get(name, 'none')} -> {new.get(name, 'none')}" for name in names]
    if len(said) > MOST_NAMED:
        said[MOST_NAMED:] = [f"{len(said) - MOST_NAMED} more packages"]
    return said
