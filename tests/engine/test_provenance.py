"""A run says what it was made of, so that it can be trained again: code, packages, data, command, and every start."""

import json
import logging
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from http.server import SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from http_thread import serve_http
from tiny_runs import config_of, content_of
from tiny_world import contents, run_command

from distbranch.config import load_config
from distbranch.config.paths import hide_secrets
from distbranch.engine import provenance
from distbranch.engine.provenance import describe_command, list_changes, read_source
from distbranch.engine.results import StoppedEarly
from distbranch.engine.session import train_rank

LAST = 6


def git(folder: Path, *command: str) -> str:
    own = ("-c", "user.name=a", "-c", "user.email=a@b")
    ended = subprocess.run(
        ["git", "-C", str(folder), *own, *command], capture_output=True, text=True, check=True
    )
    return ended.stdout


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with a package of two modules, which takes the place of ours; its user has settings of their own."""
    settings = tmp_path / "gitconfig"
    settings.write_text("[diff]\n noprefix = true\n external = false\n[color]\n ui = always\n")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(settings))
    top = tmp_path / "top"
    package = top / "package"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("first = 1\n")
    (package / "gone.py").write_text("gone = 1\n")
    (top / ".gitignore").write_text("*.log\n")
    (top / "outside.txt").write_text("1\n")
    git(tmp_path, "init", "-q", str(top))
    git(top, "add", ".")
    git(top, "commit", "-qm", "first")
    monkeypatch.setattr(provenance, "PACKAGE", package)
    return top


def test_the_commit_with_the_saved_changes_is_the_code_that_ran(
    checkout: Path, tmp_path: Path
) -> None:
    read = read_source.__wrapped__
    commit = git(checkout, "rev-parse", "HEAD").strip()
    (checkout / "outside.txt").write_text("of no run\n")
    (checkout / "secrets.env").write_text("PASSWORD=sesame\n")
    assert read() == provenance.Source(commit)

    package = checkout / "package"
    (package / "__init__.py").write_text("first = 2\n")
    (package / "gone.py").unlink()
    (package / "new").mkdir()
    (package / "new" / "module.py").write_text("text = 'ä'")
    (package / "new" / "picture.bin").write_bytes(bytes(range(256)))
    (package / "a.log").write_text("ignored")
    source = read()
    assert source.commit == f"{commit}+"
    assert "sesame" not in source.diff
    assert "of no run" not in source.diff

    again = tmp_path / "again"
    git(tmp_path, "clone", "-q", str(checkout), str(again))
    (tmp_path / "uncommitted.diff").write_text(source.diff, encoding="utf-8")
    git(again, "apply", str(tmp_path / "uncommitted.diff"))
    (package / "a.log").unlink()
    assert contents(again / "package") == contents(package)


def test_a_checkout_of_another_user_has_its_commit(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = git(checkout, "rev-parse", "HEAD").strip()
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")  # git's own, for this case
    with pytest.raises(subprocess.CalledProcessError):
        git(checkout, "rev-parse", "HEAD")
    assert read_source.__wrapped__() == provenance.Source(commit)


def test_a_package_that_lies_in_the_checkout_of_something_else_has_no_commit(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = checkout / "venv" / "package"
    installed.mkdir(parents=True)
    (installed / "__init__.py").write_text("")
    monkeypatch.setattr(provenance, "PACKAGE", installed)
    assert read_source.__wrapped__() == provenance.Source(None)


def test_the_packages_are_those_that_are_imported_but_this_one_and_what_ray_brings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def plant(folder: str, name: str, version: str) -> str:
        place = tmp_path / folder / f"{name}-{version}.dist-info"
        place.mkdir(parents=True)
        (place / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        )
        return str(place.parent)

    places = [
        plant("ray/thirdparty_files", "psutil", "1.0"),
        plant("first", "My_Package.a", "2.0+cpu"),
        plant("second", "my-package-a", "1.0"),
        plant("second", "distbranch", "0.1.0"),
        plant("second", "abc", "3"),
    ]
    monkeypatch.setattr(sys, "path", places)
    assert provenance.list_packages.__wrapped__() == ("abc==3", "my-package-a==2.0+cpu")


def test_a_command_is_told_without_folders_of_programs_and_without_passwords(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url = "run.directory=s3://me:mine@bucket/runs?access_key=abc&region=x&Secret_Key=d"
    monkeypatch.setattr(sys, "argv", ["/venv/bin/distbranch", "train", "my config.yaml", url])
    assert describe_command() == (
        "distbranch train 'my config.yaml' "
        "'run.directory=s3://***@bucket/runs?access_key=***&region=x&Secret_Key=***'"
    )
    assert hide_secrets("s3://me:p@ss@bucket/a@b c@d") == "s3://***@bucket/a@b c@d"
    monkeypatch.setattr(sys, "argv", ["/site/distbranch/__main__.py", "train", "x.yaml"])
    assert describe_command() == "python -m distbranch train x.yaml"
    monkeypatch.setattr(sys, "argv", ["-c", "x"])
    assert describe_command() == "python -c x"
    monkeypatch.setattr(sys, "argv", [""])
    assert describe_command() == "python"
    assert hide_secrets("http://host/data method.alpha=2") == "http://host/data method.alpha=2"


def test_the_signature_of_a_signed_url_is_a_secret_and_what_it_is_about_is_not() -> None:
    signed = "https://host/set?X-Amz-SignedHeaders=host&X-Amz-Credential=a%2Fb&X-Amz-Signature=c"
    hidden = "https://host/set?X-Amz-SignedHeaders=host&X-Amz-Credential=***&X-Amz-Signature=***"
    assert hide_secrets(signed) == hidden
    assert hide_secrets("az://box/set?sv=1&sig=abc%3D&sp=r") == "az://box/set?sv=1&sig=***&sp=r"


@pytest.fixture
def signed_data(world: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of the tiny world's data, with a name and a password that nobody asks for."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(world / "cache"))
    handler = partial(SimpleHTTPRequestHandler, directory=str(world))
    monkeypatch.setattr(SimpleHTTPRequestHandler, "log_message", lambda *_: None)
    with serve_http(handler) as place:
        yield f"http://me:hush@{place}/data"


def test_the_secret_of_a_url_stands_where_a_run_resumes_from_and_nowhere_else(
    world: Path, signed_data: str
) -> None:
    words = ["train", "tiny.yaml", f"data.path={signed_data}", "run.name=signed"]
    run = world / "runs" / "signed"
    begun = run_command([*words, "--dry-run"])
    ended = run_command(words)
    assert ended.code == 0, ended.err
    assert " ".join(ended.err.split()).count("The URL of data.path holds a secret") == 1
    assert run_command(["report", str(run)]).code == 0
    asked = [run_command([command, str(run)]) for command in ("status", "evaluate")]
    changed = run_command([*words, "optim.lr=0.5", f"data.path={signed_data}/"])
    for told in (begun, ended, changed, *asked):
        assert "hush" not in told.out + told.err
    assert changed.code == 1
    holders = {
        file.name for file in run.rglob("*") if file.is_file() and b"hush" in file.read_bytes()
    }
    assert holders == {"config.yaml"}
    assert "***" in (run / "report.html").read_text()
    assert "is finished" in run_command(words).out


def train(data: Path, folder: Path, until: int = LAST) -> Path:
    """Train the tiny run up to a step; its directory."""
    config = load_config(config_of(data, folder, **{"train.iterations": LAST}))
    steps = [0]

    def should_stop() -> bool:  # asked once before every step, beginning with the first
        steps[0] += 1
        return steps[0] > until

    config.run_directory.mkdir(parents=True, exist_ok=True)
    try:
        train_rank(config, report=lambda _: None, should_stop=should_stop)
    except StoppedEarly:
        assert until < LAST
    return config.run_directory


def install(monkeypatch: pytest.MonkeyPatch, code: str, diff: str, *packages: str) -> None:
    """As if this code and these packages were here."""
    source = provenance.Source("a" * 40 + "+" * bool(diff), diff)
    for module in ("distbranch.engine.provenance", "distbranch.engine.run_start"):
        monkeypatch.setattr(f"{module}.read_source", lambda: source)
        monkeypatch.setattr(f"{module}.list_packages", lambda: packages)
    monkeypatch.setattr("distbranch.engine.provenance.hash_code", lambda: code)


def test_a_resumed_run_lists_its_starts_tells_what_changed_and_keeps_what_was_before(
    tiny_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    install(monkeypatch, "1", "first change\n", "numpy==2.0", "torch==2.13.0", "old==1")
    run = train(tiny_data, tmp_path, 2)
    train(tiny_data, tmp_path, 2)
    assert not caplog.messages
    before = json.loads((run / "environment.json").read_text())
    install(monkeypatch, "2", "second change\n", "numpy==2.0", "torch==2.14.1", "new==1")
    train(tiny_data, tmp_path)

    assert caplog.messages == [
        f"The run {run} is resumed after 4 steps with other code, packages or data (other uncommitted changes, "
        "torch 2.13.0 -> 2.14.1, new none -> 1, old 1 -> none), so its numbers may differ."
    ]
    environment = json.loads((run / "environment.json").read_text())
    starts = environment["starts"]
    assert [start["iteration"] for start in starts] == [0, 2, 4]
    assert starts[:2] == before["starts"]
    assert [start["code_sha256"] for start in starts] == ["1", "1", "2"]
    assert {**environment, **starts[-1]} == {**environment, "at": starts[-1]["at"], "iteration": 4}
    assert (run / "uncommitted.diff").read_text() == "second change\n"
    kept = run / f"uncommitted-{before['uncommitted_sha256'][:9]}.diff"
    assert kept.read_text() == "first change\n"
    kept = run / f"packages-{before['packages_sha256'][:9]}.txt"
    assert kept.read_text().split() == ["numpy==2.0", "torch==2.13.0", "old==1"]


def test_a_record_of_an_earlier_version_is_the_first_of_the_starts(
    tiny_data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = train(tiny_data, tmp_path, 2)
    old = {"commit": "1234567", "host": "elsewhere", "packages": {"torch": "2.8.0"}}
    (run / "environment.json").write_text(json.dumps(old))
    train(tiny_data, tmp_path, 2)
    starts = json.loads((run / "environment.json").read_text())["starts"]
    assert starts[0] == {"host": "elsewhere", "commit": "1234567"}
    assert starts[1]["iteration"] == 2


def changes(before: dict[str, Any], now: dict[str, Any], *packages: Sequence[str]) -> list[str]:
    return list_changes(before, now, *(packages or ((), ())))


def test_changes_are_named_in_a_few_words() -> None:
    known = {"code_sha256": "1" * 64, "commit": "a" * 40, "packages_sha256": "p", "data": "d" * 64}
    assert changes(known, known) == []
    moved = {**known, "commit": "b" * 40}  # to a commit with the same modules
    assert changes(known, moved) == []
    other = {**moved, "code_sha256": "2" * 64, "data": "e" * 64}
    assert changes(known, other) == ["commit aaaaaaaaa -> bbbbbbbbb", "data ddddddddd -> eeeeeeeee"]
    image = {**other, "commit": None, "data": known["data"]}
    assert changes(known, image) == ["code 111111111 -> 222222222"]
    many = [f"package{number}==1" for number in range(9)]
    assert changes(known, {**known, "packages_sha256": "q"}, many, []) == [
        "package0 1 -> none",
        "package1 1 -> none",
        "package2 1 -> none",
        "6 more packages",
    ]


def test_the_config_of_a_run_trains_it_again_to_the_same_bits_and_stores_no_secret(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(world / "runs")
    ended = run_command(["train", "runs/tiny/config.yaml"])
    assert ended.code == 0, ended
    assert contents(world / "runs") == before

    monkeypatch.setenv("WANDB_API_KEY", "sesame-open-4711")
    monkeypatch.setattr("distbranch.engine.provenance.hash_code", lambda: "others")
    ended = run_command(["train", "runs/tiny/config.yaml", "--fresh"])
    assert ended.code == 0, ended
    assert "is trained again as tiny-2 with other code" in " ".join(ended.err.split())
    again = world / "runs" / "tiny-2"
    found, expected = (content_of(run) for run in (again, world / "runs" / "tiny"))
    assert (found["result"].pop("name"), expected["result"].pop("name")) == ("tiny-2", "tiny")
    assert found == expected
    environment = json.loads((again / "environment.json").read_text())
    assert environment["command"] == "distbranch train runs/tiny/config.yaml --fresh"
    files = [path for path in again.rglob("*") if path.is_file()]
    assert not any(b"sesame-open-4711" in path.read_bytes() for path in files)
