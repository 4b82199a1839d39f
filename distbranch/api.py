"""The Python interface: `distbranch.train` and `distbranch.load`."""

from pathlib import Path

from distbranch.engine.artifact import load_model
from distbranch.launch import train
from distbranch.models.networks import Network

__all__ = ["load", "train"]


def load(run_directory: Path | str) -> Network:
    """The network of a run, in eval mode: `net(images [B, 3, H, W])` gives {task name: logits}.

    uint8 images are normalised by the network; float images are taken as normalised already.

    Raises:
        UserError: no run there, or its model is damaged.
    """
    network, _ = load_model(Path(run_directory))
    return network
