"""A real Slurm of two nodes on this machine, without systemd: munged, slurmctld and two slurmd, in one folder.

Node n2 has a mount namespace of its own, in which the folder `only-n1` is empty: storage that not all nodes see. As on a site,
tasks are bound to the cores of their job, each job has a TMPDIR of its own with a long name, memory and the (made up) GPUs
of n1 are counted, and partitions are closed to some. Both nodes have all cores of this machine, which up to four jobs share.
"""

import ctypes
import os
import secrets
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import psutil
from rank_server import free_port

PROGRAMS = (
    "munged",
    "slurmctld",
    "slurmd",
    "sbatch",
    "squeue",
    "scontrol",
    "scancel",
    "unshare",
    "mount",
)
NODES = ("n1", "n2")
NUM_GPUS = 2
MIB_PER_NODE = 64_000
MUNGED, SLURMCTLD, SLURMD = "/usr/sbin/munged", "/usr/sbin/slurmctld", "/usr/sbin/slurmd"

# Of a site all but the intervals: with Slurm's own a requeue takes minutes.
CONFIG = """
ClusterName=tiny
SlurmctldHost=localhost(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CryptoType=crypto/munge
SlurmctldPort={slurmctld_port}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/affinity
TaskPluginParam=autobind=cores
Prolog={folder}/prolog
TaskProlog={folder}/task-prolog
Epilog={folder}/epilog
GresTypes=gpu
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=1000
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
EnforcePartLimits=ALL
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,sched_min_interval=0,bf_interval=2
SlurmctldParameters=preempt_send_user_signal
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmdParameters=config_overrides
ReturnToService=2
SlurmdTimeout=20
KillWait=30
MessageTimeout=10
MinJobAge=600
{nodes}
PartitionName=DEFAULT Nodes=n1,n2 MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=60 OverSubscribe=FORCE:4
PartitionName=main Default=YES
PartitionName=short MaxTime=30
PartitionName=project AllowAccounts=physics
PartitionName=closed AllowGroups=root
PartitionName=urgent PriorityTier=10 PreemptMode=OFF OverSubscribe=NO
"""
# The TMPDIR of a job is longer than a socket's path may be. What it holds at the end of the job is written down.
TEMPORARY = "{folder}/local-disk-of-the-node/$SLURMD_NODENAME/temporary-files-of-user-root/job-$SLURM_JOB_ID"
SCRIPTS = {
    "prolog": f'mkdir -p "{TEMPORARY}"',
    "task-prolog": f'echo "export TMPDIR={TEMPORARY}"',
    "epilog": f'find "{TEMPORARY}" -mindepth 1 >> {{folder}}/left-of-$SLURM_JOB_ID; rm -rf "{TEMPORARY}"',
}


def missing() -> str:
    """Why no Slurm can be started here; empty if it can."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    absent = [program for program in PROGRAMS if shutil.which(program, path=path) is None]
    if absent:
        return f"a real Slurm needs {', '.join(absent)} (apt-get install slurm-wlm munge)"
    if os.cpu_count() == 1:
        return "jobs of two cores need a machine with two"
    return "" if os.geteuid() == 0 else "a real Slurm on this machine needs root"


class SlurmWorld:
    """Two nodes, the partitions `main` (can be preempted) and `urgent`, others that refuse; `stop` ends what was started here."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.hidden = folder / "only-n1"
        self.hidden.mkdir(parents=True)
        self.configuration = folder / "slurm.conf"
        self.environment = {"SLURM_CONF": str(self.configuration)}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        (folder / "state").mkdir()
        self._write_configuration()

    def start(self) -> None:
        """Start all daemons and wait until both nodes are idle."""
        key = self.folder / "munge.key"
        key.write_bytes(secrets.token_bytes(1024))
        key.chmod(0o600)
        self.start_munge()
        self.start_controller()
        for node in NODES:
            self.start_node(node)
        self.wait_for(
            lambda: self.state_of("n1") == self.state_of("n2") == "idle", "both nodes to be idle"
        )

    def start_munge(self) -> None:
        """Start the daemon of munge, with a key and a socket in this world's folder."""
        files = {
            "key-file": "munge.key",
            "socket": "munge.socket",
            "log-file": "munged.log",
            "pid-file": "munged.pid",
        }
        options = [f"--{option}={self.folder / name}" for option, name in files.items()]
        seed = f"--seed-file={self.folder / 'munge.seed'}"
        self._start("munged", [MUNGED, "--foreground", "--force", seed, *options])
        self.wait_for((self.folder / "munge.socket").exists, "the socket of munge")

    def start_controller(self) -> None:
        """Start (again) the daemon that keeps the queue."""
        self._start("slurmctld", [SLURMCTLD, "-D", "-f", str(self.configuration)])

    def start_node(self, node: str) -> None:
        """Start (again) the daemon of one node."""
        command = [SLURMD, "-D", "-N", node, "-f", str(self.configuration)]
        if node == "n2":
            hide = 'mount -t tmpfs none "$0" && exec "$@"'
            command = [
                "unshare",
                "--mount",
                "--propagation",
                "private",
                "sh",
                "-c",
                hide,
                str(self.hidden),
                *command,
            ]
        self._start(node, command)

    def kill_node(self, node: str) -> None:
        """kill -9 of a node's daemon and of all that runs under it, as when its power fails."""
        belongs = {"SLURMD_NODENAME": node, "SLURM_CONF": str(self.configuration)}
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                given = process.environ()
                if all(given.get(key) == value for key, value in belongs.items()):
                    above = [one for one in process.parents() if one.name() == "slurmstepd"]
                    for one in (*above, process):
                        one.kill()
        daemon = self.processes.pop(node)
        daemon.kill()
        daemon.wait()

    def stop(self) -> None:
        """End all jobs, then the daemons."""
        self.run("scancel", "--full", "--user=root", check=False)
        with suppress(TimeoutError):
            self.wait_for(
                lambda: not self.run("squeue", "-h").strip(), "the queue to be empty", timeout_s=45
            )
        for name in reversed(list(self.processes)):
            self.stop_daemon(name)

    def stop_daemon(self, name: str) -> None:
        """End one daemon."""
        daemon = self.processes.pop(name)
        daemon.send_signal(signal.SIGTERM)
        try:
            daemon.wait(timeout=10)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()

    def run(self, *command: str, check: bool = True, timeout_s: float = 60) -> str:
        """The output of one of Slurm's own commands."""
        ended = subprocess.run(
            command,
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        assert not check or ended.returncode == 0, f"{' '.join(command)}: {ended.stderr}"
        return ended.stdout

    def state_of(self, node: str) -> str:
        """Of a node: idle, mixed, allocated, down, ..."""
        return self.run("sinfo", "-h", "-n", node, "-p", "urgent", "-o", "%T", check=False).strip()

    def job(self, number: str) -> dict[str, str]:
        """What `scontrol show job` says."""
        words = self.run("scontrol", "show", "job", "-o", number).split()
        return dict(word.partition("=")[::2] for word in words if "=" in word)

    def left_of(self, job: str) -> list[str]:
        """What a job has left in the TMPDIRs of its nodes when it ended."""
        return (self.folder / f"left-of-{job}").read_text().splitlines()

    def wait_for(self, holds: Callable[[], bool], what: str, *, timeout_s: float = 60) -> None:
        """Wait until something holds.

        Raises:
            TimeoutError: naming `what`, with the ends of the daemons' logs.
        """
        end = time.monotonic() + timeout_s
        while not holds():
            if time.monotonic() > end:
                logs = [
                    f"{file.name}: {file.read_text()[-1500:]}"
                    for file in sorted(self.folder.glob("*.log"))
                ]
                raise TimeoutError("\n".join([f"waited {timeout_s} s for {what}", *logs]))
            time.sleep(0.2)

    def _start(self, name: str, command: Sequence[str]) -> None:
        with (self.folder / f"{name}.out").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                command,
                env={**os.environ, **self.environment},
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )

    def _write_configuration(self) -> None:
        here = f"NodeHostname=localhost NodeAddr=127.0.0.1 CPUs={os.cpu_count()} RealMemory={MIB_PER_NODE} State=UNKNOWN"
        resources = {"n1": f"Gres=gpu:{NUM_GPUS}", "n2": ""}
        nodes = "\n".join(
            f"NodeName={node} Port={free_port()} {here} {resources[node]}" for node in NODES
        )
        values = {"folder": self.folder, "slurmctld_port": free_port(), "nodes": nodes}
        self.configuration.write_text(CONFIG.format(**values))
        for name, command in SCRIPTS.items():
            script = self.folder / name
            script.write_text(f"#!/bin/sh\n{command.format(folder=self.folder)}\n")
            script.chmod(0o755)
        for number in range(NUM_GPUS):  # Slurm asks for a device: one like /dev/null
            os.mknod(self.folder / f"gpu{number}", 0o600 | stat.S_IFCHR, os.makedev(1, 3))
        (self.folder / "gres.conf").write_text(
            f"NodeName=n1 Name=gpu File={self.folder}/gpu[0-{NUM_GPUS - 1}]\n"
        )


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: no daemon outlives the tests
