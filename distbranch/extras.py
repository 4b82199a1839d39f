"""Packages that an installation may lack, for each of which an extra is there."""

import importlib
from importlib.metadata import version
from importlib.util import find_spec
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
        raise _describe_absent(package, extra, purpose) from None
    except (RuntimeError, AttributeError) as error:  # of a torchvision for another torch
        raise UserError(
            f"{purpose} needs the package {package}, which cannot be loaded with torch {version('torch')} ({reason_of(error)[:200]}). "
            "Install the torchvision that belongs to this torch."
        ) from None


def check_installed(package: str, extra: str, purpose: str) -> None:
    """As `require`, for a package that takes long to import and is needed later.

    Raises:
        UserError: the package is not installed.
    """
    if find_spec(package) is None:
        raise _describe_absent(package, extra, purpose)


def _describe_absent(package: str, extra: str, purpose: str) -> UserError:
    return UserError(
        f"{purpose} needs the package {package}, which is not installed. Install it: pip install 'distbranch[{extra}]'."
    )
