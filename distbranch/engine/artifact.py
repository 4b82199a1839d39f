"""The trained network as two files, `model.safetensors` and `model.json`: all that is needed to predict, and no pickle."""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor

from distbranch.config import load_config
from distbranch.config.reading import locate_named_plugins, read_yaml
from distbranch.engine.checkpoint import AVERAGE, load_newest
from distbranch.engine.run_directory import RunDirectory, write_json
from distbranch.errors import UserError
from distbranch.models.architecture import VERSION, Architecture
from distbranch.models.earlier_runs import is_earlier, rename_earlier
from distbranch.models.network import Network
from distbranch.permissions import explain_damage
from distbranch.plugins import load_plugins
from distbranch.tensor_files import load_tensors, save_tensors

logger = logging.getLogger("distbranch")

WEIGHTS, DESCRIPTION = "model.safetensors", "model.json"
THRESHOLDS = "thresholds"  # in the description, once they were chosen: {task: {"threshold", ...}}


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the network's input: decoder, size (height, width) in pixels, mean and std of values in 0..1.

    `bits`: how many bits images of 16 bits use, as it was said when the training images were packed.
    """

    decoder: str
    image_size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    bits: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Preprocessing":
        """The inverse of `to_json`."""
        return TypeAdapter(cls).validate_python(data)

    def normalise_images(self, images: Tensor) -> Tensor:
        """Images uint8 [B, 3, H, W] as the floats that a network without normalisation of its own takes."""
        mean = torch.tensor(self.mean, dtype=torch.float32).view(3, 1, 1)
        std = torch.tensor(self.std, dtype=torch.float32).view(3, 1, 1)
        return (images.float() / 255 - mean) / std


def save_model(folder: Path, network: Network, preprocessing: Preprocessing) -> None:
    """Write the artifact of a network; the description last, so that half an artifact is never taken for one."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / DESCRIPTION).unlink(missing_ok=True)
    (folder / WEIGHTS).unlink(missing_ok=True)  # it may be linked from the folder of another run
    save_tensors(folder / WEIGHTS, network.state_dict())
    description = {
        "format": "distbranch-model",
        "version": VERSION,
        "architecture": network.architecture.to_json(),
        "preprocessing": preprocessing.to_json(),
    }
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=1) + "\n")


def load_model(run_directory: Path) -> tuple[Network, Preprocessing]:
    """The network of a finished run, or of the newest good checkpoint of an unfinished one (with a warning), in eval mode.

    Delta branches are folded: every branch has its whole weights, as a run of copies has.

    Raises:
        UserError: no run there, or neither an artifact nor a checkpoint that can be read.
    """
    folder = run_directory / "model"
    # A path with a typo is not a damaged model.
    if not run_directory.is_dir():
        raise UserError(
            f"There is no run directory {run_directory}. Give the folder that `distbranch train` made."
        )
    _load_plugins_of(RunDirectory(run_directory))
    advice = "Run the training command again to write it anew."
    with explain_damage(f"The model of {run_directory} is damaged", advice):
        if (folder / DESCRIPTION).exists():  # it is written last
            description = json.loads((folder / DESCRIPTION).read_text())
            weights = load_tensors(folder / WEIGHTS)
        else:
            description, weights = _load_from_checkpoint(run_directory)
        preprocessing = Preprocessing.from_json(description["preprocessing"])
        design = description["architecture"]
        if is_earlier(design):
            design, weights = rename_earlier(design, weights)
        network = Network(Architecture.from_json(design), preprocessing.mean, preprocessing.std)
        network.load_state_dict(weights)
        network = network.folded().eval()
        network.thresholds = description.get(THRESHOLDS)
        for chosen in (network.thresholds or {}).values():
            float(chosen["threshold"])  # that it is damaged is told here and not where it is used
    return network, preprocessing


def save_thresholds(run_directory: Path, thresholds: Mapping[str, Mapping[str, Any]]) -> None:
    """Keep with the model of a finished run from which probability on a binary task is answered with yes."""
    file = run_directory / "model" / DESCRIPTION
    description = json.loads(file.read_text())
    write_json(file, description | {THRESHOLDS: dict(thresholds)})


def _load_plugins_of(files: RunDirectory) -> None:
    """Those of config.yaml, which bring what the network and its tasks are made of."""
    if files.config.exists():
        named = read_yaml(files.config).get("plugins")
        load_plugins(locate_named_plugins(named, files.path.absolute()) or ())


def _load_from_checkpoint(run_directory: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Description and weights of the newest good checkpoint."""
    checkpoint = load_newest(run_directory / "checkpoints")
    if checkpoint is None:
        raise UserError(
            f"The run {run_directory} holds neither a model nor a checkpoint. Train it first."
        )
    step = checkpoint.state["progress"]["iteration"]
    last = load_config(RunDirectory(run_directory).config).train.iterations
    logger.warning(
        f"The run {run_directory} has not finished: these are the weights of step {step:,} of {last:,}."
    )
    averaged = checkpoint.tensors.get(AVERAGE, {})
    return dict(checkpoint.state), {**checkpoint.tensors["model"], **averaged}
