"""The configuration: files, overrides, what makes another run, and the description of every key."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from distbranch.config import Config, describe_keys, differences, load_config, to_yaml
from distbranch.config.sweep import load_sweep
from distbranch.errors import UsageError
from distbranch.sweep.plan import load_base_config


def config_file(folder: Path, text: str) -> Path:
    file = folder / "mine.yaml"
    file.write_text(text)
    return file


@pytest.mark.parametrize(
    ("text", "value"),
    [("2e-3", 0.002), ("1E-4", 0.0001), ("3.e-2", 0.03), ("+5e0", 5.0), ("0.25", 0.25), ("1", 1.0)],
)
def test_numbers_with_exponents_are_numbers_in_files_and_in_overrides(
    tmp_path: Path, text: str, value: float
) -> None:
    assert load_config(config_file(tmp_path, f"optim: {{lr: {text}}}")).optim.lr == value
    assert load_config({}, [f"optim.lr={text}"]).optim.lr == value


def test_whole_numbers_may_be_written_with_an_exponent(tmp_path: Path) -> None:
    assert load_config(config_file(tmp_path, "train: {iterations: 4e3}")).train.iterations == 4000


def test_numbers_with_exponents_are_read_inside_lists() -> None:
    assert load_config({}, ["data.std=[1e-1, 2e-1, 3e-1]"]).data.std == (0.1, 0.2, 0.3)


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("method.alpha=2", "alpha", 2.0),
        ("method.max_branches=auto", "max_branches", "auto"),
        ("method.max_branches=3", "max_branches", 3),
        ("method.max_branches=", "max_branches", None),
        ("method.affinity=phi", "affinity", "phi"),
    ],
)
def test_overrides_are_read_as_yaml(override: str, key: str, value: object) -> None:
    assert getattr(load_config({}, [override]).method, key) == value


def test_later_overrides_win_over_earlier_ones_and_over_the_file(tmp_path: Path) -> None:
    file = config_file(tmp_path, "seed: 1\nmodel: {width: 8, backbone: vgg9}")
    config = load_config(file, ["seed=2", "seed=3", "model.width=16"])
    assert (config.seed, config.model.width, config.model.backbone) == (3, 16, "vgg9")


def test_a_merged_key_may_be_said_again_and_an_own_one_may_not(tmp_path: Path) -> None:
    file = config_file(tmp_path, "model: &one {<<: {width: 8, backbone: vgg9}, width: 4}")
    assert load_config(file).model.width == 4
    with pytest.raises(UsageError, match=r"the key 'width' stands twice.* line 1, column 19"):
        load_config(config_file(tmp_path, "model: {width: 8, width: 4}"))


def test_overrides_may_be_a_mapping_of_values() -> None:
    assert load_config({}, {"optim.lr": 0.5, "model.width": None}).model.width is None


def test_a_run_is_called_like_its_file_unless_it_has_a_name(tmp_path: Path) -> None:
    assert load_config(config_file(tmp_path, "seed: 1")).run.name == "mine"
    assert load_config(config_file(tmp_path, "run: {name: other}")).run.name == "other"


def test_an_empty_file_is_the_default_configuration(tmp_path: Path) -> None:
    assert load_config(config_file(tmp_path, ""), ["run.name="]) == Config()


def test_a_configuration_comes_back_from_its_yaml(tmp_path: Path) -> None:
    config = load_config(
        {}, ["optim.lr=1e-5", "data.image_size=[48,32]", "run.name=x", "method.max_branches=4"]
    )
    assert load_config(config_file(tmp_path, to_yaml(config))) == config


def test_names_that_look_like_numbers_are_names_again_in_its_yaml(tmp_path: Path) -> None:
    (tmp_path / "2e3.yaml").write_text("method: {name: fixed, groups: {conv1_1: [['1e5', x]]}}")
    config = load_config(tmp_path / "2e3.yaml")
    assert config.run.name == "2e3"
    assert config.method.groups == {"conv1_1": [["1e5", "x"]]}
    assert load_config(config_file(tmp_path, to_yaml(config))) == config


def test_the_given_mapping_is_not_changed() -> None:
    given = {"optim": {"lr": 0.1}}
    load_config(given, ["optim.lr=0.2", "seed=3"])
    assert given == {"optim": {"lr": 0.1}}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"optm": {}}, ["optm", "optim"]),
        ({"lr": 0.1}, ["lr", "optim.lr"]),
        ({"optim": {"learning_rate": 1}}, ["optim.learning_rate"]),
        ({"train": {"alpha": 1}}, ["train.alpha", "method.alpha"]),
    ],
)
def test_unknown_keys_are_refused_with_the_nearest_ones(
    given: Mapping[str, Any], words: list[str]
) -> None:
    with pytest.raises(UsageError) as refused:
        load_config(given)
    assert all(word in str(refused.value) for word in words), str(refused.value)


def test_all_unknown_keys_and_values_out_of_range_are_told_at_once() -> None:
    with pytest.raises(UsageError) as refused:
        load_config({"optm": {}, "model": {"with": 3}, "train": None}, ["optim.lr=-1"])
    for words in (
        "optm: this key is unknown",
        "did you mean model.width",
        "train: should hold",
        "optim.lr: ",
    ):
        assert words in str(refused.value)


RESIDUAL = ["model.backbone=resnet18", "method.name=adashare"]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["model.backbone=vgg19"], "there is no backbone 'vgg19'; the nearest are vgg9, vgg16"),
        (["model.backbone=convnext_atto"], "if it is a model of timm, write timm:convnext_atto"),
        (["model.backbone='timm:'"], "if it is a model of timm, write timm:NAME"),
        (["model.backbone=timm:resnet18", "model.width=32"], "should be empty, found width=32"),
        (["model.backbone=timm:resnet18", "model.widths=[2]"], "should be empty, found widths=[2]"),
        (
            ["model.backbone=timm:resnet18", "model.width_fraction=0.5"],
            "should be empty, found width_fraction=0.5",
        ),
        (
            ["model.arguments={depths: [1]}"],
            "a model of timm (backbone=timm:NAME), found backbone=vgg16",
        ),
        (["model.output_stride=8"], "output_stride=8 is that of a ResNet, found backbone=vgg16"),
        (
            ["model.backbone=timm:resnet18", "model.output_stride=8"],
            "many models of timm take it as model.arguments={output_stride: 8}",
        ),
        (["model.backbone=resnet18", "model.output_stride=4"], "model.output_stride"),
        (["model.pretrained=a.pth"], "vgg16 begins from method.pretrained with method.init=somp"),
        (
            ["model.backbone=resnet50", "model.pretrained=a.pth"],
            "needs resnet50 at its full width, found width 32",
        ),
        (
            ["model.backbone=timm:resnet18", "method.name=low-rank", "method.pretrained=x"],
            "for model.backbone=vgg16, found timm:resnet18",
        ),
        (
            [
                "model.backbone=resnet18",
                "method.name=fixed",
                "method.init=somp",
                "method.pretrained=x",
            ],
            "leave it out, and give weights of the same network in model.pretrained",
        ),
        (
            ["adashare.sparsity=1"],
            "the section adashare is for method.name=adashare, found branching",
        ),
        ([*RESIDUAL, "adashare.policy_number=1"], "give adashare.policy with it"),
        ([*RESIDUAL, "adashare.weights_part=1"], "adashare.weights_part"),
    ],
)
def test_a_method_has_the_backbone_and_the_settings_that_are_its_own(
    overrides: list[str], words: str
) -> None:
    with pytest.raises(UsageError) as refused:
        load_config({}, overrides)
    assert words in str(refused.value)


def test_a_timm_model_has_no_width_and_says_where_its_weights_are() -> None:
    timm = load_config({"model": {"backbone": "timm:convnext_atto", "pretrained": "a.safetensors"}})
    assert (timm.model.width, timm.begins_from) == (None, {"model.pretrained": "a.safetensors"})
    assert load_config(timm) == timm
    for place in ("timm", "hf-hub:someone/something"):
        assert load_config(timm, {"model.pretrained": place}).begins_from == {}
    assert load_config({}).model.width == 32


def test_a_full_network_is_told_that_it_has_no_room_for_branches() -> None:
    full = {"model": {"backbone": "resnet18", "width": None}, "train": {"iterations": 5000}}
    assert "it never branches" in load_config(full).ignored[0]
    assert load_config(full, {"method.max_branches": None}).ignored == ()


def test_all_values_out_of_range_are_told_at_once() -> None:
    with pytest.raises(UsageError, match=r"optim\.lr.*method\.decay|method\.decay.*optim\.lr"):
        load_config({"optim": {"lr": -1}, "method": {"decay": 2}})


def test_differences_name_key_old_and_new_value() -> None:
    assert differences(
        load_config({"seed": 1}), load_config({"seed": 2, "method": {"alpha": 3}})
    ) == [
        "method.alpha: 1.0 -> 3.0",
        "seed: 1 -> 2",
    ]


@pytest.mark.parametrize(
    "override",
    [
        "launch.workers=2",
        "run.directory=there",
        "data.workers=3",
        "data.on_bad_sample=skip",
        "train.log_every=7",
    ],
)
def test_a_continued_run_may_change_where_and_how_it_runs(override: str) -> None:
    assert differences(Config(), load_config({}, [override])) == []


def test_every_key_is_described_with_a_help_text() -> None:
    described = {key: meaning for key, _, _, meaning in describe_keys()}
    keys = set()
    for name, part in Config().model_dump().items():
        keys |= {f"{name}.{key}" for key in part} if isinstance(part, dict) else {name}
    assert described.keys() == keys
    assert all(meaning.strip() for meaning in described.values())


def test_every_number_is_described_with_its_range_and_every_choice_with_its_choices() -> None:
    ranges = {key: limits for key, _, limits, _ in describe_keys()}
    assert ranges["method.decay"] == "> 0, < 1"
    assert ranges["optim.name"] == "sgd | adam | adamw"
    assert "auto" in ranges["method.max_branches"]
    numbers = [key for key, default, _, _ in describe_keys() if default.replace(".", "").isdigit()]
    assert [key for key in numbers if not ranges[key]] == []


CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))


@pytest.mark.parametrize(
    "file", [file for file in CONFIGS if not file.stem.startswith("sweep-")], ids=lambda f: f.stem
)
def test_the_configs_of_the_project_are_valid_and_have_a_curve(file: Path) -> None:
    config = load_config(file)
    assert config.run.name == file.stem
    assert 0 < config.train.evaluate_every <= config.train.iterations / 10


def write_chain(folder: Path) -> Path:
    """Three configs, of which each changes the one before; the last one's file."""
    (folder / "thin").mkdir()
    (folder / "thin/first.yaml").write_text(
        "run: {name: mine, directory: there}\nmodel: {width: 8, backbone: vgg9}\noptim: {lr: 0.1}\n"
        "data: {flip: true, pack: {source: csv}}\n"
    )
    (folder / "second.yaml").write_text(
        "base: thin/first.yaml\nmodel: {width: 16}\ndata: {pack: {source: rendered-faces}}\n"
    )
    last = folder / "last.yaml"
    last.write_text("base: second.yaml\nseed: 7\nmethod: {name: fixed}\noptim: {lr: 0.3}\n")
    return last


def test_a_config_with_bases_resolves_as_the_flat_one(tmp_path: Path) -> None:
    flat = tmp_path / "flat.yaml"
    flat.write_text(
        "seed: 7\nrun: {name: last, directory: there}\nmodel: {width: 16, backbone: vgg9}\nmethod: {name: fixed}\n"
        "optim: {lr: 0.3}\ndata: {flip: true, pack: {source: rendered-faces}}\n"
    )
    based = load_config(write_chain(tmp_path))
    assert based == load_config(flat)
    assert to_yaml(based) == to_yaml(load_config(flat))
    assert "base" not in to_yaml(based)
    assert load_config(tmp_path / "last.yaml", ["model.width=4", "run.name=other"]).model.width == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base: thin/first.yaml\nbase: other.yaml", "the key 'base' stands twice"),
        ("base: 3", "`base` should be the config file of a run, relative to this file, found 3"),
        ("base: absent.yaml", r"absent.yaml does not exist. There are: .*last.yaml"),
        ("base: last.yaml", r"last.yaml is reached again by its own `base`"),
        ("base: second.yaml", r"second.yaml is reached again by its own `base`"),
        ("base: sweep.yaml", r"sweep.yaml is the file of a sweep, for it has seeds"),
        ("base: $NO_SUCH_FOLDER/a.yaml", r"base: .*\$NO_SUCH_FOLDER"),
        (
            "base: thin/first.yaml\nmodel: {with: 3}",
            r"model.with: this key is unknown, did you mean model.width",
        ),
        (
            "train: {interval: 3}",
            r"train.interval: this key is unknown, did you mean train.iterations",
        ),
    ],
)
def test_a_base_that_cannot_be_read_is_refused_in_one_sentence(
    tmp_path: Path, text: str, message: str
) -> None:
    last = write_chain(tmp_path)
    (tmp_path / "sweep.yaml").write_text("base: last.yaml\nseeds: [0, 1]\n")
    (tmp_path / "second.yaml").write_text(text)
    with pytest.raises(UsageError, match=message):
        load_config(last)


def test_a_sweep_takes_a_config_with_bases_and_a_run_with_a_base_is_no_sweep(
    tmp_path: Path,
) -> None:
    last = write_chain(tmp_path)
    (tmp_path / "sweep.yaml").write_text(
        "base: last.yaml\nseeds: [0, 1]\noverrides: {data.path: data}\n"
    )
    assert load_base_config(load_sweep(tmp_path / "sweep.yaml")).model.width == 16
    with pytest.raises(
        UsageError, match=r"last.yaml is the config of a run: use `distbranch train"
    ):
        load_sweep(last)


FIXED = {"method": {"name": "fixed"}}
NEVER = {"train": {"iterations": 50}, "method": {"round_iterations": 100}}
SEARCHED = {
    "model": {"backbone": "resnet18"},
    "method": {"name": "adashare"},
    "adashare": {"policy": "search"},
}


@pytest.mark.parametrize(
    ("base", "override", "is_read"),
    [
        (FIXED, "method.alpha=9", False),
        (FIXED, "method.affinity=phi", False),
        (FIXED, "method.first_decision=7", False),
        (FIXED, "optim.when_widened=continue", False),
        (FIXED, "method.birth=fresh", False),
        ({}, "method.birth=fresh", True),
        ({}, "optim.inherited_steps=9", False),
        ({"optim": {"name": "adam"}}, "optim.inherited_steps=9", True),
        (FIXED, "optim.decay_every=7", True),
        (FIXED, "optim.lr=0.5", True),
        ({"method": {"name": "independent"}}, "method.max_branches=2", False),
        ({}, "method.alpha=9", True),
        ({}, "method.decay=0.5", True),
        ({}, "method.pretrained_channels=bgr", False),
        ({"method": {"init": "somp", "pretrained": "a.pth"}}, "method.pretrained_channels=bgr", True),
        (NEVER, "method.alpha=9", False),
        (NEVER, "method.branches=delta", False),
        ({}, "method.branches=delta", True),
        ({}, "method.delta_rank=3", False),
        ({"method": {"branches": "delta"}}, "method.delta_rank=3", True),
        (NEVER, "method.round_iterations=200", False),
        (NEVER, "method.round_iterations=20", True),
        ({"optim": {"schedule": "cosine"}}, "optim.decay_factor=0.5", False),
        ({"optim": {"schedule": "cosine"}}, "optim.schedule=step", True),
        (SEARCHED, "adashare.weights_part=0.5", False),
        (SEARCHED, "adashare.policy_number=1", True),
        ({**SEARCHED, "adashare": {}}, "adashare.weights_part=0.5", True),
    ],
)  # fmt: skip
def test_a_setting_makes_another_run_only_if_one_of_the_two_reads_it(
    base: dict[str, Any], override: str, is_read: bool
) -> None:
    old = load_config(base)
    assert bool(differences(old, load_config(old, [override]))) == is_read
