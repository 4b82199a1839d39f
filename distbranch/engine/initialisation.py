"""How a run begins: the tree it starts from, and its first weights, drawn at random or taken from a wide network."""

import json
import logging
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from distbranch.adashare.policy import sample_policy
from distbranch.branching.routing import Policy, share_all_blocks
from distbranch.branching.tree import Tree, build_independent_tree, build_tree_of_groups
from distbranch.config import Config, MethodConfig
from distbranch.config.network import ModelConfig
from distbranch.data.shards import DatasetInfo
from distbranch.engine.artifact import load_model
from distbranch.engine.from_run import begin_from_run, check_colours, read_architecture
from distbranch.engine.run_directory import RunDirectory, get_finished_run, read_lines
from distbranch.engine.run_start import begins_anew
from distbranch.engine.trained_network import TrainedNetwork
from distbranch.errors import UserError
from distbranch.models.architecture import Architecture
from distbranch.models.backbone import BLOCKS, Backbone, freeze_arguments
from distbranch.models.baselines import BASELINES
from distbranch.models.delta import copy_state
from distbranch.models.dense_heads import HEAD_WIDTHS, HeadPlan
from distbranch.models.low_rank import check_same, low_rank_beginning
from distbranch.models.network import Network
from distbranch.models.pretrained import HOW_TO_GET, WideNetwork, read_weights, wide_network
from distbranch.models.thin_init import check_fits, thin_beginning
from distbranch.models.weights_file import match_colours, read_pretrained
from distbranch.permissions import explain_damage

logger = logging.getLogger("distbranch")


def begin_network(net: TrainedNetwork, config: Config, info: DatasetInfo) -> None:
    """Give a run its first network, the same on every rank; all must call it.

    Raises:
        SharedError: what the run begins from is absent, damaged or does not fit.
    """
    # Files that are given need to be seen by rank 0 alone.
    if config.model.from_run is not None:
        return begin_from_run(net, config, info, describe_thin(config, info))
    architecture = net.ranks.run_on_rank_zero(lambda: first_architecture(config, info))
    overwrite = None
    if config.model.pretrained is not None:
        overwrite = partial(begin_from_whole_backbone, place=config.model.pretrained)
    elif config.method.begins_from_pretrained:
        overwrite = partial(begin_from_pretrained, config=config)
    net.begin(architecture, config.seed, overwrite=overwrite)
    return None


def _check_crop(backbone: Backbone, crop: tuple[int, int]) -> None:
    """UserError where a backbone has other weights for images of the size of a crop: it is trained on those and evaluated on whole ones."""
    of_crop = replace(backbone, image_size=crop).specs
    for spec, other in zip(backbone.specs, of_crop, strict=True):
        if spec.weights != other.weights:
            height, width = backbone.image_size
            raise UserError(
                f"data.crop={list(crop)} needs a backbone that takes images of any size, and the weights of {spec.name} of "
                f"{backbone.source} are for {height}x{width} pixels. Leave data.crop empty (data.scale works without), or choose a "
                "resnet."
            )


def first_architecture(config: Config, info: DatasetInfo) -> Architecture:
    """The network that a run begins with: thin, of a tree or a policy that is given, with a branch per task, or low-rank.

    Where a scout decides on the tree it is thin until that is done.

    Raises:
        UserError: `method.groups` names no tree, or `adashare.policy` no policy, for the tasks of the data set; tasks should skip
            units of a backbone in which none can be skipped; or `data.crop` of one whose weights are for one size.
    """
    method = config.method
    thin = describe_thin(config, info)
    find_lowest_layer(method, thin)  # a wrong one is told before anything is trained
    if method.name == "adashare" and not thin.num_blocks:
        raise UserError(
            f"method.name=adashare learns which units tasks skip, and none of model.backbone={config.model.backbone} can be skipped, found "
            "no residual block. Use resnet18, resnet34, resnet50 or a timm model of residual blocks, or method.name=branching."
        )
    if config.model.from_run is not None:
        return _check_grows(config, read_architecture(config, thin))
    if config.searches:
        return replace(thin, searches=True)
    # Where units may be skipped, hard sharing is the policy by which all tasks execute all of them.
    if method.name == "adashare" or (method.keeps_thin and thin.num_blocks):
        return thin.with_policy(_given_policy(config, thin))
    if method.name in BASELINES:
        return thin.with_baseline(method.name)
    if method.name == "independent":
        return thin.with_tree(build_independent_tree(thin.tree.layers, len(info.tasks)))
    if method.groups is not None:
        tree = read_given_tree(config, thin)  # also if it is taken later: a wrong one is told here
        return thin if method.widen_at else thin.with_tree(tree)
    if method.has_scout:
        return thin.with_tree(_decided_tree(config, thin))
    return thin.factorised() if method.name == "low-rank" else thin


def _check_grows(config: Config, begun: Architecture) -> Architecture:
    """Refuse a tree that has no layer left that may divide."""
    if config.method.grows and begun.tree.active_layer < find_lowest_layer(config.method, begun):
        raise UserError(
            f"The tree of model.from_run={config.model.from_run} is divided down to its lowest unit, so nothing can grow. Use "
            "method.name=fixed to train it further."
        )
    return begun


def describe_thin(config: Config, info: DatasetInfo) -> Architecture:
    """The network that the configuration describes, before any branch.

    Raises:
        UserError: `data.crop` of a backbone whose weights are for one size, or dense tasks on one without a map.
    """
    model, method = config.model, config.method
    size = config.data.image_size or info.image_size
    arguments = dict(model.arguments)
    has_maps = any(task.is_dense for task in info.tasks)
    if has_maps and model.is_of_timm:
        arguments.setdefault("global_pool", "")  # which would leave no positions
    backbone = Backbone(
        model.backbone,
        size,
        model.width,
        model.width_fraction,
        model.widths,
        arguments=freeze_arguments(arguments),
        output_stride=model.output_stride,
    )
    if model.pretrained is not None:
        backbone = match_colours(backbone, config.data.mean, config.data.std)
    if config.data.crop is not None:
        _check_crop(backbone, config.data.crop)
    thin = Architecture(
        backbone,
        info.tasks,
        delta_rank=method.rank_between_branches,
        dense_head=_plan_heads(model, has_maps=has_maps),
    )
    _check_delta_rank(thin)
    return thin


def find_lowest_layer(method: MethodConfig, architecture: Architecture) -> int:
    """The lowest layer (from 1) that may get branches.

    Raises:
        UserError: there is no unit of the name in `method.lowest`.
    """
    names = architecture.backbone.names
    if method.lowest is None:
        return 2 if architecture.dense_tasks and architecture.backbone.source in BLOCKS else 1
    if method.lowest not in names:
        raise UserError(
            f"method.lowest should be a unit of model.backbone={architecture.backbone.source}, found {method.lowest}. Its units are "
            f"{', '.join(names)}."
        )
    return names.index(method.lowest) + 1


def _plan_heads(model: ModelConfig, *, has_maps: bool) -> HeadPlan:
    """Those of dense tasks.

    Raises:
        UserError: settings of such heads would have no effect.
    """
    given = [key for key in ("head", "head_width") if getattr(model, key) is not None]
    if given and not has_maps:
        key = given[0]
        raise UserError(
            f"model.{key}={getattr(model, key)} is of the heads of dense tasks (segmentation, depth, normals, heat), and the data have "
            "none. Leave it out."
        )
    name = model.head or "light"
    return HeadPlan(name, model.head_width or HEAD_WIDTHS[name])


def _check_delta_rank(thin: Architecture) -> None:
    """Refuse a rank at which every weight would be copied."""
    if thin.delta_rank is None:
        return
    weights = [weight for spec in thin.specs for weight in spec.weights]
    most = max(weight.largest_delta_rank for weight in weights)
    if thin.delta_rank > most:
        raise UserError(
            f"method.delta_rank={thin.delta_rank} should be at most {most}: differences of a higher rank are no smaller than the weights "
            f"of this {thin.backbone.source}. Give a lower one, or method.branches=copies."
        )


def read_own_tree(config: Config, *, is_later: bool = False) -> Tree | None:
    """The tree as a run that was begun has written it, or the one that it takes later; None before that.

    Raises:
        UserError: the file is damaged.
    """
    files = RunDirectory(config.run_directory)
    file = files.given_tree if is_later else files.tree
    if not file.exists() or begins_anew(config):
        return None
    # It is written anew at the next start, so that it may be removed.
    with explain_damage(f"{file} is damaged", "Remove it and run the same command again."):
        return Tree.from_json(_read_json(file)["tree"])


def read_given_tree(config: Config, thin: Architecture) -> Tree:
    """The tree of a run directory, a tree.json or a mapping; a run that has it needs none of them any longer.

    Args:
        config: its `method.groups` is given.
        thin: the network before any split, for the names of layers and tasks.

    Raises:
        UserError: it is no tree for this network and these tasks.
    """
    groups, source = config.method.groups, "method.groups"
    if isinstance(groups, str):
        tree = read_own_tree(config, is_later=config.method.widen_at is not None)
        if tree is not None:
            return tree
        source += f"={groups}"
        groups = _read_groups(Path(groups), thin)
    assert groups is not None
    names = [task.name for task in thin.tasks]
    try:
        tree = build_tree_of_groups(thin.tree.layers, names, groups)
    except ValueError as error:
        raise UserError(f"{source} is no tree for this network and these tasks: {error}.") from None
    return _permute_tasks(tree, config)


def _decided_tree(config: Config, thin: Architecture) -> Tree:
    """The tree that a scout has decided on; that without branches before it has."""
    files = RunDirectory(config.run_directory)
    advice = "Remove it and run the same command again: the scout decides the same again."
    with explain_damage(f"{files.decisions} is damaged", advice):
        decisions = [] if begins_anew(config) else read_lines(files.decisions)
        if not decisions:
            return thin.tree
        names = [task.name for task in thin.tasks]
        groups = {decision["layer_name"]: decision["tasks"] for decision in decisions}
        tree = build_tree_of_groups(thin.tree.layers, names, groups)
    return _permute_tasks(tree, config)


def _permute_tasks(tree: Tree, config: Config) -> Tree:
    """The tree with its tasks in the order of `method.permutation`, if that is given."""
    if config.method.permutation is None:
        return tree
    return tree.permuted(order_by_number(config.method.permutation, tree.num_tasks))


def order_by_number(number: int, num_tasks: int) -> list[int]:
    """The order of tasks that `method.permutation: number` stands for."""
    return [int(task) for task in np.random.default_rng(number).permutation(num_tasks)]


def _read_groups(path: Path, thin: Architecture) -> dict[str, list[list[str]]]:
    if not path.exists():
        raise UserError(
            f"method.groups={path} does not exist. Give the directory of a finished run, or its tree.json."
        )
    if path.is_dir():
        path = get_finished_run(path, "method.groups").tree
    with explain_damage(
        f"{path} holds no tree", "Give the directory of a finished run, or its tree.json."
    ):
        groups = {layer["name"]: layer["branches"] for layer in _read_json(path)["layers"]}
    # Groups by name fit any set of tasks, but layers of another backbone mean something else.
    if tuple(groups) != thin.tree.layers:
        raise UserError(
            f"The tree in {path} should be of the layers of model.backbone={thin.backbone.source}, but it is of {', '.join(groups)}. "
            "Give one of the same backbone."
        )
    return groups


def _given_policy(config: Config, searched: Architecture) -> Policy:
    """That of a search, most probable or drawn; a run that was begun has its own and does not need the search any longer."""
    if config.adashare.policy is None:
        return share_all_blocks(len(searched.tasks), searched.num_blocks)
    number = config.adashare.policy_number
    files = RunDirectory(config.run_directory)
    if files.policy.exists() and not begins_anew(config):
        number = None
    else:
        files = get_finished_run(Path(config.adashare.policy), "adashare.policy")
    with explain_damage(
        f"{files.policy} holds no policy",
        "Give the directory of a finished search in adashare.policy.",
    ):
        record = _read_json(files.policy)
        names, blocks, executes = record["tasks"], record["blocks"], record["policy"]
        if number is not None:
            executes = sample_policy(
                np.array(record["execute_probability"]), number=number
            ).tolist()
    own = [task.name for task in searched.tasks], list(searched.backbone.blocks)
    if (names, blocks) != own:
        raise UserError(
            f"The policy in {files.policy} should be of the same tasks and of model.backbone={searched.backbone.source}, but it is of "
            f"{len(names)} tasks ({', '.join(names[:3])}, ...) and {len(blocks)} blocks. Give a search of this data set and backbone."
        )
    return tuple(tuple(map(bool, row)) for row in executes)


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def check_pretrained(config: Config, architecture: Architecture) -> None:
    """Whether the pretrained network that a run begins from is there and fits; nothing else is read of a large file.

    Raises:
        UserError: see `pretrained_network`; or it is of another backbone, another width or other tasks.
    """
    if config.model.pretrained_file is not None:
        read_pretrained(architecture.backbone, config.model.pretrained_file)
    if config.method.begins_from_pretrained:
        check = check_same if architecture.backbone.low_rank else check_fits
        check(pretrained_network(config), architecture)


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
    get_finished_run(path, "method.pretrained")
    network, preprocessing = load_model(path)
    check_colours(preprocessing, config.data, f"The pretrained run {path}")
    if network.architecture.backbone.low_rank:
        raise UserError(
            f"method.pretrained={path} should be a wide network, but it is low-rank. Give the wide one it is from."
        )
    if network.architecture.has_policy:
        raise UserError(
            f"method.pretrained={path} should be a run of model.backbone=vgg16, but its network is residual. Give a wide VGG-16."
        )
    return wide_network(network, str(path))


def begin_from_whole_backbone(network: Network, *, place: str) -> None:
    """Overwrite the units of a network that was drawn at random by pretrained ones, every copy by the same; heads stay random."""
    architecture = network.architecture
    shared = architecture.shared_by(architecture.tasks)
    state = copy_state(read_pretrained(architecture.backbone, place), shared, architecture)
    own = network.state_dict()
    # Of a unit that no task executes only the shortcut is there.
    needed = {name: value for name, value in state.items() if name in own}
    network.load_state_dict(own | needed)


def begin_from_pretrained(network: Network, config: Config) -> None:
    """Overwrite the weights of a network that was drawn at random by what it takes of the pretrained one.

    A low-rank network takes factors of every layer; a thin one filters, the same in every branch of a layer. Says once what had
    to be filled in, and which setting has no effect.
    """
    method, wide = config.method, pretrained_network(config)
    if method.pretrained_channels != "rgb" and Path(str(method.pretrained)).is_dir():
        logger.warning(
            "method.pretrained_channels=%s has no effect: it is for a weights file, and a run such as method.pretrained=%s is of RGB.",
            method.pretrained_channels,
            method.pretrained,
        )
    if network.architecture.backbone.low_rank:
        state = low_rank_beginning(wide, network.architecture)
    else:
        assert method.init != "random"
        thin = network.architecture.shared_by(network.architecture.tasks)
        beginning = thin_beginning(wide, thin, method.init, seed=config.seed)
        if beginning.warning:
            logger.warning("%s", beginning.warning)
        state = copy_state(beginning.state, thin, network.architecture)
    network.load_state_dict(network.state_dict() | state)
