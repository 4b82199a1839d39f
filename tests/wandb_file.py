"""What an offline run of Weights & Biases wrote, read from its file: records of protobuf in the log format of LevelDB."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK, HEADER, FILE_HEADER = 32768, 7, 7
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def read_records(folder: Path) -> Iterator[Any]:
    """The records of all offline runs in a folder, the oldest first."""
    from wandb.proto import wandb_internal_pb2

    for file in sorted(folder.glob("offline-run-*/*.wandb")):
        for content in _read_log(file.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(content)
            yield record


def read_history(folder: Path) -> list[tuple[int, str, Any]]:
    """Iteration, name and value of all that was logged."""
    found = []
    for record in read_records(folder):
        if record.WhichOneof("record_type") != "history":
            continue
        values = {
            item.key or ".".join(item.nested_key): json.loads(item.value_json)
            for item in record.history.item
        }
        step = values.pop("iteration")
        found += [(step, name, value) for name, value in values.items() if name[0] != "_"]
    return found


def _read_log(content: bytes) -> Iterator[bytes]:
    at, parts = FILE_HEADER, b""
    while at + HEADER <= len(content):
        left = BLOCK - at % BLOCK
        if left < HEADER:  # no header fits: the rest of a block is empty
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, at)
        at += HEADER
        parts += content[at : at + length]
        at += length
        if kind in (FULL, LAST):
            yield parts
            parts = b""
