"""The first weights of a run: drawn at random, or taken from a wide network that was trained before."""

import logging
from pathlib import Path

from distbranch.config import Config
from distbranch.engine.artifact import load_model
from distbranch.engine.run_directory import RunDirectory
from distbranch.errors import UserError
from distbranch.models.backbones import Architecture
from distbranch.models.pretrained import HOW_TO_GET, WideNetwork, read_weights, wide_network
from distbranch.models.thin_init import check_fits, thin_beginning
from distbranch.models.tree_net import TreeNet

logger = logging.getLogger("distbranch")


def check_beginning(config: Config, architecture: Architecture) -> None:
    """Whether the pretrained network that a run begins from is there and fits; nothing else is read of a large file.

    Raises:
        UserError: see `pretrained_network`; or it is of another backbone or too narrow.
    """
    if config.method.init != "random":
        check_fits(pretrained_network(config), architecture)


def pretrained_network(config: Config) -> WideNetwork:
    """The network that `method.pretrained` names: a VGG-16 weights file, or the directory of a finished run.

    Raises:
        UserError: absent, damaged, not finished, no such network, or trained on pixels of another scale.
    """
    path = Path(str(config.method.pretrained))
    if not path.exists():
        raise UserError(f"method.pretrained={path} does not exist. {HOW_TO_GET}")
    if not path.is_dir():
        return read_weights(path, bgr=config.method.pretrained_channels == "bgr")
    if not RunDirectory(path).result.exists():
        raise UserError(f"method.pretrained={path} should be a finished run, found none. Train it to its end first.")
    network, preprocessing = load_model(path)
    for key in ("mean", "std"):
        theirs, own = getattr(preprocessing, key), getattr(config.data, key)
        if theirs != own:
            raise UserError(
                f"The pretrained run {path} was trained with data.{key}={list(theirs)}, this one with {list(own)}. Give the same."
            )
    return wide_network(network, str(path))


def begin_from_pretrained(network: TreeNet, config: Config) -> None:
    """Overwrite the hidden layers of a thin network by filters of the pretrained one; says once what had to be filled in."""
    method = config.method
    assert method.init != "random"
    beginning = thin_beginning(pretrained_network(config), network.architecture, method.init, seed=config.seed)
    if beginning.warning:
        logger.warning("%s", beginning.warning)
    network.load_state_dict(network.state_dict() | beginning.state)
