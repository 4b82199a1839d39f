"""Everything that may be wrong with what a person gives: one clear sentence, exit code 1 or 2, nothing overwritten.

The table says how a small world is spoiled, which command meets it, and what the sentence must tell. A new way to go wrong
is one more line.
"""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from tiny_world import TABLE, assert_one_sentence, nothing_overwritten, run_command

Spoil = Callable[[], object]  # in the world, which is the current folder
RUN = "runs/tiny"
CHECKPOINT = f"{RUN}/checkpoints/step-0000000"
MIXED = "image,p\na.jpg,1\nb.jpg,0\nc.jpg,-1\n"
TAGS = "image,t\na.jpg,u|v\nb.jpg,v\nc.jpg,u\n"
CROSSES = "image,p\na.jpg,x\nb.jpg,\nc.jpg,x\n"
PACK = "data pack csv new --images images --table table.csv"
HALF = ("result.json", "model")  # what an unfinished run has not yet


@dataclass(frozen=True)
class Case:
    """`words`: all of them stand in the sentence; `makes`: what new files may be left (a run that began, for one)."""

    id: str
    spoil: Spoil
    command: str
    code: int
    words: tuple[str, ...]
    makes: tuple[str, ...] = ()


# ---- ways to spoil


def nothing() -> None:
    pass


def put(path: str, text: str | bytes) -> Spoil:
    """A file with this content."""

    def spoil() -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(text if isinstance(text, bytes) else text.encode())

    return spoil


def change(path: str, old: str, new: str) -> Spoil:
    """Other words in a text file."""

    def spoil() -> None:
        text = Path(path).read_text()
        assert old in text, f"{path} has no {old!r} to spoil"
        Path(path).write_text(text.replace(old, new, 1))

    return spoil


def cut(path: str, num_bytes: int) -> Spoil:
    """The beginning of a file only."""
    return lambda: os.truncate(path, num_bytes)


def flip(path: str, at: int) -> Spoil:
    """One bit of a file."""

    def spoil() -> None:
        content = bytearray(Path(path).read_bytes())
        content[at] ^= 1
        Path(path).write_bytes(content)

    return spoil


def remove(*paths: str) -> Spoil:
    """No such files or folders."""
    return lambda: [
        shutil.rmtree(path) if Path(path).is_dir() else Path(path).unlink() for path in paths
    ]


def both(*spoils: Spoil) -> Spoil:
    """One after the other."""
    return lambda: [spoil() for spoil in spoils]


def unfinish() -> None:
    """The run as it was before its end: checkpoints, and neither result nor model."""
    remove(*(f"{RUN}/{name}" for name in HALF))()


class MakesFolder:
    """Unpickled by Python's own rules, it makes a folder."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("made-by-a-pickle",)


def weights(path: str, **content: object) -> Spoil:
    """A file of torch.save with one convolution, and what else is given."""
    return lambda: torch.save({"features.0.weight": torch.zeros(2, 3, 3, 3), **content}, path)


def swap_sample(old: bytes, new: bytes) -> Spoil:
    """Another content of the same length in the first training shard, sealed with sums as if it had been packed so."""

    def spoil() -> None:
        import numpy as np

        from distbranch.data.shard_writer import file_sha256, index_shard

        shard, index = Path("data/train-000000.tar"), Path("data/train-000000.index.npy")
        content = shard.read_bytes()
        assert old in content
        assert len(old) == len(new)
        shard.write_bytes(content.replace(old, new, 1))
        np.save(index, index_shard(shard))
        described = json.loads(Path("data/dataset.json").read_text())
        entry = described["splits"]["train"]["shards"][0]
        entry["sha256"], entry["index_sha256"] = file_sha256(shard), file_sha256(index)
        Path("data/dataset.json").write_text(json.dumps(described))

    return spoil


def broken_jpeg() -> None:
    content = Path("data/train-000000.tar").read_bytes()
    at = content.index(b"\xff\xd8\xff")
    swap_sample(content[at : at + 12], b"no JPEG here")()


# ---- the table

NEW = "train tiny.yaml run.name=new"
SWEEP = put("s.yaml", "base: tiny.yaml\nseeds: [0]\n")
SLURM = "submit slurm tiny.yaml --dry-run"
SOMP = f"{NEW} method.init=somp method.pretrained="
GROUPS = f"{NEW} method.name=fixed method.groups="
LOW_RANK = f"{NEW} method.name=low-rank model.backbone=vgg16 method.pretrained="
CONFIGS = (
    Case(
        "config absent",
        nothing,
        "train absent.yaml",
        2,
        ("absent.yaml", "does not exist", "tiny.yaml"),
    ),
    Case("config is a folder", nothing, "train images", 2, ("images", "cannot be read")),
    Case(
        "config is no text",
        put("x.yaml", b"\xff\xfe\x00"),
        "train x.yaml",
        2,
        ("x.yaml", "cannot be read"),
    ),
    Case(
        "config is no YAML",
        put("x.yaml", "run: {name: [}"),
        "train x.yaml",
        2,
        ("x.yaml", "as YAML", "line 1"),
    ),
    Case(
        "section twice",
        put("x.yaml", "seed: 1\ntrain: {iterations: 4}\ntrain: {batch_size: 8}\n"),
        "train x.yaml",
        2,
        ("x.yaml", "the key 'train' stands twice", "line 3"),
    ),
    Case(
        "config is a list",
        put("x.yaml", "- seed\n- 3\n"),
        "train x.yaml",
        2,
        ("`key: value`", "list"),
    ),
    Case(
        "config is a sweep",
        SWEEP,
        "train s.yaml",
        2,
        ("s.yaml", "it has seeds", "distbranch sweep s.yaml"),
    ),
    Case(
        "sweep is a config", nothing, "sweep tiny.yaml", 2, ("distbranch train tiny.yaml", "`base`")
    ),
    Case(
        "sweep: data absent",
        SWEEP,
        "sweep s.yaml data.path=absent",
        1,
        ("absent does not exist", "data pack"),
    ),
    Case(
        "sweep: one seed",
        SWEEP,
        "sweep s.yaml seeds=0",
        2,
        ("seeds: should be a list", "[0, 1, 2], found 0"),
    ),
    Case(
        "key as an option",
        nothing,
        f"{NEW} --method.alpha=2",
        2,
        ("without dashes", "--method.alpha=2"),
    ),
    Case(
        "empty section",
        put("x.yaml", "data:\n"),
        "train x.yaml",
        2,
        ("data: should hold `key: value` lines, found None",),
    ),
    Case(
        "section is a number",
        put("x.yaml", "train: 3\n"),
        "train x.yaml",
        2,
        ("train: should hold `key: value` lines, found 3",),
    ),
    Case(
        "unknown key",
        nothing,
        f"{NEW} train.iteratons=3",
        2,
        ("train.iteratons", "unknown", "train.iterations"),
    ),
    Case(
        "key in the wrong section",
        nothing,
        f"{NEW} model.alpha=2",
        2,
        ("model.alpha", "method.alpha"),
    ),
    Case(
        "unknown section",
        nothing,
        f"{NEW} trian.iterations=3",
        2,
        ("trian: this key is unknown, did you mean train",),
    ),
    Case(
        "override of a whole section",
        nothing,
        f"{NEW} train=3",
        2,
        ("train: should hold `key: value` lines, found 3",),
    ),
    Case("override below a key", nothing, f"{NEW} seed.x=3", 2, ("seed",)),
    Case("text for a number", nothing, f"{NEW} optim.lr=fast", 2, ("optim.lr", "number", "'fast'")),
    Case(
        "half a step",
        nothing,
        f"{NEW} train.iterations=2.5",
        2,
        ("train.iterations", "integer", "2.5"),
    ),
    Case(
        "value out of range",
        nothing,
        f"{NEW} method.decay=1.5",
        2,
        ("method.decay", "less than 1", "1.5"),
    ),
    Case(
        "negative seed", nothing, f"{NEW} seed=-1", 2, ("seed", "greater than or equal to 0", "-1")
    ),
    Case(
        "seed of more than 64 bits",
        nothing,
        f"{NEW} seed={10**22}",
        2,
        ("seed", "less than or equal to", str(10**22)),
    ),
    Case("not a number", nothing, f"{NEW} optim.lr=.nan", 2, ("optim.lr", "nan")),
    Case(
        "unknown choice",
        nothing,
        f"{NEW} model.backbone=vgg19",
        2,
        ("model.backbone", "the nearest are vgg9, vgg16", "vgg19"),
    ),
    Case(
        "cap of no branch",
        nothing,
        f"{NEW} method.max_branches=0",
        2,
        ("method.max_branches", "greater than or equal to 1", "0"),
    ),
    Case(
        "images too small",
        nothing,
        f"{NEW} data.image_size=[16,64]",
        2,
        ("data.image_size", "32", "found 16"),
    ),
    Case(
        "one image size",
        nothing,
        f"{NEW} data.image_size=64",
        2,
        ("data.image_size", "should be a list", "64"),
    ),
    Case(
        "one side",
        nothing,
        f"{NEW} data.image_size=[64]",
        2,
        ("data.image_size", "is missing", "[64]"),
    ),
    Case(
        "run name is a path",
        nothing,
        f"{NEW} run.name=../tiny",
        2,
        ("run.name", "letters, digits", "../tiny"),
    ),
    Case(
        "batch too small",
        nothing,
        f"{NEW} train.batch_size=2 launch.workers=3",
        2,
        ("train.batch_size", "2 images"),
    ),
    Case(
        "batch without whole groups",
        nothing,
        f"{NEW} train.batch_size=40",
        2,
        ("norm_batch=32", "32 or 64"),
    ),
    Case(
        "no data set named", change("tiny.yaml", "data: {path: data}", ""), NEW, 2, ("data.path",)
    ),
    Case("override without =", nothing, f"{NEW} seed", 2, ("key=value", "'seed'")),
    Case(
        "override is no YAML",
        nothing,
        f"{NEW} data.image_size=[64",
        2,
        ("data.image_size", "not valid YAML", "[64"),
    ),
    Case("keys alone", nothing, "train model.width=8", 2, ("model.width=8", "Give a config file")),
    Case("no config", nothing, "train", 2, ("config file", "--help-config")),
    Case(
        "bad seeds",
        nothing,
        "experiment table tiny.yaml --seeds 0,one",
        2,
        ("--seeds", "whole numbers", "0,one"),
    ),
    Case(
        "no seeds", nothing, "experiment table tiny.yaml --seeds ,", 2, ("--seeds", "whole numbers")
    ),
    Case("experiment of no config", nothing, "experiment table seed=3", 2, ("config",)),
    Case(
        "experiment: config absent",
        nothing,
        "experiment table absent.yaml",
        2,
        ("absent.yaml", "does not exist"),
    ),
    Case(
        "experiment: unknown split",
        nothing,
        "experiment table tiny.yaml --split dev",
        2,
        ("--split", "val", "dev"),
    ),
    Case(
        "experiment: unwritable",
        nothing,
        "experiment table tiny.yaml --seeds 0 run.directory=photo.jpg",
        1,
        ("photo.jpg", "cannot be written"),
    ),
    Case(
        "experiment: same name twice",
        nothing,
        "experiment table tiny.yaml ./tiny.yaml",
        2,
        ("different names", "tiny"),
    ),
    Case(
        "experiment: unknown key",
        nothing,
        "experiment table tiny.yaml optim.rl=1",
        2,
        ("optim.rl", "optim.lr"),
    ),
    Case(
        "experiment: one width",
        nothing,
        "experiment company tiny.yaml --widths 8",
        2,
        ("--widths", "two", "'8'"),
    ),
    Case(
        "experiment: unknown metric",
        nothing,
        "experiment company tiny.yaml --metric ap",
        2,
        ("average_precision", "'ap'"),
    ),
    Case(
        "experiment: more groups than tasks",
        nothing,
        "experiment affinities tiny.yaml --groups 3",
        2,
        ("--groups", "from 2 to 2", "found 3"),
    ),
    Case(
        "experiment: birth after the end",
        nothing,
        f"experiment births tiny.yaml --groups {RUN} --at 2,900",
        2,
        ("--at", "[900]"),
    ),
    Case(
        "experiment: unknown layer",
        nothing,
        "experiment affinities tiny.yaml --groups 2 --split-from conv9",
        2,
        ("--split-from", "'conv9'", "conv4_1"),
    ),
    Case(
        "experiment: no run", nothing, "experiment grouping absent", 1, ("absent", "finished run")
    ),
    Case(
        "experiment: unfinished run",
        unfinish,
        f"experiment grouping {RUN}",
        1,
        (RUN, "Train it to its end"),
    ),
    Case(
        "experiment: no data drawn",
        nothing,
        "experiment planted tiny.yaml",
        1,
        ("tiny.yaml", "data.pack"),
    ),
    Case(
        "experiment: pretrained absent",
        nothing,
        "experiment initialisation tiny.yaml --pretrained absent.pth",
        1,
        ("absent.pth", "does not exist"),
    ),
    Case(
        "experiment: nothing to choose from",
        nothing,
        f"experiment initialisation tiny.yaml --pretrained {RUN}",
        1,
        (RUN, "wider", "width 2"),
    ),
    Case(
        "experiment: another config",
        lambda: shutil.copytree(RUN, "runs/initialisation-tiny/somp-seed0"),
        "experiment initialisation tiny.yaml model.width=1 --seeds 0 --pretrained runs/tiny",
        1,
        ("somp-seed0 was begun with another", "Give another name (--name"),
    ),
    Case(
        "experiment: planted groups of no growth",
        nothing,
        "experiment planted tiny.yaml method.name=fixed",
        2,
        ("tiny.yaml", "method.name=branching", "found method.name=fixed"),
    ),
    Case(
        "experiment: too short to decide",
        nothing,
        "experiment planted tiny.yaml train.iterations=2",
        2,
        ("for 2 steps", "after 2", "method.round_iterations"),
    ),
    Case(
        "experiment: no such split in the data",
        change("data/dataset.json", '"test": {', '"dev": {'),
        "experiment table tiny.yaml --seeds 0",
        1,
        ("'test'", "dev, train, val", "--split"),
    ),
    Case(
        "experiment: unknown kind of affinity",
        nothing,
        "experiment affinities tiny.yaml --groups 2 --kinds importence",
        1,
        ("'importence'", "importance"),
    ),
    Case(
        "experiment: scout with branches",
        nothing,
        "experiment affinities tiny.yaml --scout runs/tiny --groups 2",
        1,
        ("runs/tiny", "its tree has grown"),
    ),
    Case(
        "experiment: scout of no run",
        nothing,
        "experiment affinities tiny.yaml --scout runs/no",
        1,
        ("runs/no", "finished run"),
    ),
    Case("unknown command", nothing, "trian tiny.yaml", 2, ("No such command", "trian")),
    Case("unknown option", nothing, "train tiny.yaml --frehs", 2, ("No such option", "--frehs")),
    Case("run argument missing", nothing, "evaluate", 2, ("Missing argument", "run")),
    Case(
        "more ranks than samples",
        nothing,
        f"{NEW} launch.workers=25 train.batch_size=25",
        1,
        ("25", "24", "fewer"),
    ),
    Case(
        "slurm: idle GPUs",
        nothing,
        f"{SLURM} --gpus-per-node 4 launch.device=auto launch.workers=2",
        2,
        ("launch.workers=2 on 4 GPU(s)", "launch.workers=4"),
    ),
    Case(
        "slurm: all GPUs idle",
        nothing,
        f"{SLURM} --gpus-per-node 4",
        2,
        ("launch.device=cpu", "4 GPU(s) idle"),
    ),
    Case(
        "slurm: GPU of sbatch",
        nothing,
        f"{SLURM} --sbatch gres=gpu:1",
        2,
        ("launch.device=cpu", "1 GPU(s) idle"),
    ),
    Case(
        "slurm: two GPU options",
        nothing,
        f"{SLURM} --gpus-per-node 1 --sbatch gpus=2",
        2,
        ("asked for in one way", "--sbatch gpus (2)", "--gpus-per-node (1)"),
    ),
    Case(
        "slurm: nodes by sbatch",
        nothing,
        f"{SLURM} --sbatch nodes=2",
        2,
        ("--nodes in place of --sbatch nodes=2",),
    ),
    Case(
        "slurm: signal too early",
        nothing,
        f"{SLURM} --time 2 --signal-delay 600",
        2,
        ("600", "--time", "2 minute"),
    ),
    Case("slurm: no such port", nothing, f"{SLURM} --port 99999", 2, ("--port", "65535")),
    Case(
        "slurm: early stopping",
        put("s.yaml", "base: tiny.yaml\nseeds: [0]\nearly_stopping: {grace: 2}\n"),
        "submit slurm-array s.yaml",
        2,
        ("early_stopping=null", "distbranch sweep"),
    ),
    Case(
        "slurm: less than no GPU",
        SWEEP,
        "submit slurm-array s.yaml --gpus-per-trial -1",
        2,
        ("--gpus-per-trial",),
    ),
    Case(
        "dry run: more ranks",
        nothing,
        f"{NEW} --dry-run launch.workers=25 train.batch_size=25",
        1,
        ("25", "24"),
    ),
)
DATASETS = (
    Case(
        "data set absent",
        nothing,
        f"{NEW} data.path=absent",
        1,
        ("absent", "does not exist", "data pack"),
    ),
    Case(
        "not a packed data set",
        nothing,
        f"{NEW} data.path=images",
        1,
        ("images", "not a packed data set", "dataset.json", "data pack"),
    ),
    Case(
        "data set is a file",
        nothing,
        f"{NEW} data.path=table.csv",
        1,
        ("table.csv", "which is a folder"),
    ),
    Case(
        "unknown protocol",
        nothing,
        f"{NEW} data.path=gopher://x/data",
        1,
        ("gopher://x/data", "cannot be read"),
    ),
    Case(
        "nobody answers",
        nothing,
        f"{NEW} data.path=http://127.0.0.1:9/data",
        1,
        ("127.0.0.1:9/data", "cannot be read", "connect"),
    ),
    Case(
        "dry run: data absent",
        nothing,
        "train tiny.yaml --dry-run data.path=absent",
        1,
        ("absent", "data pack"),
    ),
    Case(
        "one of two data sets absent",
        nothing,
        f"{NEW} data.path=[data,absent]",
        1,
        ("absent", "does not exist"),
    ),
    Case(
        "a data set twice",
        nothing,
        f"{NEW} data.path=[data,./data]",
        1,
        ("data twice", "data.proportions"),
    ),
    Case(
        "no data set in a list",
        nothing,
        f"{NEW} data.path=[]",
        2,
        ("data.path", "a list of them", "[]"),
    ),
    Case(
        "bench: tree of a run",
        nothing,
        f"bench latency {RUN} --tree x.json",
        2,
        ("--tree", "without RUN"),
    ),
    Case(
        "data set is a number",
        nothing,
        f"{NEW} data.path=[data,3]",
        2,
        ("data.path", "a list of them", "3"),
    ),
    Case(
        "proportions of one", nothing, f"{NEW} data.proportions=[3]", 2, ("proportions", "1 for 1")
    ),
    Case(
        "too few proportions",
        nothing,
        f"{NEW} data.path=[a,b,c] data.proportions=[3,1]",
        2,
        ("2 for 3",),
    ),
    Case(
        "proportion of none",
        nothing,
        f"{NEW} data.path=[a,b] data.proportions=[3,0]",
        2,
        ("proportions", "found 0"),
    ),
    Case(
        "list and pack",
        nothing,
        f"{NEW} data.path=[a,b] data.pack={{source: csv}}",
        2,
        ("data.pack", "beforehand"),
    ),
    Case(
        "task that differs",
        both(
            lambda: shutil.copytree("data", "other"),
            change("other/dataset.json", '"mid"', '"medium"'),
        ),
        f"{NEW} data.path=[data,other]",
        1,
        ("'shade'", "mid", "medium", "other names"),
    ),
    Case(
        "one of two without train",
        both(
            lambda: shutil.copytree("data", "other"),
            change("other/dataset.json", '"train": {', '"trian": {'),
        ),
        f"{NEW} data.path=[data,other]",
        1,
        ("other", "no training samples"),
    ),
    Case(
        "label: data absent",
        nothing,
        f"data label absent new --run {RUN}",
        1,
        ("absent", "does not exist"),
    ),
    Case(
        "label: run absent",
        nothing,
        "data label data new --run runs/absent",
        1,
        ("runs/absent", "distbranch train"),
    ),
    Case(
        "label: unfinished",
        unfinish,
        f"data label data new --run {RUN}",
        1,
        (RUN, "not ended", "teacher"),
    ),
    Case(
        "label: categorical",
        nothing,
        f"data label data new --run {RUN}",
        1,
        ("shade", "one_task_per_class"),
    ),
    Case("label: itself", nothing, f"data label data ./data --run {RUN}", 1, ("data", "itself")),
    Case(
        "label: split",
        nothing,
        f"data label data new --run {RUN} --splits dev",
        1,
        ("'dev'", "train, val, test"),
    ),
    Case("label: no run", nothing, "data label data new", 2, ("run",)),
    Case(
        "description cut",
        cut("data/dataset.json", 300),
        NEW,
        1,
        ("dataset.json", "damaged", "Pack"),
    ),
    Case(
        "description empty",
        cut("data/dataset.json", 0),
        NEW,
        1,
        ("dataset.json", "damaged", "Pack"),
    ),
    Case(
        "other JSON",
        put("data/dataset.json", "[1]"),
        NEW,
        1,
        ("dataset.json", "distbranch-dataset"),
    ),
    Case(
        "other version",
        change("data/dataset.json", '"version": 1', '"version": 9'),
        NEW,
        1,
        ("dataset.json", "version 9", "in version 1 to 3"),
    ),
    Case(
        "field absent",
        change("data/dataset.json", '"tasks"', '"task"'),
        NEW,
        1,
        ("dataset.json", "tasks", "damaged"),
    ),
    Case(
        "no train split",
        change("data/dataset.json", '"train": {', '"trian": {'),
        NEW,
        1,
        ("no training samples",),
    ),
    Case(
        "shard absent",
        remove("data/train-000001.tar"),
        NEW,
        1,
        ("train-000001.tar", "absent"),
        ("runs/new/*",),
    ),
    Case(
        "shard cut",
        cut("data/train-000000.tar", 700),
        NEW,
        1,
        ("train-000000.tar", "sample", "ends"),
        ("runs/new/*",),
    ),
    Case(
        "index absent",
        remove("data/train-000002.index.npy"),
        NEW,
        1,
        ("train-000002", "absent"),
        ("runs/new/*",),
    ),
    Case(
        "index cut",
        cut("data/train-000002.index.npy", 150),
        NEW,
        1,
        ("train-000002", "not the one"),
        ("runs/new/*",),
    ),
    Case(
        "flipped bit",
        flip("data/train-000000.tar", 1000),
        NEW,
        1,
        ("train-000000.tar", "sample train-0", "crc32"),
        ("runs/new/*",),
    ),
    Case(
        "broken JPEG",
        broken_jpeg,
        NEW,
        1,
        ("train-000000.tar", "train-0", "cannot be decoded"),
        ("runs/new/*",),
    ),
    Case(
        "sample without labels",
        swap_sample(b'"labels"', b'"lebals"'),
        NEW,
        1,
        ("train-000000.tar", "train-0", "no field 'labels'"),
        ("runs/new/*",),
    ),
    Case(
        "label of an unknown task",
        swap_sample(b'"bright"', b'"brihgt"'),
        NEW,
        1,
        ("train-000000.tar", "train-0", "brihgt", "no task"),
        ("runs/new/*",),
    ),
    Case(
        "label out of range",
        swap_sample(b'"bright":0', b'"bright":7'),
        NEW,
        1,
        ("train-000000.tar", "train-0", "'bright'", "0 to 1", "7"),
        ("runs/new/*",),
    ),
    Case(
        "broken JPEG, in processes",
        broken_jpeg,
        f"{NEW} data.workers=1",
        1,
        ("train-000000.tar", "train-0", "cannot be decoded"),
        ("runs/new/*",),
    ),
    Case(
        "too many bad samples",
        broken_jpeg,
        f"{NEW} data.on_bad_sample=skip data.max_bad_samples=0",
        1,
        ("1 samples", "broken-image", "max_bad_samples=0", "data check"),
        ("runs/new/*",),
    ),
    Case(
        "broken val shard",
        cut("data/val-000000.tar", 700),
        NEW,
        1,
        ("val-000000.tar", "sample"),
        ("runs/new/*",),
    ),
    Case(
        "check: damaged",
        flip("data/val-000000.tar", 1000),
        "data check data",
        1,
        ("problem(s)", "40 samples"),
    ),
    Case(
        "check: shard absent",
        remove("data/test-000000.tar"),
        "data check data",
        1,
        ("1 problem(s)",),
    ),
    Case("check: absent", nothing, "data check absent", 1, ("absent", "does not exist")),
    Case(
        "check: remote",
        nothing,
        "data check http://127.0.0.1:9/data",
        1,
        ("http://127.0.0.1:9", "not on this machine"),
    ),
    Case(
        "show: nobody answers",
        nothing,
        "data show http://127.0.0.1:9/data",
        1,
        ("http://127.0.0.1:9", "connect"),
    ),
    Case(
        "show: unknown split",
        nothing,
        "data show data --split dev --out x.png",
        1,
        ("'dev'", "train, val, test"),
    ),
    Case(
        "show: unwritable",
        nothing,
        "data show data --out photo.jpg/x.png",
        1,
        ("photo.jpg/x.png", "written"),
    ),
    Case(
        "show: damaged",
        cut("data/train-000000.tar", 700),
        "data show data --out x.png",
        1,
        ("train-000000.tar",),
    ),
)
TABLES = (
    Case(
        "unknown source",
        nothing,
        "data pack cvs new",
        2,
        ("cvs", "csv, folder, hf, celeba"),
    ),
    Case(
        "unknown source's options",
        nothing,
        "data pack cvs new --options",
        2,
        ("cvs", "csv, folder, hf"),
    ),
    Case(
        "unknown option of a source",
        nothing,
        f"{PACK} --spilt x",
        2,
        ("no option --spilt", "--split-column"),
    ),
    Case(
        "required option missing",
        nothing,
        "data pack csv new --images images",
        2,
        ("--table", "required"),
    ),
    Case("option without a value", nothing, f"{PACK} --seed", 2, ("--seed", "--name value")),
    Case(
        "option twice",
        nothing,
        f"{PACK} --ignore a --ignore=b",
        2,
        ("each once", "--name a,b", "--ignore=b"),
    ),
    Case("stray word", nothing, f"{PACK} seed=1", 2, ("--name value", "seed=1")),
    Case(
        "option of the wrong type", nothing, f"{PACK} --seed one", 2, ("--seed", "integer", "one")
    ),
    Case("bad size", nothing, f"{PACK} --image-size 0x32", 2, ("--image-size", "HxW")),
    Case("bad fractions", nothing, f"{PACK} --fractions 0,0,0", 2, ("fractions", "0.8,0.1,0.1")),
    Case(
        "no samples asked for",
        nothing,
        "data pack rendered-faces new --samples 0",
        2,
        ("samples", "0"),
    ),
    Case("bad shard size", nothing, f"{PACK} --shard-samples 0", 2, ("shard-samples",)),
    Case("table absent", remove("table.csv"), PACK, 1, ("table.csv", "does not exist")),
    Case("table empty", put("table.csv", ""), PACK, 1, ("table.csv", "empty", "columns")),
    Case(
        "table without rows",
        put("table.csv", "image,bright\n"),
        PACK,
        1,
        ("table.csv", "not a single row"),
    ),
    Case(
        "table is no text",
        put("table.csv", TABLE.encode() + b"\xff\n"),
        PACK,
        1,
        ("table.csv", "UTF-8"),
    ),
    Case(
        "image column absent",
        change("table.csv", "image", "file"),
        PACK,
        1,
        ("no column 'image'", "--image-column"),
    ),
    Case(
        "column twice",
        change("table.csv", "colour", "bright"),
        PACK,
        1,
        ("line 1", "'bright'", "twice"),
    ),
    Case(
        "task column absent", nothing, f"{PACK} --tasks brigth", 1, ("'brigth'", "Nearest: bright")
    ),
    Case(
        "image twice",
        change("table.csv", "c.jpg", "a.jpg"),
        PACK,
        1,
        ("line 4", "a.jpg", "already"),
    ),
    Case(
        "a cell too few",
        change("table.csv", "0,blue", "blue"),
        PACK,
        1,
        ("line 3", "4 columns", "found 3"),
    ),
    Case(
        "bad label",
        change("table.csv", "b.jpg,train,0", "b.jpg,train,2"),
        PACK,
        1,
        ("line 3", "'bright'", "'2'"),
    ),
    Case(
        "1 0 here, 1 -1 there",
        put("table.csv", "image,split,p,q\na.jpg,train,1,1\nb.jpg,train,0,-1\n"),
        PACK,
        1,
        ("'q' says no with -1", "'p' has 0"),
    ),
    Case(
        "-1 beside 0",
        put("table.csv", MIXED),
        PACK,
        1,
        ("'p' holds 1, 0 and -1", "--minus-one", "unknown"),
    ),
    Case(
        "an answer that is none",
        put("table.csv", MIXED),
        f"{PACK} --minus-one p=maybe",
        2,
        ("'unknown'", "'maybe'"),
    ),
    Case(
        "tags in a cell",
        put("table.csv", TAGS),
        PACK,
        1,
        ("'t' seems to hold several tags", "--tags t --separator '|'"),
    ),
    Case(
        "tags, no separator",
        put("table.csv", TAGS),
        f"{PACK} --tags t",
        1,
        ("Give --separator '|'",),
    ),
    Case(
        "classes alike",
        change("table.csv", "c.jpg,val,,red", "c.jpg,val,,Red"),
        PACK,
        1,
        ("'red'", "'Red'", "line 4"),
    ),
    Case(
        "columns alike",
        change("table.csv", "colour", "Bright"),
        PACK,
        1,
        ("'bright' and 'Bright'", "Rename"),
    ),
    Case("a cross or nothing", put("table.csv", CROSSES), PACK, 1, ("'p' has only 'x'", "--blank")),
    Case(
        "cp1252",
        put("table.csv", "image,gr\u00f6\u00dfe\n".encode("cp1252")),
        PACK,
        1,
        ("line 1", "cp1252", "--encoding"),
    ),
    Case(
        "no workbook",
        put("t.xlsx", TABLE),
        PACK.replace("table.csv", "t.xlsx"),
        1,
        ("t.xlsx", "workbook"),
    ),
    Case(
        "four problems at once",
        put("table.csv", MIXED),
        f"{PACK} --image-column imge --ignore q --categorical r",
        1,
        ("4 problems", "Nearest: image", "no column 'q'", "no column 'r'", "'p' holds 1, 0 and -1"),
    ),
    Case(
        "unknown split name",
        change("table.csv", "c.jpg,val", "c.jpg,valid"),
        PACK,
        1,
        ("line 4", "'valid'", "val"),
    ),
    Case(
        "image absent",
        remove("images/c.jpg"),
        PACK,
        1,
        ("line 4", "c.jpg", "no such image", "--on-bad-image"),
    ),
    Case(
        "image is text", put("images/b.jpg", "hello"), PACK, 1, ("line 3", "b.jpg", "not an image")
    ),
    Case("image cut", cut("images/b.jpg", 300), PACK, 1, ("line 3", "b.jpg", "damaged")),
    Case(
        "images absent",
        nothing,
        f"{PACK.replace('images images', 'images absent')}",
        1,
        ("absent", "does not exist", ".zip"),
    ),
    Case(
        "zip damaged",
        put("x.zip", b"PK\3\4 nothing"),
        f"{PACK.replace('images images', 'images x.zip')}",
        1,
        ("x.zip", ".zip"),
    ),
    Case(
        "pack into a full folder",
        nothing,
        f"{PACK.replace('new', 'images')}",
        1,
        ("images", "not empty", "new folder"),
    ),
    Case(
        "pack over other data",
        nothing,
        f"{PACK.replace('new', 'data')}",
        1,
        ("data", "not empty", "another source"),
    ),
    Case(
        "pack into a file",
        nothing,
        f"{PACK.replace('new', 'photo.jpg')}",
        1,
        ("photo.jpg: Not a directory", "Give a folder"),
    ),
    Case("pack nowhere", nothing, "data pack csv", 2, ("'OUT'", "new folder")),
    Case(
        "pack: options before the folder",
        nothing,
        "data pack csv --images images new",
        2,
        ("'OUT'", "after csv"),
    ),
    Case(
        "pack below a file",
        nothing,
        f"{PACK.replace('new', 'photo.jpg/new')}",
        1,
        ("photo.jpg/new", "written"),
    ),
    Case(
        "pack where nothing can be",
        nothing,
        f"{PACK.replace('new', '/proc/new')}",
        1,
        ("/proc/new", "written"),
    ),
    Case(
        "pack in a config, table absent",
        nothing,
        f"{NEW} data.path=new data.pack={{source:csv,images:images,table:no.csv}}".replace(
            ":", ": "
        ),
        1,
        ("no.csv", "does not exist"),
    ),
    Case(
        "pack in a config, no source",
        nothing,
        f"{NEW} data.path=new data.pack={{}}",
        2,
        ("source", "csv, folder, hf"),
    ),
    Case(
        "celeba: rows missing",
        change("celeba/Anno/list_attr_celeba.txt", "3\n", "5\n"),
        "data pack celeba new --root celeba",
        1,
        ("list_attr_celeba.txt", "5 rows", "has 3"),
    ),
    Case(
        "celeba: lists differ",
        change("celeba/Eval/list_eval_partition.txt", "000003.jpg 2\n", ""),
        "data pack celeba new --root celeba",
        1,
        ("3 images", "has 2"),
    ),
    Case(
        "celeba: bad mark",
        change("celeba/Anno/list_attr_celeba.txt", "000002.jpg  1", "000002.jpg  4"),
        "data pack celeba new --root celeba",
        1,
        ("line 4", "'Smiling'", "'4'"),
    ),
    Case(
        "celeba: list absent",
        remove("celeba/Eval/list_eval_partition.txt"),
        "data pack celeba new --root celeba",
        1,
        ("list_eval_partition.txt", "not found", "celeba"),
    ),
    Case(
        "celeba: image absent",
        remove("celeba/Img"),
        "data pack celeba new --root celeba",
        1,
        ("No images", "celeba"),
    ),
    Case(
        "deepfashion: 46 rows of 50",
        put(
            "deepfashion/Anno_coarse/list_category_cloth.txt",
            "50\ncategory_name category_type\n"
            + "".join(f"Kind{number} 1\n" for number in range(46)),
        ),
        "data pack deepfashion new --root deepfashion",
        1,
        ("list_category_cloth.txt", "50 rows", "has 46"),
    ),
    Case(
        "deepfashion: category out of range",
        change("deepfashion/Anno_coarse/list_category_img.txt", "img_2.jpg 2", "img_2.jpg 3"),
        "data pack deepfashion new --root deepfashion",
        1,
        ("line 4", "one of 1, 2", "'3'"),
    ),
    Case(
        "deepfashion: attributes absent",
        nothing,
        "data pack deepfashion new --root deepfashion --labels both",
        1,
        ("list_attr_cloth.txt", "not found"),
    ),
)
RUNS = (
    Case(
        "another config",
        nothing,
        "train tiny.yaml seed=7",
        1,
        ("seed: 0 -> 7", "--fresh", "run.name"),
    ),
    Case(
        "dry run: another config",
        nothing,
        "train tiny.yaml --dry-run seed=7",
        1,
        ("seed: 0 -> 7", "--fresh"),
    ),
    Case(
        "dry run: another sweep",
        both(
            SWEEP,
            put("runs/s/base.yaml", "method: {alpha: 3}"),
            put("runs/s/sweep.yaml", ""),
            put("runs/s/t/config.yaml", ""),
        ),
        "sweep s.yaml --dry-run",
        1,
        ("runs/s was begun with another", "method.alpha: 3.0 -> 1.0"),
    ),
    Case(
        "other data", nothing, "train tiny.yaml data.path=absent", 1, ("absent", "does not exist")
    ),
    Case(
        "run directory is a file",
        nothing,
        "train tiny.yaml run.directory=. run.name=table.csv",
        1,
        ("is a file",),
    ),
    Case(
        "run directory of others",
        nothing,
        "train tiny.yaml run.directory=. run.name=images",
        1,
        ("holds other files",),
    ),
    Case(
        "runs below a file",
        nothing,
        f"{NEW} run.directory=photo.jpg",
        1,
        ("photo.jpg/new", "run.directory"),
    ),
    Case(
        "runs nowhere",
        nothing,
        f"{NEW} run.directory=/proc/runs",
        1,
        ("/proc/runs/new", "run.directory"),
    ),
    Case(
        "own config damaged",
        put(f"{RUN}/config.yaml", "{"),
        "train tiny.yaml",
        2,
        ("config.yaml", "as YAML"),
    ),
    Case(
        "result damaged",
        cut(f"{RUN}/result.json", 40),
        "train tiny.yaml",
        1,
        ("result", "damaged", "result.json"),
    ),
    Case(
        "tree of a finished run lost",
        remove(f"{RUN}/tree.json"),
        "train tiny.yaml",
        1,
        ("tree.json", "result.json"),
    ),
    Case(
        "all checkpoints damaged",
        both(unfinish, *(flip(f"{CHECKPOINT}{step}/model.safetensors", 900) for step in (2, 4))),
        "train tiny.yaml",
        1,
        ("checkpoints", "damaged", "--fresh"),
    ),
    Case(
        "checkpoints without manifest",
        both(unfinish, *(remove(f"{CHECKPOINT}{step}/manifest.json") for step in (2, 4))),
        "train tiny.yaml",
        1,
        ("checkpoints", "damaged", "--fresh"),
    ),
    Case(
        "data set now of other tasks",
        both(unfinish, change("data/dataset.json", '"name": "wide"', '"name": "broad"')),
        "train tiny.yaml",
        1,
        ("was begun with other", "run.name"),
    ),
    Case(
        "somp of nothing",
        nothing,
        f"{NEW} method.init=somp",
        2,
        ("init=somp", "method.pretrained", ".pth"),
    ),
    Case(
        "pretrained without init",
        nothing,
        f"{NEW} method.pretrained=x",
        2,
        ("pretrained=x", "add method.init=somp"),
    ),
    Case(
        "pretrained absent",
        nothing,
        f"{SOMP}x.pth",
        1,
        ("x.pth does not exist", "torchvision", "fps-vgg-wide.yaml"),
    ),
    Case(
        "pretrained no weights",
        put("x.pth", "hello"),
        f"{SOMP}x.pth",
        1,
        ("x.pth", "damaged", "torchvision"),
    ),
    Case(
        "pretrained wants to run code",
        weights("x.pth", more=MakesFolder()),
        f"{SOMP}x.pth",
        1,
        ("x.pth", "mkdir", "never done"),
    ),
    Case(
        "pretrained of another network",
        weights("x.pth"),
        f"{SOMP}x.pth",
        1,
        ("x.pth", "13 convolutions", "found 1"),
    ),
    Case(
        "pretrained run absent", nothing, f"{SOMP}runs/absent", 1, ("runs/absent", "does not exist")
    ),
    Case("pretrained no run", nothing, f"{SOMP}images", 1, ("images", "a finished run")),
    Case("pretrained run unfinished", unfinish, f"{SOMP}{RUN}", 1, (RUN, "a finished run")),
    Case(
        "pretrained run has branched",
        nothing,
        f"{SOMP}{RUN}",
        1,
        (RUN, "has branched", "method.name=fixed"),
    ),
    Case(
        "pretrained on other colours",
        nothing,
        f"{SOMP}{RUN} data.std=[1,1,1]",
        1,
        (RUN, "data.std", "[1.0, 1.0, 1.0]"),
    ),
    Case(
        "two widths",
        nothing,
        f"{NEW} model.width_fraction=0.5",
        2,
        ("`width_fraction`", "width=2", "model.width="),
    ),
    Case(
        "groups: absent",
        nothing,
        f"{GROUPS}runs/absent",
        1,
        ("method.groups=", "runs/absent", "does not exist"),
    ),
    Case("groups: unfinished", unfinish, f"{GROUPS}{RUN}", 1, (RUN, "a finished run")),
    Case(
        "groups: no tree",
        put("x.json", "[]"),
        f"{GROUPS}x.json",
        1,
        ("x.json holds no tree", "tree.json"),
    ),
    Case(
        "groups: no mapping",
        nothing,
        f"{GROUPS}[[bright]]",
        2,
        ("method.groups", "{layer: [[task, ...], ...]}"),
    ),
    Case(
        "groups: unknown layer",
        nothing,
        f"{GROUPS}{{fc7: [[bright, wide, shade]]}}",
        1,
        ("of its 8 layers", "found fc7", "fc6"),
    ),
    Case(
        "groups: unknown task",
        nothing,
        f"{GROUPS}{{fc6: [[bright, wide, shape]]}}",
        1,
        ("'shape' 1 times", "'shade' 0 times"),
    ),
    Case(
        "groups: task absent",
        nothing,
        f"{GROUPS}{{fc6: [[bright], [wide]]}}",
        1,
        ("each of the 3 tasks once", "'shade' 0 times"),
    ),
    Case(
        "groups: task doubled",
        nothing,
        f"{GROUPS}{{fc6: [[bright, wide], [wide, shade]]}}",
        1,
        ("'wide' 2 times",),
    ),
    Case(
        "groups: no unions",
        nothing,
        f"{GROUPS}{{fc6: [[bright, wide], [shade]], fc5: [[bright], [wide, shade]]}}",
        1,
        ("groups of fc5 should be unions", "bright, wide"),
    ),
    Case(
        "groups: growing",
        nothing,
        f"{NEW} method.groups={RUN}",
        2,
        ("method.name=fixed", "branching"),
    ),
    Case(
        "permutation of nothing",
        nothing,
        f"{NEW} method.name=fixed method.permutation=1",
        2,
        ("method.groups",),
    ),
    Case(
        "low-rank: no wide network",
        nothing,
        f"{NEW} method.name=low-rank",
        2,
        ("give method.pretrained",),
    ),
    Case(
        "low-rank: has branched",
        nothing,
        f"{LOW_RANK}{RUN}",
        1,
        (RUN, "has branched", "method.name=fixed"),
    ),
    Case("low-rank: unfinished", unfinish, f"{LOW_RANK}{RUN}", 1, (RUN, "a finished run")),
    Case(
        "low-rank: other backbone",
        nothing,
        f"{NEW} method.name=low-rank method.pretrained=x",
        2,
        ("vgg16", "vgg9"),
    ),
    Case(
        "GPU asked for",
        nothing,
        f"{NEW} launch.device=cuda",
        1,
        ("launch.device=cuda", "launch.device=cpu"),
    ),
    Case(
        "GPU asked for, by two",
        nothing,
        f"{NEW} launch.device=cuda launch.workers=2",
        1,
        ("launch.device=cuda",),
    ),
    Case(
        "evaluate: absent", nothing, "evaluate runs/absent", 1, ("runs/absent", "distbranch train")
    ),
    Case(
        "evaluate: no run",
        nothing,
        "evaluate images",
        1,
        ("images", "neither a model nor a checkpoint"),
    ),
    Case(
        "evaluate: unknown split",
        nothing,
        f"evaluate {RUN} --split dev",
        1,
        ("'dev'", "test, train, val"),
    ),
    Case(
        "evaluate: data absent",
        nothing,
        f"evaluate {RUN} --data absent",
        1,
        ("absent", "does not exist"),
    ),
    Case(
        "evaluate: other tasks",
        change("data/dataset.json", '"name": "wide"', '"name": "broad"'),
        f"evaluate {RUN}",
        1,
        ("other tasks", RUN),
    ),
    Case(
        "evaluate: config lost",
        remove(f"{RUN}/config.yaml"),
        f"evaluate {RUN}",
        2,
        ("config.yaml", "does not exist"),
    ),
    Case(
        "evaluate: bad sample",
        cut("data/test-000000.tar", 700),
        f"evaluate {RUN}",
        1,
        ("test-000000.tar",),
    ),
    Case(
        "evaluate: nothing saved",
        both(unfinish, remove(f"{RUN}/checkpoints")),
        f"evaluate {RUN}",
        1,
        ("neither",),
    ),
    Case(
        "model cut",
        cut(f"{RUN}/model/model.safetensors", 500),
        f"evaluate {RUN}",
        1,
        ("model of", "damaged"),
    ),
    Case(
        "model lost",
        remove(f"{RUN}/model/model.safetensors"),
        f"evaluate {RUN}",
        1,
        ("model of", "model.safetensors: No such file"),
    ),
    Case(
        "model.json no JSON",
        put(f"{RUN}/model/model.json", "hello"),
        f"evaluate {RUN}",
        1,
        ("model of", "damaged"),
    ),
    Case(
        "model.json a list",
        put(f"{RUN}/model/model.json", "[]"),
        f"evaluate {RUN}",
        1,
        ("model of", "damaged"),
    ),
    Case(
        "model of another tree",
        change(f"{RUN}/model/model.json", '"name": "wide"', '"name": "bright"'),
        f"evaluate {RUN}",
        1,
        ("bright",),
    ),
    Case(
        "predict: run absent",
        nothing,
        "predict runs/absent photo.jpg",
        1,
        ("runs/absent", "distbranch train"),
    ),
    Case(
        "predict: image absent",
        nothing,
        f"predict {RUN} absent.jpg",
        1,
        ("absent.jpg", "does not exist"),
    ),
    Case(
        "predict: text", put("x.jpg", "hello"), f"predict {RUN} x.jpg", 1, ("x.jpg", "not an image")
    ),
    Case(
        "predict: image cut",
        cut("photo.jpg", 300),
        f"predict {RUN} photo.jpg",
        1,
        ("photo.jpg", "cannot be read"),
    ),
    Case(
        "predict: empty folder",
        lambda: Path("x").mkdir(),
        f"predict {RUN} x",
        1,
        ("no images", ".jpg"),
    ),
    Case(
        "predict: text among images, to a file",
        both(put("images/z.jpg", "hello"), put("scores.csv", "precious")),
        f"predict {RUN} images --format csv --out scores.csv",
        1,
        ("z.jpg", "not an image"),
    ),
    Case(
        "predict: unwritable",
        nothing,
        f"predict {RUN} photo.jpg --format csv --out photo.jpg/x.csv",
        1,
        ("photo.jpg/x.csv", "written"),
    ),
    Case(
        "export: run absent", nothing, "export runs/absent", 1, ("runs/absent", "distbranch train")
    ),
    Case(
        "export: unfinished", unfinish, f"export {RUN}", 1, (RUN, "not ended", "distbranch train")
    ),
    Case(
        "export: other task", nothing, f"export {RUN} --tasks wide,brigth", 1, ("brigth", "bright")
    ),
    Case("export: no task", nothing, f"export {RUN} --tasks ,", 1, ("no task ''",)),
    Case(
        "export: unknown format",
        nothing,
        f"export {RUN} --format xml",
        2,
        ("xml", "'onnx'", "'torch'"),
    ),
    Case(
        "export: unknown input",
        nothing,
        f"export {RUN} --input int4",
        2,
        ("int4", "'uint8'", "'float'"),
    ),
    Case(
        "export: other suffix",
        nothing,
        f"export {RUN} --out x.pt2",
        2,
        ("onnx", ".onnx", "x.pt2", "--format"),
    ),
    Case(
        "export: unwritable",
        nothing,
        f"export {RUN} --out photo.jpg/x.onnx",
        1,
        ("photo.jpg/x.onnx", "--out"),
    ),
    Case("export: a folder", nothing, f"export {RUN} --out images", 1, ("images", "--out")),
    Case(
        "predict: onnx absent",
        nothing,
        "predict absent.onnx photo.jpg",
        1,
        ("absent.onnx", "distbranch export"),
    ),
    Case(
        "predict: no onnx",
        put("x.onnx", "hello"),
        "predict x.onnx photo.jpg",
        1,
        ("x.onnx", "no ONNX file"),
    ),
    Case(
        "predict: threshold",
        nothing,
        f"predict {RUN} photo.jpg --threshold 5",
        2,
        ("--threshold", "1"),
    ),
    Case(
        "predict: unknown format",
        nothing,
        f"predict {RUN} photo.jpg --format xml",
        2,
        ("xml", "csv"),
    ),
    Case("report: run absent", nothing, "report runs/absent", 1, ("runs/absent", "does not exist")),
    Case("report: no run", nothing, "report images", 1, ("images", "config.yaml")),
    Case(
        "report: unwritable",
        nothing,
        f"report {RUN} --out photo.jpg/x.html",
        1,
        ("photo.jpg/x.html", "written"),
    ),
    Case(
        "report: tree damaged",
        cut(f"{RUN}/tree.json", 30),
        f"report {RUN}",
        1,
        ("tree.json", "damaged"),
    ),
    Case(
        "report: affinity cut",
        cut(f"{RUN}/affinity/round-01.npz", 200),
        f"report {RUN} --out x/x.html",
        1,
        ("round-01.npz", "cannot be read"),
    ),
)
TABLE_OF_CASES = CONFIGS + DATASETS + TABLES + RUNS


# ---- what must hold for each


def words_of(command: str) -> list[str]:
    """The arguments of a command line, `{a: b}` of an override being one."""
    words: list[str] = []
    for word in command.split(" "):
        if words and words[-1].count("{") > words[-1].count("}"):
            words[-1] += f" {word}"
        else:
            words.append(word)
    return words


@pytest.mark.parametrize("case", TABLE_OF_CASES, ids=lambda case: case.id)
def test_bad_input_ends_in_one_sentence_and_changes_nothing(case: Case, world: Path) -> None:
    case.spoil()
    if "cuda" in case.command and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with nothing_overwritten(world, case.makes):
        ended = run_command(words_of(case.command))
    assert_one_sentence(ended, case.code, case.words)


def test_the_table_has_at_least_forty_cases_with_names_of_their_own() -> None:
    names = [case.id for case in TABLE_OF_CASES]
    assert len(set(names)) == len(names) >= 40
