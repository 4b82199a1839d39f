"""Named tensors as a .safetensors file, with the mode and the errors of any other file.

safetensors gives every file the mode 0600, and takes one that may not be read for one that is not there.
"""

import errno
import stat
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors of any device; the file has the mode that the umask gives.

    Raises:
        OSError: the file cannot be written.
    """
    path.touch()
    mode = stat.S_IMODE(path.stat().st_mode)
    try:
        save_file(
            {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path
        )
    except SafetensorError as error:
        raise OSError(errno.EIO, str(error), str(path)) from None
    path.chmod(mode)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read tensors.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is damaged.
    """
    with path.open("rb"):  # says why it cannot be read
        pass
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(str(error)) from None
