"""Runs that are one until they decide differently: one of them, the leader, trains for its relatives too.

At every decision the leader asks what each relative would decide from the same statistics. Those that agree stay with it;
those that do not leave, each group into the run directory of its first member, with the state as it was before the decision.
From there it is resumed as any run, as the leader of the rest of its group.

Everything stands in run directories: `family.json` names the relatives that are still with a run and where its own
beginning is from, and `relatives/<name>/` holds what will differ in the directory of each: decisions.jsonl and affinities.
"""

import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

import numpy as np

from distbranch.branching.affinity import AffinityStats
from distbranch.branching.tree import Split
from distbranch.config import Config, MethodConfig
from distbranch.engine.affinities import MEASURED, MeasuredAffinity
from distbranch.engine.checkpoint import Checkpoint, save_checkpoint
from distbranch.engine.round_decision import RoundDecision, decide_round
from distbranch.engine.run_directory import (
    RunDirectory,
    append_line,
    created_atomically,
    write_json,
)
from distbranch.engine.run_start import write_config
from distbranch.models.architecture import Architecture
from distbranch.models.network import Network


@dataclass(frozen=True)
class Origin:
    """The beginning that a run has from another one: of which run, how many steps, and the seconds they took."""

    run: str
    iteration: int
    seconds: float


class Family:
    """A run and its relatives, which are the same run so far. Only rank 0 calls its methods.

    Args:
        config: of the leader, whose run directory says who its relatives are; a run alone has none.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.files = RunDirectory(config.run_directory)
        self.relatives, self.origin = read_family(self.files)
        self._own: RoundDecision
        self._decisions: dict[str, RoundDecision] = {}
        self._leaving: list[list[str]] = []

    @property
    def measured_kinds(self) -> list[str]:
        """The kinds of affinity by which the run, or a relative, decides and that are measured for it."""
        methods = [self.config.method, *self.relatives.values()]
        kinds = dict.fromkeys(method.affinity for method in methods)
        return [kind for kind in kinds if kind in MEASURED]

    def decide_round(
        self,
        stats: AffinityStats,
        architecture: Architecture,
        network: Network | None = None,
        measured: Mapping[str, MeasuredAffinity] | None = None,
    ) -> tuple[Split | None, bool, bool]:
        """The leader's split, whether another round follows, and whether some relatives must leave (`send_off_leavers`)."""
        methods = [self.config.method, *self.relatives.values()]
        self._own, *others = decide_round(
            stats,
            architecture,
            methods,
            seed=self.config.seed,
            network=network,
            measured=measured,
        )
        self._decisions = dict(zip(self.relatives, others, strict=True))

        # Runs stay together as long as training does: a record may differ (another price) where the split does not.
        own_course = (self._own.split, self._own.grows)
        groups: dict[Any, list[str]] = {own_course: []}
        for name, decision in self._decisions.items():
            groups.setdefault((decision.split, decision.grows), []).append(name)
        del groups[own_course]
        self._leaving = list(groups.values())
        return *own_course, bool(self._leaving)

    def send_off_leavers(self, checkpoint: Checkpoint) -> list[list[str]]:
        """Send off those who leave, with the state as it was before the decision; returns the names of every group.

        A group that has its directory already was sent off before this run was killed and resumed from an earlier step.
        The family is written anew when all have left, and before the leader's next checkpoint: so at any moment a member
        has a directory, or a leader that will come past the decision at which it leaves.
        """
        for first, *others in self._leaving:
            config = make_member_config(self.config, first, self.relatives[first])
            if not RunDirectory(config.run_directory).config.exists():
                self._send_off(config, others, checkpoint)
        gone = list(chain.from_iterable(self._leaving))
        for name in gone:
            del self.relatives[name]
        write_family(self.files, self.relatives, self.origin)
        for name in gone:
            shutil.rmtree(self.files.relatives / name, ignore_errors=True)
        return self._leaving

    def record_decision(self, line: dict[str, Any]) -> dict[str, Any]:
        """Write the matrices of a decision, and return `line` with all that decided it.

        Every relative gets its own form of the line, and of the matrices where they differ.
        """
        file = self.files.affinity / f"round-{line['round']:02d}.npz"
        line["affinity_file"] = str(file.relative_to(self.files.path))
        file.parent.mkdir(exist_ok=True)
        np.savez(file, allow_pickle=False, **self._own.matrices)
        for name, method in self.relatives.items():
            files = RunDirectory(self.files.relatives / name)
            files.affinity.mkdir(parents=True, exist_ok=True)
            decision = self._decisions[name]
            if method.affinity != self.config.method.affinity:  # else the leader's file is copied
                np.savez(
                    files.path / line["affinity_file"], allow_pickle=False, **decision.matrices
                )
            append_line(files.decisions, line | decision.record)
        return line | self._own.record

    def _send_off(self, config: Config, others: Iterable[str], checkpoint: Checkpoint) -> None:
        progress = checkpoint.state["progress"]
        origin = Origin(self.files.path.name, progress["iteration"], progress["seconds"])
        # It appears whole, or the leader meets this decision again and sends the group off then.
        with created_atomically(config.run_directory) as files:
            copy_as(config, self.files, files)
            for name in others:
                if (self.files.relatives / name).exists():
                    shutil.copytree(self.files.relatives / name, files.relatives / name)
            write_family(files, {name: self.relatives[name] for name in others}, origin)
            save_checkpoint(files.checkpoints, progress["iteration"], checkpoint, keep=1)


def make_member_config(leader: Config, name: str, method: MethodConfig) -> Config:
    """The configuration of one of the leader's relatives."""
    run = leader.run.model_copy(update={"name": name})
    return leader.model_copy(update={"run": run, "method": method})


def read_family(files: RunDirectory) -> tuple[dict[str, MethodConfig], Origin | None]:
    """The relatives that are still with a run, by name, and where its beginning is from; nothing for a run alone."""
    if not files.family.exists():
        return {}, None
    values = json.loads(files.family.read_text(encoding="utf-8"))
    relatives = {
        name: MethodConfig.model_validate(method) for name, method in values["relatives"].items()
    }
    origin = None
    if values["origin"] is not None:
        origin = Origin(**values["origin"])
    return relatives, origin


def write_family(
    files: RunDirectory, relatives: Mapping[str, MethodConfig], origin: Origin | None
) -> None:
    """The inverse of `read_family`."""
    values: dict[str, Any] = {"relatives": {}, "origin": None}
    for name, method in relatives.items():
        values["relatives"][name] = method.model_dump(mode="json")
    if origin is not None:
        values["origin"] = asdict(origin)
    write_json(files.family, values)


def copy_as(config: Config, leader: RunDirectory, files: RunDirectory) -> None:
    """Fill the directory `files` with what the run `config`, a relative of `leader`, would have written so far by itself."""
    for file in (*leader.provenance, leader.from_run, leader.tree, leader.metrics):
        if file.exists():
            shutil.copy(file, files.path)
    # First the leader's matrices, then what differs in this run: the order decides which of two files of a name stays.
    own_part = leader.relatives / config.run_directory.name
    for folder, target in ((leader.affinity, files.affinity), (own_part, files.path)):
        if folder.exists():
            shutil.copytree(folder, target, dirs_exist_ok=True)
    write_config(files, config)
