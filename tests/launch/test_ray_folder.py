"""Ray's files lie where its sockets have room, whatever TMPDIR is."""

import os
import socket
import tempfile
from pathlib import Path

import pytest

from distbranch.errors import UserError
from distbranch.launch import ray_folder
from distbranch.launch.ray_folder import BYTES_OF_RAY, choose_ray_folder, longest_path

NAMES = {
    "short": "/tmp/d",
    "24": "/tmp/" + 19 * "t",
    "66": "/tmp/" + 61 * "t",
    "200": "/tmp/" + 195 * "t",
}
NAMES |= {"unicode": "/tmp/Käse", "a blank": "/tmp/a b", "a quote": "/tmp/a'b"}


def deepest_socket(folder: Path) -> Path:
    """As long as the longest path that Ray makes below a folder with the longest name."""
    name = folder / ("n" * ray_folder.BYTES_OF_NAME)
    return Path(str(name) + ("/" + "s" * (BYTES_OF_RAY - 1)))


@pytest.mark.parametrize("kind", NAMES)
def test_sockets_fit_into_the_chosen_folder_whatever_tmpdir_is(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = Path(f"{NAMES[kind]}{os.getpid()}")
    given.mkdir()
    try:
        monkeypatch.setenv("TMPDIR", str(given))
        monkeypatch.delenv("RAY_TMPDIR", raising=False)
        chosen = choose_ray_folder()
        assert list(given.iterdir()) == []
    finally:
        given.rmdir()
    assert chosen == (given if kind == "short" else Path("/tmp"))
    assert len(os.fsencode(deepest_socket(chosen))) <= 107


def test_a_path_of_107_bytes_is_the_longest_that_a_socket_takes() -> None:
    with (
        tempfile.TemporaryDirectory(prefix="s", dir="/tmp") as folder,
        socket.socket(socket.AF_UNIX) as probe,
    ):
        room = 107 - len(folder) - 1
        with pytest.raises(OSError, match="too long"):
            probe.bind(f"{folder}/{(room + 1) * 's'}")
        probe.bind(f"{folder}/{room * 's'}")


def test_where_no_folder_will_do_the_sentence_says_what_is_wrong_with_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    long = Path("/" + "x" * 70)
    monkeypatch.setattr(ray_folder, "ALWAYS_TRIED", ["/nowhere"])
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", str(long))
    with pytest.raises(UserError) as told:
        choose_ray_folder()
    assert (
        f"{long} is too long for the names of sockets (71 bytes, at most {longest_path()})"
        in str(told.value)
    )
    assert "/nowhere takes no sockets (No such file or directory)" in str(told.value)
    assert "Set RAY_TMPDIR to a short folder" in str(told.value)


def test_ray_tmpdir_comes_first_and_a_shorter_name_allows_a_longer_folder(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with tempfile.TemporaryDirectory(prefix="r" * 15, dir="/tmp") as folder:
        assert longest_path() < len(folder) <= longest_path(10)
        monkeypatch.setenv("RAY_TMPDIR", folder)
        monkeypatch.setenv("TMPDIR", "/var/tmp")
        assert choose_ray_folder() == Path("/var/tmp")
        assert choose_ray_folder(10) == Path(folder)
