"""Checkpoints: whole or not at all, verified before use, and never a pickle."""

import json
import logging
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from rank_server import RankServer
from tiny_runs import config_of, train_tiny

from distbranch.engine.checkpoint import Checkpoint, load_newest, save_checkpoint
from distbranch.errors import UserError


def _checkpoint(number: int, size: int = 100) -> Checkpoint:
    return Checkpoint({"number": number}, {"model": {"weight": torch.full((size,), float(number))}})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in (1, 2):
        save_checkpoint(tmp_path / "checkpoints", number, _checkpoint(number), keep=3)
    return tmp_path / "checkpoints"


def _flip_one_bit(newest: Path) -> None:
    content = bytearray((newest / "model.safetensors").read_bytes())
    content[-5] ^= 1
    (newest / "model.safetensors").write_bytes(content)


def _cut(newest: Path) -> None:
    content = (newest / "model.safetensors").read_bytes()
    (newest / "model.safetensors").write_bytes(content[: len(content) // 2])


def _lose_the_manifest(newest: Path) -> None:
    (newest / "manifest.json").unlink()


def _lose_the_weights(newest: Path) -> None:
    (newest / "model.safetensors").unlink()


def _change_the_state(newest: Path) -> None:
    (newest / "state.json").write_text(json.dumps({"number": 7}))


def _garble_the_manifest(newest: Path) -> None:
    (newest / "manifest.json").write_text('{"sha256": [1, 2]}')


DAMAGES = [
    _flip_one_bit,
    _cut,
    _lose_the_manifest,
    _lose_the_weights,
    _change_the_state,
    _garble_the_manifest,
]


def test_what_was_saved_is_loaded_bit_for_bit(folder: Path) -> None:
    found = load_newest(folder)
    assert found is not None
    assert found.state == {"number": 2}
    assert torch.equal(found.tensors["model"]["weight"], torch.full((100,), 2.0))


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_checkpoint_is_passed_over_with_a_warning(
    damage: Callable[[Path], None],
    folder: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logging.getLogger("distbranch"), "propagate", True)
    damage(folder / "step-00000002")
    found = load_newest(folder)
    assert found is not None
    assert found.state == {"number": 1}
    assert "step-00000002" in caplog.text
    assert "damaged" in caplog.text


def test_if_all_checkpoints_are_damaged_one_sentence_says_what_to_do(folder: Path) -> None:
    for path in folder.iterdir():
        _flip_one_bit(path)
    with pytest.raises(UserError, match="None of the 2 checkpoint"):
        load_newest(folder)
    assert len(list(folder.iterdir())) == 2


def test_no_checkpoint_at_all_is_no_error(tmp_path: Path) -> None:
    assert load_newest(tmp_path / "absent") is None


def test_only_the_newest_are_kept(folder: Path) -> None:
    for number in (3, 4, 5):
        save_checkpoint(folder, number, _checkpoint(number), keep=2)
    assert sorted(path.name for path in folder.iterdir()) == ["step-00000004", "step-00000005"]


def test_a_folder_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file is in the way")
    with pytest.raises(UserError, match=r"checkpoint of step 3 could not be written .* make room"):
        save_checkpoint(tmp_path / "checkpoints", 3, _checkpoint(3), keep=2)


@contextmanager
def room(num_bytes: int) -> Iterator[None]:
    """Leaves room for so many bytes per file, as a full disk or a quota does; also in the log of the tests, so be brief."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_where_there_is_no_more_room_the_earlier_checkpoints_stay_intact(folder: Path) -> None:
    with (
        room(50_000),
        pytest.raises(UserError, match=r"could not be written .* Earlier checkpoints are intact"),
    ):
        save_checkpoint(folder, 3, _checkpoint(3, size=200_000), keep=3)
    found = load_newest(folder)
    assert found is not None
    assert found.state == {"number": 2}
    assert sorted(path.name for path in folder.iterdir()) == ["step-00000001", "step-00000002"]


def test_a_run_whose_newest_checkpoint_is_damaged_resumes_from_the_one_before(
    tiny_data: Path, ranks: RankServer, undisturbed: Callable[[int], Path], tmp_path: Path
) -> None:
    shutil.copytree(undisturbed(1), tmp_path / "tiny")
    for file in ("result.json", "model/model.json"):
        (tmp_path / "tiny" / file).unlink()
    config_file = tmp_path / "tiny" / "config.yaml"
    config_file.write_text(
        config_file.read_text().replace(str(undisturbed(1).parent), str(tmp_path))
    )
    newest = sorted((tmp_path / "tiny" / "checkpoints").iterdir())
    _flip_one_bit(newest[-1])
    ended = ranks.call(train_tiny, config=config_of(tiny_data, tmp_path))
    assert ended["end"] == "done", ended["message"]
    assert [event["iteration"] for event in ended["events"] if event["kind"] == "resumed"] == [
        int(newest[-2].name[5:])
    ]
    expected = (undisturbed(1) / "model" / "model.safetensors").read_bytes()
    assert (tmp_path / "tiny" / "model" / "model.safetensors").read_bytes() == expected


def test_nothing_in_a_run_directory_is_a_pickle(undisturbed: Callable[[int], Path]) -> None:
    known = {
        ".yaml",
        ".json",
        ".jsonl",
        ".safetensors",
        ".npz",
        ".lock",
        ".txt",
        ".prom",
        ".diff",
        "",
    }
    files = [
        file
        for file in undisturbed(2).rglob("*")
        if file.is_file() and "tensorboard" not in file.parts
    ]
    assert len(files) > 20
    assert {file.suffix for file in files} <= known
    for file in files:
        content = file.read_bytes()
        if file.suffix == ".npz":
            assert all(
                array.dtype == np.float64 for array in np.load(file, allow_pickle=False).values()
            )
        assert (
            not content.startswith((b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK"))
            or file.suffix == ".npz"
        )
