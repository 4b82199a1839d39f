"""Packages that an installation may lack, for each of which an extra is there."""

import importlib
from importlib.metadata import version
from typing import Any

from distbranch.errors import UserError, reason_of


def require(module: str, extra: str, purpose: str) -> Any:
    """A module of such a package, imported.

    Args:
        module: such as `onnx` or `torchvision.transforms.v2.functional`.
        extra: of distbranch, that brings the package.
        purpose: what needs it, as a sentence begins, such as `data.augment`.

    Raises:
        UserError: the package is not installed, or it or what it needs was built for another torch.
    """
    package = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ImportError:
        raise UserError(
            f"{purpose} needs the package {package}, which is not installed. Install it: pip install 'distbranch[{extra}]'."
        ) from None
    except (RuntimeError, AttributeError) as error:  # of a torchvision for another torch
        raise UserError(
            f"{purpose} needs the package {package}, which cannot be loaded with torch {version('torch')} ({reason_of(error)[:200]}). "
            "Install the torchvision that belongs to this torch."
        ) from None
