"""The token that keeps strangers out of a cluster; Ray finds it in the environment."""

import os
import secrets

from distbranch.errors import UserError

TOKEN_VARIABLES = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


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
