"""What decides how numbers are rounded, beside the number of ranks: the precision of the forward pass, threads, kind of device.

A run that is resumed with others is not refused, but after thousands of steps its tree may be another one: so all that were used
stand in its checkpoints, and what `train.precision: auto` chose at the beginning holds to the end.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from distbranch.engine.distributed import Ranks
from distbranch.engine.optimisation import has_bf16

logger = logging.getLogger("distbranch")
Rounding = Mapping[
    str, Any
]  # precision: bf16 or fp32; threads: of a rank, or the different numbers; device: cpu or cuda


def choose_rounding(precision: str, ranks: Ranks, before: Sequence[Rounding] = ()) -> list[Rounding]:
    """Those with which the run was trained so far, oldest first, and the one of this start, which is the last.

    Args:
        precision: `train.precision`.
        ranks: this process among the others; all must call it.
        before: those of the checkpoint from which the run is resumed, if they were recorded.

    Raises:
        SharedError: bf16 on a device that cannot compute in it at all.
    """
    begun_with = before[0] if before else None
    if precision == "auto":
        precision = _choose_precision(ranks, begun_with)
    if precision == "bf16":
        ranks.raise_together(_cannot_bf16(ranks.device))
    threads = sorted(set(ranks.gather(torch.get_num_threads())))
    now = {"precision": precision, "threads": threads[0], "device": ranks.device.type}
    if len(threads) > 1:
        now["threads"] = threads
    if begun_with is not None and now != begun_with and ranks.is_first:
        changed = [f"{key} {begun_with[key]} -> {value}" for key, value in now.items() if begun_with[key] != value]
        logger.warning(
            "The run is resumed with another rounding than it was begun with (%s), so from here on its numbers are not those of a "
            "run without a break. `launch.threads` and `launch.device` restore it.",
            ", ".join(changed),
        )
    return [*before, now] if not before or before[-1] != now else list(before)


def _choose_precision(ranks: Ranks, begun_with: Rounding | None) -> str:
    """What `auto` means: as the run was begun, else bf16 if all ranks have it in hardware."""
    in_hardware = "bf16" if all(ranks.gather(has_bf16(ranks.device))) else "fp32"
    if begun_with is None or begun_with["precision"] == in_hardware:
        return in_hardware
    if ranks.is_first:
        logger.warning(
            "train.precision=auto would be %s on this hardware; the run was begun with %s and keeps it%s.",
            in_hardware,
            begun_with["precision"],
            " (emulated and slow here)" if in_hardware == "fp32" else "",
        )
    return str(begun_with["precision"])


def _cannot_bf16(device: torch.device) -> str | None:
    if device.type != "cuda" or torch.cuda.is_bf16_supported():
        return None
    return (
        f"The forward pass of this run is in bf16, and {torch.cuda.get_device_name(device)} cannot compute in it. Use another GPU, "
        "or train with train.precision=fp32 under another run.name."
    )
