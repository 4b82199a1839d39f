"""What is our own of Ray Train: which processes it starts, how its workers find each other, and how its controller ends.

Imports Ray, so only what runs under Ray may import it.
"""

import os
import threading
import time
from contextlib import suppress

import ray
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.execution.callback import ControllerCallback

from distbranch.engine.lost_ranks import LostRankError
from distbranch.launch.interfaces import find_interface
from distbranch.launch.on_ray.worker import ask_board

# What is left of a process group one of whose ranks died cannot be left in order; Ray would wait 30 s for it before it
# kills the workers and starts new ones.
SECONDS_TO_LEAVE = "3"
SECONDS_BETWEEN_LOOKS = 0.5


class LeanTrainer(TorchTrainer):  # type: ignore[misc]  # Ray has no types
    """Ray's trainer without processes that serve nothing here: each takes 2 s of a processor, and 100 MiB."""

    def _create_default_callbacks(self) -> list[object]:
        idle = {"DatasetsCallback"}  # our data are no datasets of Ray's
        if ray.get_runtime_context().get_actor_id() is None:
            # With a driver its placement groups end too; in a trial of a sweep they would outlive a controller that was killed.
            idle.add("PlacementGroupCleanerCallback")
        callbacks = super()._create_default_callbacks()
        return [callback for callback in callbacks if type(callback).__name__ not in idle]


def use_interface_of_node() -> None:
    """Else gloo takes the one the host name resolves to, which is often 127.0.0.1 and reaches no other host."""
    name = find_interface(ray.util.get_node_ip_address())
    if name is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
        os.environ.setdefault("NCCL_SOCKET_IFNAME", f"={name}")


class ClusterTorchConfig(TorchConfig):  # type: ignore[misc]
    """Ray's process group, over the right interface."""

    @property
    def backend_cls(self) -> type:
        """Called by Ray."""
        return ClusterTorchBackend


class ClusterTorchBackend(TorchConfig().backend_cls):  # type: ignore[misc]
    """Called by Ray whenever it starts the workers."""

    def on_start(self, worker_group: object, backend_config: TorchConfig) -> None:
        """Choose the interface in every worker, then make the process group."""
        os.environ.setdefault(
            "TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S", SECONDS_TO_LEAVE
        )  # read in this process, later
        worker_group.execute(use_interface_of_node)  # type: ignore[attr-defined]
        super().on_start(worker_group, backend_config)


class EndsWithBoard(ControllerCallback):  # type: ignore[misc]
    """Ends Ray's controller, and with it the workers and `fit` in the driver, when the board of its attempt is gone."""

    def __init__(self, attempt: str) -> None:
        self.attempt = attempt

    def after_controller_start(self, _: object) -> None:
        """Called by Ray in the controller's process."""
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        with suppress(LostRankError):
            while True:
                ask_board(self.attempt, "get", "stop")
                time.sleep(SECONDS_BETWEEN_LOOKS)
        os._exit(0)
