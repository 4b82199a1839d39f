"""Every baseline is a run like any other: trained, interrupted, loaded, exported and reported by the same commands."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import config_of, train_tiny, without_times
from tiny_world import assert_one_sentence, run_command

import distbranch
from distbranch.branching.tree import Tree
from distbranch.config import Config, load_config
from distbranch.data.shards import read_dataset
from distbranch.engine.initialisation import first_architecture, read_own_tree
from distbranch.engine.run_directory import RunDirectory, write_json
from distbranch.engine.run_start import begin_run
from distbranch.errors import UsageError, UserError
from distbranch.launch.dry_run import plan_run
from distbranch.launch.scaling import Link
from distbranch.models.architecture import Architecture, num_parameters, num_weights
from distbranch.models.network import Network
from distbranch.models.thin_init import thin_beginning
from distbranch.report.page import report_run
from distbranch.tasks import Task

SHORT = {"train.iterations": 6, "train.checkpoint_every": 3, "train.evaluate_every": 0}
VGG = SHORT | {"model.backbone": "vgg16", "model.width": 12}
TASKS = (*(f"cell-{number}" for number in range(7)), "kind")
GROUPS = {
    "fc6": [["kind"], ["cell-0", "cell-1", "cell-2"], ["cell-3", "cell-4", "cell-5", "cell-6"]]
}


def result_of(run: Path) -> dict[str, object]:
    content: dict[str, object] = json.loads((run / "result.json").read_text())
    return content


def tree_of(run: Path) -> Tree:
    return Tree.from_json(json.loads((run / "tree.json").read_text())["tree"])


def trained(data: Path, folder: Path, **changes: object) -> Path:
    ended = train_tiny(config_of(data, folder, **changes))
    assert ended["end"] == "done", ended
    return folder / "tiny"


@pytest.fixture(scope="module")
def grown_run(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose two top layers have branched."""
    changes = SHORT | {
        "method.round_iterations": 2,
        "method.max_branches": 3,
        "train.iterations": 6,
    }
    run = trained(tiny_data, tmp_path_factory.mktemp("grown"), **changes)
    assert len(tree_of(run).splits) >= 2
    return run


@pytest.fixture(scope="module")
def wide_run(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tiny_data, tmp_path_factory.mktemp("wide"), **VGG, **{"method.name": "fixed"})


@pytest.fixture(scope="module")
def low_rank_run(tiny_data: Path, wide_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("low-rank")
    return trained(
        tiny_data, folder, **VGG, **{"method.name": "low-rank", "method.pretrained": str(wide_run)}
    )


def interrupted(run: Path) -> None:
    """The run as it was after its first checkpoint."""
    (run / "result.json").unlink()
    shutil.rmtree(run / "model")
    for checkpoint in sorted((run / "checkpoints").glob("step-*"))[1:]:
        shutil.rmtree(checkpoint)


# ---- the tree that a run begins with


def test_independent_networks_are_as_many_thin_ones(tiny_data: Path, tmp_path: Path) -> None:
    run = trained(tiny_data, tmp_path, **SHORT, **{"method.name": "independent"})
    result, info = result_of(run), read_dataset(str(tiny_data))
    alone = [Architecture.thin("vgg9", 2, info.image_size, (task,)) for task in info.tasks]
    assert result["weights"] == sum(map(num_weights, alone))
    assert result["parameters"] == sum(map(num_parameters, alone))
    network = distbranch.load(run)
    assert {len(network.copies(name)) for name in network.routing.units} == {len(TASKS)}
    first = load_file(run / "checkpoints" / "step-00000003" / "model.safetensors")
    assert not torch.equal(
        first["units.conv1.0.product.weight"], first["units.conv1.1.product.weight"]
    )


@pytest.mark.parametrize("how", ["mapping", "run", "file"])
def test_a_given_tree_is_kept(how: str, grown_run: Path, tiny_data: Path, tmp_path: Path) -> None:
    given = {"mapping": GROUPS, "run": str(grown_run), "file": str(grown_run / "tree.json")}[how]
    run = trained(tiny_data, tmp_path, **SHORT, **{"method.name": "fixed", "method.groups": given})
    expected = (
        ((7,), (0, 1, 2), (3, 4, 5, 6)) if how == "mapping" else tree_of(grown_run).branches(8)
    )
    assert tree_of(run).branches(8) == expected
    if how != "mapping":
        assert tree_of(run) == tree_of(grown_run)
    assert not (run / "decisions.jsonl").exists()


def first_tree(data: Path, folder: Path, **changes: object) -> Tree:
    config = load_config(config_of(data, folder, **{"method.name": "fixed"}, **changes))
    return first_architecture(config, read_dataset(str(data))).tree


def test_a_permuted_tree_has_the_shape_of_the_given_one_and_other_tasks(
    grown_run: Path, tiny_data: Path
) -> None:
    given, absent = {"method.groups": str(grown_run)}, Path("absent")
    original = first_tree(tiny_data, absent, **given)
    permuted = [
        first_tree(tiny_data, absent, **given, **{"method.permutation": seed}) for seed in (0, 0, 1)
    ]
    assert permuted[0] == permuted[1] != permuted[2]
    assert original not in permuted
    for tree in permuted:
        for layer in range(1, 9):
            assert [len(branch) for branch in tree.branches(layer)] == [
                len(b) for b in original.branches(layer)
            ]


def test_a_run_with_a_given_tree_resumes_without_the_run_it_is_from(
    grown_run: Path, tiny_data: Path, tmp_path: Path
) -> None:
    changes = SHORT | {
        "method.name": "fixed",
        "method.groups": str(tmp_path / "link"),
        "method.permutation": 3,
    }
    (tmp_path / "link").symlink_to(grown_run)
    undisturbed = trained(tiny_data, tmp_path / "undisturbed", **changes)
    run = trained(tiny_data, tmp_path, **changes)
    (tmp_path / "link").unlink()
    interrupted(run)
    assert trained(tiny_data, tmp_path, **changes) == run
    shutil.rmtree(run / "checkpoints")  # not even a checkpoint was written
    interrupted_before = read_own_tree(load_config(config_of(tiny_data, tmp_path, **changes)))
    assert interrupted_before == tree_of(undisturbed)
    assert tree_of(run) == tree_of(undisturbed)
    other = train_tiny(config_of(tiny_data, tmp_path, **changes, **{"run.name": "other"}))
    assert "link does not exist" in other["message"]


def test_the_tree_of_a_start_that_came_to_nothing_is_kept_for_the_same_configuration_only(
    grown_run: Path, tiny_data: Path, tmp_path: Path
) -> None:
    vain = load_config(config_of(tiny_data, tmp_path, **VGG, **{"method.name": "independent"}))
    files, tree = (
        RunDirectory(vain.run_directory),
        first_architecture(vain, read_dataset(str(tiny_data))).tree,
    )
    begin_run(vain)
    write_json(files.tree, {"tree": tree.to_json()})
    assert read_own_tree(vain) == tree
    assert first_tree(tiny_data, tmp_path, **{"method.groups": str(grown_run)}) == tree_of(
        grown_run
    )


def test_filters_of_a_wide_run_begin_every_branch_of_a_given_tree(
    tiny_data: Path, tmp_path: Path
) -> None:
    wide = trained(
        tiny_data, tmp_path / "wide", **SHORT, **{"method.name": "fixed", "model.width": 6}
    )
    changes = {
        "method.name": "independent",
        "method.init": "largest-norm",
        "method.pretrained": str(wide),
    }
    still = {"optim.lr": 1e-12, "train.iterations": 2, "train.evaluate_every": 0}
    found = load_file(
        trained(tiny_data, tmp_path, **still, **changes) / "model" / "model.safetensors"
    )
    network = distbranch.load(wide)
    from distbranch.models.pretrained import wide_network

    thin = Architecture.thin("vgg9", 2, network.architecture.image_size, network.tasks.tasks)
    expected = thin_beginning(wide_network(network, "wide"), thin, "largest-norm").state
    for branch in range(len(TASKS)):
        torch.testing.assert_close(
            found[f"units.conv3_1.{branch}.product.weight"],
            expected["units.conv3_1.0.product.weight"],
        )


# ---- a fraction of the width


def test_a_fraction_of_the_width_is_in_eights_and_its_filters_begin_a_thin_run(
    tiny_data: Path, tmp_path: Path
) -> None:
    changes = SHORT | {"method.name": "fixed", "model.width": None, "model.width_fraction": 0.05}
    wide = trained(tiny_data, tmp_path / "wide", **changes)
    network = distbranch.load(wide)
    assert tuple(spec.width for spec in network.architecture.specs) == (
        8,
        8,
        16,
        16,
        24,
        24,
        24,
        24,
    )
    assert (
        sum(parameter.numel() for parameter in network.parameters())
        == result_of(wide)["parameters"]
    )
    thin = {"method.name": "fixed", "method.init": "somp", "method.pretrained": str(wide)}
    assert (
        distbranch.load(trained(tiny_data, tmp_path, **SHORT, **thin)).architecture.backbone.width
        == 2
    )
    told = dict(
        plan_run(load_config(config_of(tiny_data, tmp_path / "dry", **changes)), Link()).lines
    )
    assert "0.05 of the full width" in told["network"]


def test_a_run_of_uneven_widths_says_them_in_its_files_and_on_its_page(
    tiny_data: Path, tmp_path: Path
) -> None:
    widths = [2, 2, 2, 3, 3, 3, 6, 7]
    changes = SHORT | {"method.name": "fixed", "model.width": None, "model.widths": widths}
    run = trained(tiny_data, tmp_path, **changes)
    network = distbranch.load(run)
    assert [spec.width for spec in network.architecture.specs] == widths
    assert num_weights(network.architecture) == result_of(run)["weights"]
    assert result_of(run)["widths"] == widths
    config = load_config(run / "config.yaml")
    assert config.model.width_text == "widths 3 x 2, 3 x 3, 1 x 6, 1 x 7"
    assert config.model.width_text in report_run(run).read_text(encoding="utf-8")
    told = dict(plan_run(config, Link()).lines)
    assert config.model.width_text in told["network"]


def read_tasks() -> tuple[Task, ...]:
    return tuple(Task(name) for name in TASKS)


# ---- low rank


def test_a_low_rank_run_begins_with_the_logits_of_its_wide_run_where_the_rank_suffices(
    tiny_data: Path, tmp_path: Path
) -> None:
    narrow = VGG | {"model.width": 4}  # 4 filters of at most 8 in a basis
    wide = trained(tiny_data, tmp_path / "wide", **narrow, **{"method.name": "fixed"})
    still = narrow | {"optim.lr": 1e-12, "train.iterations": 1}
    run = trained(
        tiny_data, tmp_path, **still, **{"method.name": "low-rank", "method.pretrained": str(wide)}
    )
    factors = load_file(run / "model" / "model.safetensors")
    expected = load_file(wide / "model" / "model.safetensors")
    for name in ("conv1_2", "conv4_1"):
        product = torch.einsum(
            "dk,kcyx->dcyx",
            factors[f"units.{name}.0.product.combination.weight"].flatten(1),
            factors[f"units.{name}.0.product.basis.weight"],
        )
        torch.testing.assert_close(
            product, expected[f"units.{name}.0.product.weight"], rtol=1e-4, atol=1e-5
        )
    torch.testing.assert_close(
        factors["heads.weight"] @ factors["head_basis.weight"], expected["heads.weight"]
    )


def test_a_low_rank_run_resumes_after_an_interruption_to_the_same_bits(
    low_rank_run: Path, tiny_data: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "tiny"
    shutil.copytree(low_rank_run, copy)
    interrupted(copy)
    pretrained = load_config(low_rank_run / "config.yaml").method.pretrained
    changes = VGG | {"method.name": "low-rank", "method.pretrained": pretrained}
    assert trained(tiny_data, tmp_path, **changes) == copy
    for name in ("model.safetensors", "model.json"):
        assert (copy / "model" / name).read_bytes() == (low_rank_run / "model" / name).read_bytes()
    assert without_times(result_of(copy)) == without_times(result_of(low_rank_run))


def test_a_low_rank_run_is_loaded_counted_evaluated_predicted_and_reported(
    low_rank_run: Path, tiny_data: Path
) -> None:
    network, result = distbranch.load(low_rank_run), result_of(low_rank_run)
    assert sum(parameter.numel() for parameter in network.parameters()) == result["parameters"]
    assert (
        result["weights"]
        == num_weights(network.architecture)
        < num_weights(network.architecture.shared_by(network.tasks.tasks))
    )
    for command in (
        ["evaluate"],
        ["report"],
        ["bench", "latency", "--against", "", "--seconds", "0", "--batch-sizes", "1"],
    ):
        ended = run_command([*command[:2], str(low_rank_run), *command[2:]])
        assert ended.code == 0, ended.err
    config = load_config(low_rank_run / "config.yaml")
    told = dict(plan_run(config, Link()).lines)
    assert "low rank" in told["network"]
    assert f"{result['weights']:,} weights" in told["parameters"]


def test_a_low_rank_run_is_exported_with_all_its_tasks(low_rank_run: Path, tmp_path: Path) -> None:
    ended = run_command(["export", str(low_rank_run), "--out", str(tmp_path / "served")])
    assert ended.code == 0, ended.err  # the file was compared with the network
    part = run_command(
        ["export", str(low_rank_run), "--tasks", "kind", "--out", str(tmp_path / "part")]
    )
    assert_one_sentence(part, 1, ("low-rank", "Leave out --tasks"))


def test_a_low_rank_run_begins_from_a_vgg_file_with_heads_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from distbranch.engine import initialisation
    from distbranch.models.pretrained import WideNetwork, wide_network

    thin = Architecture.thin("vgg16", 4, (32, 32), read_tasks())
    wide = wide_network(Network(thin), "vgg16.pth")
    file = WideNetwork(
        wide.source, wide.backbone, wide.layers, wide.map_size
    )  # a file has no heads of ours
    monkeypatch.setattr(initialisation, "pretrained_network", lambda _: file)
    network = Network(thin.factorised())
    before = {name: value.clone() for name, value in network.state_dict().items()}
    config = load_config({"method": {"name": "low-rank", "pretrained": "vgg16.pth"}})
    initialisation.begin_from_pretrained(network, config)
    changed = {
        name for name, value in network.state_dict().items() if not torch.equal(value, before[name])
    }
    assert "units.conv1_1.0.product.basis.weight" in changed
    assert not {name for name in changed if name.startswith("head")}


# ---- what is refused

Refused = Callable[[Path, Path], dict[str, object]]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            lambda wide, _: {"model.width": 8, "method.pretrained": str(wide)},
            "as wide as the network",
        ),
        (
            lambda _, low_rank: {"method.pretrained": str(low_rank)},
            "it is low-rank. Give the wide one",
        ),
        (
            lambda wide, _: {"method.pretrained": str(wide.parent / "absent")},
            "absent does not exist",
        ),
        (
            lambda wide, _: {"method.pretrained": str(wide / "checkpoints")},
            "should be a finished run",
        ),
    ],
)
def test_a_low_rank_run_that_cannot_begin_says_why(
    changes: Refused,
    words: str,
    wide_run: Path,
    low_rank_run: Path,
    tiny_data: Path,
    tmp_path: Path,
) -> None:
    config = config_of(
        tiny_data, tmp_path, **VGG | {"method.name": "low-rank"} | changes(wide_run, low_rank_run)
    )
    ended = train_tiny(config)
    assert words in ended["message"]
    assert not (tmp_path / "tiny").exists()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"model": {"width": 16, "width_fraction": 0.5}}, "`width`, `width_fraction` and `widths`"),
        ({"model": {"width_fraction": 1.5}}, "model.width_fraction"),
        ({"model": {"width": 8, "widths": [8, 8]}}, "found width=8 and widths=[8, 8]"),
        ({"model": {"widths": [8, 0]}}, "model.widths"),
        ({"method": {"groups": "runs/x"}}, "use method.name=fixed"),
        ({"method": {"name": "fixed", "permutation": 1}}, "give method.groups with it"),
        (
            {"method": {"name": "fixed", "groups": [["a"]]}},
            "method.groups: should be a run directory",
        ),
        (
            {"method": {"name": "fixed", "groups": {"fc7": ["a", "b"]}}},
            "mapping {layer: [[task, ...], ...]}",
        ),
        ({"method": {"name": "low-rank"}}, "begins from a wide network: give method.pretrained"),
        (
            {"method": {"name": "low-rank", "pretrained": "x", "init": "somp"}},
            "method.init should be random",
        ),
        (
            {"method": {"name": "low-rank", "pretrained": "x"}, "model": {"backbone": "vgg9"}},
            "model.backbone=vgg16",
        ),
    ],
)
def test_configurations_of_baselines_that_make_no_sense_are_refused(
    values: dict[str, object], words: str
) -> None:
    with pytest.raises(UsageError) as refused:
        load_config(values)
    assert words in str(refused.value)


def test_a_fraction_stands_alone_and_comes_back_from_its_yaml() -> None:
    config = load_config({"model": {"width_fraction": 0.25}})
    assert (config.model.width, config.model.width_fraction) == (None, 0.25)
    assert load_config(config) == config == Config.model_validate(config.model_dump())


def test_files_without_a_tree_for_the_network_are_refused(
    grown_run: Path, tiny_data: Path, tmp_path: Path
) -> None:
    (tmp_path / "text.json").write_text("{}")
    others = json.loads((grown_run / "tree.json").read_text())
    (tmp_path / "others.json").write_text(json.dumps(others).replace("cell-0", "cell-9"))
    cases = {
        str(tmp_path / "text.json"): "holds no tree",
        str(tmp_path / "others.json"): "'cell-9' 1 times",
        str(tmp_path / "absent"): "does not exist",
        str(tmp_path): "should be a finished run",
    }
    for groups, words in cases.items():
        with pytest.raises(UserError, match=words):
            first_tree(tiny_data, tmp_path, **{"method.groups": groups})
    with pytest.raises(UserError, match=r"layers of model\.backbone=vgg16, but it is of conv1"):
        first_tree(
            tiny_data, tmp_path, **{"method.groups": str(grown_run), "model.backbone": "vgg16"}
        )
