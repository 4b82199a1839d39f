"""The Python interface: `distbranch.train` and `distbranch.load`."""

from pathlib import Path

from distbranch.config.places import is_remote
from distbranch.engine.artifact import load_model
from distbranch.engine.mirror import copy_to_read
from distbranch.launch import train
from distbranch.models.networks import Network

__all__ = ["load", "train"]


def load(run_directory: Path | str) -> Network:
    """The network of a run (a folder or a URL), in eval mode: `net(images [B, 3, H, W])` gives {task name: logits}.

    uint8 images are normalised by the network; float images are taken as normalised already.

    Raises:
        UserError: no run there, or its model is damaged.
    """
    place = str(run_directory)
    network, _ = load_model(copy_to_read(place) if is_remote(place) else Path(place))
    return network
