"""Plug-ins: one of each goes through a whole run; what ran is known afterwards; and what is wrong is told in a sentence."""

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from plugin_files import PAGE, make_config, pack_angles, write_page_file
from tiny_runs import assert_same_content, config_of, lines_of, train_tiny
from tiny_world import assert_one_sentence, run_command

from distbranch import plugins
from distbranch.branching.affinity import AFFINITIES, AffinityStats
from distbranch.branching.decision import Decision
from distbranch.config import MethodConfig, load_config
from distbranch.config.names import BUILT_IN
from distbranch.config.sweep import load_sweep
from distbranch.engine.affinities import MEASURED
from distbranch.engine.distributed import Ranks
from distbranch.engine.optimizer_and_schedule import OPTIMISERS
from distbranch.engine.round_decision import DECISIONS, decide_round
from distbranch.engine.run_start import begin_run
from distbranch.engine.session import _read_data_everywhere
from distbranch.errors import UsageError, UserError
from distbranch.launch.on_ray.job import _make_command
from distbranch.losses import LOSSES, choose_losses
from distbranch.models.architecture import Architecture
from distbranch.models.backbone import BACKBONES
from distbranch.registry import Registry, copy_entries, restore_entries
from distbranch.sweep.plan import list_trials
from distbranch.sweep.shared_prefix import group_by_prefix
from distbranch.tasks import Task, TaskSet

AFFINITY = """\
from distbranch.branching.affinity import AFFINITIES


@AFFINITIES.register("{name}")
def compute(sums):
    return (1 + sums.product**3) / 2
"""


MEASURED_KIND = """\
import numpy as np

from distbranch.engine.affinities import MEASURED, MeasuredKind


def sum_products(network, units, images, labels):
    logits = network(images, flat=True).double()
    return {"products": logits.T @ logits}


def correlate(sums):
    lengths = np.sqrt(np.diag(sums["products"]))
    return (1 + sums["products"] / np.outer(lengths, lengths)) / 2


MEASURED.register("same-answers")(MeasuredKind(sum_products, correlate))
"""


def forget_plugins(entries: list[dict[str, Any]]) -> None:
    """What a new process would know."""
    restore_entries(entries)
    plugins._loaded.clear()
    plugins._warn_of_copy.cache_clear()


@pytest.fixture(autouse=True)
def new_process() -> Iterator[Callable[[], None]]:
    """Make this process one that has loaded no plug-in, again at every call and in the end."""
    before = copy_entries()
    yield lambda: forget_plugins(before)
    forget_plugins(before)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the page's file, data, and a finished run of all that the file registers."""
    folder = tmp_path_factory.mktemp("plugins")
    before = copy_entries()
    plugins.load_plugins([str(write_page_file(folder))])
    pack_angles(folder / "data")
    ended = train_tiny(make_config(folder / "data", folder / "runs", folder / "mine.py"))
    assert ended["end"] == "done", ended
    forget_plugins(before)
    return folder


def write_affinity(folder: Path, name: str = "own", file: str = "own.py") -> Path:
    (folder / file).write_text(AFFINITY.format(name=name))
    return folder / file


def hold_training(run: Path) -> None:
    """Else a start of another configuration begins the run anew."""
    (run / "metrics.jsonl").write_text('{"kind": "train"}\n')


# ---- a run of one of each


def test_the_page_has_no_more_than_a_screen_beside_its_file() -> None:
    assert len(PAGE.read_text().splitlines()) < 100


def test_every_plugin_of_the_page_is_what_trained(whole: Path) -> None:
    run = whole / "runs" / "own"
    decisions = lines_of(run / "decisions.jsonl")
    assert [line["affinity_kind"] for line in decisions] == ["cubed", "cubed"]
    assert [line["decided_by"] for line in decisions] == ["halves", "halves"]
    assert [sorted(map(len, line["groups"])) for line in decisions] == [[2, 2], [1, 1]]
    matrices = np.load(run / decisions[0]["affinity_file"])
    expected = (1 + (2 * matrices["agreement"] - 1) ** 3) / 2
    np.testing.assert_allclose(matrices["cubed"], expected, atol=1e-12)

    model = json.loads((run / "model" / "model.json").read_text())["architecture"]
    assert model["backbone"]["source"] == "short"
    result = json.loads((run / "result.json").read_text())
    assert 0 <= result["metrics"]["test"]["tasks"]["angle"]["angle_error"] <= 180
    # A squared error of a probability is below 1, as no cross-entropy of a beginner is over all logged steps.
    losses = [line["task_loss"] for line in lines_of(run / "metrics.jsonl", "train")]
    assert max(max(loss[task] for task in ("up", "left", "dark")) for loss in losses) < 0.5
    assert list(json.loads((run / "environment.json").read_text())["plugins"]) == [
        str(whole / "mine.py")
    ]


def test_a_measured_kind_of_affinity_decides_and_its_sums_are_recorded(
    tmp_path: Path, whole: Path
) -> None:
    values = make_config(whole / "data", tmp_path, whole / "mine.py")
    (tmp_path / "own.py").write_text(MEASURED_KIND)
    values["plugins"].append(str(tmp_path / "own.py"))
    values["method"]["affinity"] = "same-answers"
    assert train_tiny(values)["end"] == "done"
    first = lines_of(tmp_path / "own" / "decisions.jsonl")[0]
    assert first["affinity_kind"] == "same-answers"
    assert first["same-answers"]["num_samples"] == 48
    matrices = np.load(tmp_path / "own" / first["affinity_file"])
    products = matrices["same-answers_of_products"]
    lengths = np.sqrt(np.diag(products))
    similarity = products / np.outer(lengths, lengths)
    np.testing.assert_allclose(matrices["same-answers"], (1 + similarity) / 2, atol=1e-12)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("method.affinity", "phi"),
        ("method.decision", "cost"),
        ("loss.functions", {}),
        ("loss.functions", {"binary": "focal"}),
        ("optim.name", "adam"),
    ],
)
def test_every_choice_makes_another_run(whole: Path, key: str, value: Any) -> None:
    old = load_config(whole / "runs/own/config.yaml")
    new = load_config(old, {key: value})
    with pytest.raises(UserError, match=f"begun with another configuration .{key}"):
        begin_run(new)


def test_a_run_of_plugins_that_was_interrupted_continues_to_the_same_bits(
    whole: Path, tmp_path: Path, new_process: Callable[[], None]
) -> None:
    config = make_config(whole / "data", tmp_path, whole / "mine.py")
    plugins.load_plugins(config["plugins"])

    def stop(event: dict[str, Any]) -> None:
        if event["kind"] == "decision":
            raise RuntimeError("killed")

    from distbranch.launch import train

    with pytest.raises(RuntimeError, match="killed"):
        train(config, report=stop)
    new_process()
    assert train_tiny(config)["end"] == "done"
    assert_same_content(tmp_path / "own", whole / "runs" / "own")


def test_commands_after_training_know_the_plugins_of_the_run(
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    new_process: Callable[[], None],
) -> None:
    monkeypatch.chdir(whole)
    commands = {
        "evaluate runs/own": "angle",
        f"predict runs/own photo.png --format csv --out {tmp_path}/scores.csv": "scores of 1",
        f"report runs/own --out {tmp_path}/own.html": "own.html",
        "--plugin mine.py data check data": "80 samples",
    }
    from PIL import Image

    Image.new("RGB", (40, 40), (90, 30, 200)).save("photo.png")
    for command, words in commands.items():
        new_process()
        ended = run_command(command.split())
        assert ended.code == 0, ended
        assert words in ended.out
    assert (tmp_path / "scores.csv").read_text().startswith("image,up,left,dark,angle")
    new_process()
    assert_one_sentence(
        run_command(["data", "check", "data"]), 1, ("kind of task 'angle'", "--plugin")
    )


# ---- what ran


def test_a_changed_file_is_refused_and_the_copy_says_what_ran(
    whole: Path,
    tmp_path: Path,
    new_process: Callable[[], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    file = write_affinity(tmp_path)
    config = load_config(
        {"plugins": [str(file)], "run": {"name": "run", "directory": str(tmp_path)}}
    )
    begin_run(config)
    hold_training(tmp_path / "run")
    file.write_text(file.read_text().replace("**3", "**5"))
    new_process()
    changed = load_config(
        {"plugins": [str(file)], "run": {"name": "run", "directory": str(tmp_path)}}
    )
    with pytest.raises(UserError, match=r"plugins: .*own.py \(\w{12}\) -> .*own.py \(\w{12}\)"):
        begin_run(changed)

    for words in ("has changed since", "is not there any longer"):
        new_process()
        with caplog.at_level(logging.WARNING, logger="distbranch"):
            kept = load_config(tmp_path / "run" / "config.yaml")
        assert words in caplog.text
        assert kept.plugins == (str(tmp_path / "run/plugins/0-own.py"),)
        begin_run(kept)
        file.unlink(missing_ok=True)

    new_process()
    (tmp_path / "run/plugins/0-own.py").write_text("import os\n")
    with pytest.raises(
        UserError, match=r"own.py, the run's copy .* was changed\. Put the file back"
    ):
        load_config(tmp_path / "run" / "config.yaml")


def test_the_same_plugin_in_another_place_is_the_same_run(
    tmp_path: Path, new_process: Callable[[], None]
) -> None:
    (tmp_path / "there").mkdir()
    files = write_affinity(tmp_path), write_affinity(tmp_path / "there")
    for file in files:
        new_process()
        begin_run(
            load_config({"plugins": str(file), "run": {"name": "run", "directory": str(tmp_path)}})
        )
    hold_training(tmp_path / "run")
    with pytest.raises(UserError, match=r"plugins: .*own.py .* -> none, by sha256"):
        begin_run(load_config({"run": {"name": "run", "directory": str(tmp_path)}}))


def test_a_worker_without_the_file_gets_it_from_the_driver(
    tmp_path: Path, new_process: Callable[[], None]
) -> None:
    file = write_affinity(tmp_path)
    config = load_config({"plugins": [str(file)], "method": {"affinity": "own"}})
    sent = plugins.send_plugins()
    file.unlink()
    new_process()
    plugins.receive_plugins(sent)
    plugins.receive_plugins(sent)
    assert load_config(config.model_dump(mode="json")) == config
    plugins.keep_copies(tmp_path, config.plugins)
    assert (tmp_path / "plugins/0-own.py").read_text() == AFFINITY.format(name="own")


# ---- where they are named


def test_a_relative_path_is_beside_the_file_that_names_it_or_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "configs").mkdir()
    (tmp_path / "elsewhere").mkdir()
    beside = write_affinity(tmp_path / "configs", "beside", "beside.py")
    here = write_affinity(tmp_path / "elsewhere", "here", "here.py")
    (tmp_path / "configs/first.yaml").write_text("plugins: [beside.py, $WHERE/here.py]\n")
    (tmp_path / "second.yaml").write_text("base: configs/first.yaml\nmethod: {affinity: beside}\n")
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setenv("WHERE", str(tmp_path / "elsewhere"))
    config = load_config(tmp_path / "second.yaml", ["plugins+=here.py"])
    assert config.plugins == (str(beside), str(here))
    assert load_config(tmp_path / "second.yaml", ["plugins=here.py", "method.affinity=here"])


def test_an_option_before_the_command_adds_to_the_plugins_of_its_configuration(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(whole)
    file = write_affinity(tmp_path)
    values = make_config(whole / "data", tmp_path / "runs", file)
    (tmp_path / "own.yaml").write_text(json.dumps(values))
    command = ["--plugin", "mine.py", "train", f"{tmp_path}/own.yaml", "run.name=two"]
    ended = run_command([*command, "method.affinity=own", "train.iterations=2"])
    assert ended.code == 0, ended
    written = load_config(tmp_path / "runs/two/config.yaml")
    assert written.plugins == (str(file), str(whole / "mine.py"))


def test_a_module_is_found_as_python_finds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, new_process: Callable[[], None]
) -> None:
    (tmp_path / "lab").mkdir()
    (tmp_path / "lab/power.py").write_text("POWER = 3\n")
    (tmp_path / "lab/own.py").write_text("from .power import POWER\n" + AFFINITY.format(name="own"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    config = load_config({"plugins": "lab.own", "method": {"affinity": "own"}})
    assert config.plugins == ("lab.own",)
    sent = plugins.send_plugins()
    new_process()
    plugins.receive_plugins(sent)
    assert "own" in AFFINITIES


def test_a_sweep_names_plugins_and_shares_beginnings_over_decisions(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = make_config(whole / "data", tmp_path, whole / "mine.py")
    (tmp_path / "own.yaml").write_text(json.dumps(values))
    write_affinity(tmp_path)
    (tmp_path / "all.yaml").write_text(
        "base: own.yaml\nname: all\n"
        "grid: {method.decision: [cost, halves], method.affinity: [cubed, own], optim.name: [sgd, radam]}\n"
    )
    monkeypatch.chdir(tmp_path)
    trials = list_trials(load_sweep(tmp_path / "all.yaml", ["plugins+=own.py"]))
    assert {trial.plugins for trial in trials} == {
        (str(whole / "mine.py"), str(tmp_path / "own.py"))
    }
    assert sorted(map(len, group_by_prefix(trials))) == [4, 4]


def test_a_job_of_ray_takes_plugins_of_its_folder_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "job").mkdir()
    (tmp_path / "job/run.yaml").write_text("{}\n")
    monkeypatch.chdir(tmp_path / "job")
    inside = str(write_affinity(tmp_path / "job"))
    command = _make_command(Path("run.yaml"), ["method.alpha=2"], [inside, "lab.own"])
    assert command.endswith("""run.yaml method.alpha=2 'plugins=["own.py", "lab.own"]'""")
    with pytest.raises(UsageError, match=r"The plug-in .*mine.py lies outside"):
        _make_command(Path("run.yaml"), [], [str(tmp_path / "mine.py")])


# ---- what is wrong


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, ("own.py does not exist", "Give a file")),
        ("x = 1\ndef f(:\n", ("own.py, line 2: invalid syntax",)),
        ("\n\nx = 1 / 0\n", ("own.py, line 3: ZeroDivisionError: division by zero",)),
        ("import not_there\n", ("own.py, line 1: ModuleNotFoundError", "not_there")),
        (AFFINITY.format(name="phi"), ("own.py, line 4", "kind of affinity 'phi' already")),
    ],
)
def test_a_plugin_that_cannot_be_loaded_is_told_in_one_sentence(
    text: str | None, words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text("{}\n")
    if text is not None:
        Path("own.py").write_text(text)
    assert_one_sentence(run_command(["train", "run.yaml", "plugins=own.py"]), 2, words)
    ended = run_command(["--plugin", "own.py", "data", "check", "data"])
    assert ended.code in (1, 2)
    assert words[0] in ended.err


def test_what_a_failed_plugin_registered_is_forgotten(tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text(AFFINITY.format(name="own") + "raise ValueError('later')\n")
    with pytest.raises(UserError, match="line 7: ValueError: later"):
        plugins.load_plugins([str(file)])
    assert "own" not in AFFINITIES
    plugins.load_plugins([str(write_affinity(tmp_path))])
    plugins.load_plugins([str(file)])


def test_a_file_that_changes_or_registers_nothing_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = write_affinity(tmp_path)
    plugins.load_plugins([str(file)])
    file.write_text("x = 1\n")
    with pytest.raises(UserError, match="has changed since this process loaded it"):
        plugins.load_plugins([str(file)])
    with caplog.at_level(logging.WARNING, logger="distbranch"):
        (tmp_path / "none.py").write_text("y = 1\n")
        plugins.load_plugins([str(tmp_path / "none.py")])
    assert "none.py registers nothing" in caplog.text


@pytest.mark.parametrize(
    ("key", "value", "nearest"),
    [
        ("method.affinity", "cube", "cubed"),
        ("method.decision", "halve", "halves"),
        ("optim.name", "adan", "adam"),
        ("loss.functions", {"binary": "square"}, "binary:squared"),
        ("model.backbone", "shor", "short"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(
    whole: Path, key: str, value: Any, nearest: str
) -> None:
    with pytest.raises(UsageError, match=nearest) as refused:
        load_config({"plugins": [str(whole / "mine.py")]}, {key: value})
    assert "`plugins`" in str(refused.value)


def test_an_error_in_a_plugin_while_it_trains_names_its_line(
    tiny_data: Path, tmp_path: Path
) -> None:
    file = write_affinity(tmp_path)
    file.write_text(file.read_text().replace("sums.product", "sums.produce"))
    values = config_of(tiny_data, tmp_path, **{"method.affinity": "own", "plugins": [str(file)]})
    ended = train_tiny(values)
    assert ended["end"] == "failed"
    assert "own.py, line 6: AttributeError" in ended["message"]


def test_a_rank_with_another_plugin_than_rank_0_is_refused(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_affinity(tmp_path)
    config = load_config(config_of(tiny_data, tmp_path, plugins=[str(file)]))
    # What rank 0 says, which has another file under this path on a disk of its own.
    monkeypatch.setattr(Ranks, "broadcast", lambda _, own: (own[0], {str(file): "0" * 64}))
    with pytest.raises(UserError, match="should be the same files for every rank"):
        _read_data_everywhere(config, Ranks.alone())


@pytest.mark.parametrize(
    ("compute", "words"),
    [
        (lambda sums: sums.product, "should lie in 0..1, found numbers from -"),
        (lambda sums: sums.product[0], r"should give a matrix \[2, 2\], found the shape \[2\]"),
        (lambda sums: np.array([[1, 0.2], [0.4, 1]]) + 0 * sums.product, "0.2 and 0.4"),
        (lambda sums: sums.product * np.nan, "found numbers from nan"),
    ],
)
def test_an_affinity_that_is_none_is_refused(compute: Any, words: str) -> None:
    AFFINITIES.register("wrong")(compute)
    stats = AffinityStats(2)
    for _ in range(3):
        stats.update(torch.tensor([[0.1, 0.9], [0.9, 0.1]]))
    with pytest.raises(UserError, match=words):
        stats.affinity("wrong")


@pytest.mark.parametrize(
    ("groups", "words"),
    [
        (((0, 1),), r"each of the 3 branches \(from 0\) into one group, found \(\(0, 1\),\)"),
        (((0, 1), (1, 2)), "into one group"),
        (((0,), (1,), (2,), ()), "into one group"),
        (((0,), (1,), (2,)), "at most 2 groups"),
    ],
)
def test_a_decision_that_is_no_partition_is_refused(groups: Any, words: str) -> None:
    DECISIONS.register("wrong")(lambda _: Decision(groups))
    architecture = Architecture.thin("vgg9", 8, (32, 32), tuple(Task(name) for name in "abc"))
    method = MethodConfig(decision="wrong", max_branches=2)
    with pytest.raises(UserError, match=words):
        decide_round(AffinityStats(3), architecture, [method], seed=0)


def test_a_loss_by_its_own_name_is_that_of_the_kind_and_focal_is_less() -> None:
    tasks = [Task("a"), Task("c", "categorical", ("x", "y", "z"))]
    draw = torch.Generator().manual_seed(0)
    outputs = torch.randn(50, 4, generator=draw)
    labels = torch.stack([torch.arange(50) % 2, torch.arange(50) % 3], dim=1).float()
    own = TaskSet(tasks).compute_losses(outputs, labels)
    kinds = ("binary", "categorical")
    named = TaskSet(tasks, choose_losses(dict.fromkeys(kinds, "cross-entropy")))
    assert torch.equal(named.compute_losses(outputs, labels), own)
    focal = TaskSet(tasks, choose_losses(dict.fromkeys(kinds, "focal")))
    # Of a probability p of what is true: -(1 - p)^2 log p.
    expected = (1 - (-own).exp()) ** 2 * own
    torch.testing.assert_close(focal.compute_losses(outputs, labels), expected)


def test_the_names_of_the_configuration_are_those_of_the_registries() -> None:
    # Those of pairs and those that are measured are kinds of one key.
    registries: list[Registry[Any]] = [AFFINITIES, MEASURED, DECISIONS, BACKBONES, LOSSES]
    registered: dict[str, set[str]] = {}
    for one in [*registries, OPTIMISERS]:
        registered.setdefault(one.what, set()).update(one)
    assert registered == {what: set(names) for what, names in BUILT_IN.items()}
