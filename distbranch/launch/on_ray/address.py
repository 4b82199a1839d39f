"""Which Ray cluster a command talks to, and the token that keeps strangers out of it.

The command's own option names the cluster, and where that is empty the variable RAY_ADDRESS. A cluster has two addresses:
HOST:PORT, where its nodes and drivers meet, and http://HOST:PORT, where jobs are submitted.
"""

import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager

from distbranch.config import LaunchConfig
from distbranch.errors import UsageError, UserError

VARIABLE = "RAY_ADDRESS"
DASHBOARD = "http://127.0.0.1:8265"
HOST = r"(\[[0-9A-Fa-f:.%]+\]|[A-Za-z0-9_.-]+)"
HOST_AND_PORT = re.compile(rf"{HOST}:(?P<port>\d{{1,5}})")
HTTP = re.compile(rf"https?://{HOST}(:(?P<port>\d{{1,5}}))?(/\S*)?")
LAST_PORT = 65535
TOKEN_VARIABLES = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


def cluster_address(launch: LaunchConfig) -> str | None:
    """The cluster to join, `HOST:PORT` or `auto`: `launch.address`, else RAY_ADDRESS; None: start one here.

    Raises:
        UserError: it is neither of these, nor `local`.
    """
    key, address = _given("launch.address", launch.address)
    if address in ("", "local"):
        return None
    if address == "auto" or is_of_nodes(address):
        return address
    own = "" if key == "launch.address" else ", or give launch.address=local to start a cluster here"
    raise UserError(
        f"{key} should be HOST:PORT of a cluster that this machine belongs to, auto or local, found {key}={address}{own}. "
        "From outside a cluster use `distbranch submit ray CONFIG --address http://HEAD:8265`."
    )


def dashboard_address(option: str | None) -> str:
    """Where jobs are submitted, `http://HOST:PORT`: the option --address, else RAY_ADDRESS, else this machine.

    Raises:
        UsageError: it is no such address.
    """
    key, address = _given("--address", option)
    if not address:
        return DASHBOARD
    if is_of_dashboard(address):
        return address
    own = "" if key == "--address" else " Give --address, which counts more."
    raise UsageError(f"{key} should be that of the Ray dashboard, such as http://HEAD:8265, found '{address}'.{own}")


def is_of_nodes(address: str) -> bool:
    """Whether an address is HOST:PORT."""
    return _has_port(HOST_AND_PORT.fullmatch(address))


def is_of_dashboard(address: str) -> bool:
    """Whether an address is http://HOST or http://HOST:PORT."""
    return _has_port(HTTP.fullmatch(address))


@contextmanager
def without_variable() -> Iterator[None]:
    """What a command was told counts, and not what Ray itself would find in the environment."""
    hidden = {name: os.environ.pop(name) for name in (VARIABLE, "RAY_API_SERVER_ADDRESS") if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


def _given(option: str, value: str | None) -> tuple[str, str]:
    """Who names the address, and the address; empty if nobody does."""
    own = (value or "").strip()
    return (option, own) if own else (VARIABLE, os.environ.get(VARIABLE, "").strip())


def _has_port(match: re.Match[str] | None) -> bool:
    return match is not None and 0 < int(match["port"] or 80) <= LAST_PORT


def use_token_if_there() -> None:
    """Show the token that the environment names to whatever cluster is asked; call it before Ray is imported.

    Raises:
        UserError: the file of the token cannot be read.
    """
    file = os.environ.get("RAY_AUTH_TOKEN_PATH")
    if file and not os.access(file, os.R_OK):
        raise UserError(f"RAY_AUTH_TOKEN_PATH names the file {file}, which cannot be read. Put the token there.")
    if _is_given():
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def give_token() -> None:
    """A token for a cluster that is started here, unless the environment names one or says `RAY_AUTH_MODE=disabled`."""
    if os.environ.setdefault("RAY_AUTH_MODE", "token") == "token" and not _is_given():
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def read_token_again() -> None:
    """Ray remembers the token that it found first, and when it is loaded whether one is wanted."""
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


def _is_given() -> bool:
    return any(os.environ.get(variable) for variable in TOKEN_VARIABLES)
