"""Which Ray cluster a command talks to, and the token that keeps strangers out of it.

The command's own option names the cluster, and where that is empty the variable RAY_ADDRESS. A cluster has two addresses:
HOST:PORT, where its nodes and drivers meet, and http://HOST:PORT, where jobs are submitted.
"""

import os
import re
import secrets
from contextlib import AbstractContextManager
from typing import Any

from distbranch.config import LaunchConfig
from distbranch.errors import UsageError, UserError
from distbranch.launch.processes import restored_environment

VARIABLE = "RAY_ADDRESS"
DASHBOARD = "http://127.0.0.1:8265"
HOST = r"(\[[0-9A-Fa-f:.%]+\]|[A-Za-z0-9_.-]+)"
HOST_AND_PORT = re.compile(rf"{HOST}:(?P<port>\d{{1,5}})")
HTTP = re.compile(rf"https?://{HOST}(:(?P<port>\d{{1,5}}))?(/\S*)?")
LAST_PORT = 65535


def cluster_address(launch: LaunchConfig) -> str | None:
    """The cluster to join, `HOST:PORT` or `auto`: `launch.address`, else RAY_ADDRESS; None: start one here.

    Raises:
        UserError: it is neither of these, nor `local`.
    """
    key, address = _find_given("launch.address", launch.address)
    if address in ("", "local"):
        return None
    if address == "auto" or is_node_address(address):
        return address
    own = (
        "" if key == "launch.address" else ", or give launch.address=local to start a cluster here"
    )
    raise UserError(
        f"{key} should be HOST:PORT of a cluster that this machine belongs to, auto or local, found {key}={address}{own}. "
        "From outside a cluster use `distbranch submit ray CONFIG --address http://HEAD:8265`."
    )


def dashboard_address(option: str | None) -> str:
    """Where jobs are submitted, `http://HOST:PORT`: the option --address, else RAY_ADDRESS, else this machine.

    Raises:
        UsageError: it is no such address.
    """
    key, address = _find_given("--address", option)
    if not address or is_dashboard_address(address):
        return address or DASHBOARD
    raise UsageError(
        f"{key} should be that of the Ray dashboard, found '{address}'. Give --address, such as http://HEAD:8265."
    )


def is_node_address(address: str) -> bool:
    """Whether an address is HOST:PORT."""
    return _has_valid_port(HOST_AND_PORT.fullmatch(address))


def is_dashboard_address(address: str) -> bool:
    """Whether an address is http://HOST or http://HOST:PORT."""
    return _has_valid_port(HTTP.fullmatch(address))


def hide_ray_variables() -> AbstractContextManager[None]:
    """What a command was told counts, and not what Ray itself would find in the environment."""
    return restored_environment(without=(VARIABLE, "RAY_API_SERVER_ADDRESS"))


def _find_given(option: str, value: str | None) -> tuple[str, str]:
    """Who names the address, and the address; empty if nobody does."""
    if value and value.strip():
        return option, value.strip()
    return VARIABLE, os.environ.get(VARIABLE, "").strip()


def _has_valid_port(match: re.Match[str] | None) -> bool:
    return match is not None and 0 < int(match["port"] or 80) <= LAST_PORT


def apply_token(*, create: bool = False) -> None:
    """Show the token that the environment names to whatever cluster is asked; call it before Ray is imported.

    Args:
        create: make one if none is named, unless the environment says `RAY_AUTH_MODE=disabled`.

    Raises:
        UserError: the file of the token cannot be read.
    """
    file = os.environ.get("RAY_AUTH_TOKEN_PATH")
    if file and not os.access(file, os.R_OK):
        raise UserError(
            f"RAY_AUTH_TOKEN_PATH names the file {file}, which cannot be read. Put the token there."
        )
    is_given = bool(file or os.environ.get("RAY_AUTH_TOKEN"))
    if is_given or create:
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    if create and not is_given and os.environ["RAY_AUTH_MODE"] == "token":
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


# ---- the jobs of a cluster, asked through its dashboard


def open_job_client(address: str) -> Any:
    """A client of the cluster's jobs, when somebody answers there who knows us.

    Raises:
        UserError: nobody answers, or the token is wrong.
    """
    apply_token()
    # Ray reads the token when it is imported, so not before.
    from ray.exceptions import RayError
    from ray.job_submission import JobSubmissionClient

    try:
        with hide_ray_variables():
            return JobSubmissionClient(address)
    except (RuntimeError, ValueError, OSError, RayError) as error:
        if re.search("token|unauthorized|401|403", str(error), re.IGNORECASE):
            raise UserError(explain_token(address)) from None
        raise UserError(explain_silence(address, shorten(error))) from None


def explain_token(address: str) -> str:
    """What to do where a cluster wants a token."""
    return (
        f"The Ray cluster {address} answers only to those who hold its token. Set RAY_AUTH_MODE=token and "
        "RAY_AUTH_TOKEN_PATH to the file that holds it, which whoever started the cluster can give you."
    )


def explain_silence(address: str, reason: str) -> str:
    """What to do where no dashboard answers."""
    return (
        f"No Ray dashboard answers at {address} ({reason}). Check the address, and that the head was started so that others reach "
        "its dashboard: `ray start --head --dashboard-host 0.0.0.0`, with a token and on a network that you trust."
    )


def shorten(reason: object) -> str:
    """A reason on one line, for the middle of a sentence."""
    return " ".join(str(reason).split())[:300].rstrip(".")


def find_last_line(text: object, otherwise: str) -> str:
    """The last line that says something: of a traceback its error."""
    return (str(text).strip() or otherwise).splitlines()[-1].strip()
