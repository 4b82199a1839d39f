"""How Ray's workers find each other: over the network interface that carries their node's address in the cluster.

Imports Ray, so only what runs under Ray may import it.
"""

import os

import ray
from ray.train.torch import TorchConfig

from distbranch.launch.interfaces import find_interface

# What is left of a process group one of whose ranks died cannot be left in order; Ray would wait 30 s for it before it
# kills the workers and starts new ones.
SECONDS_TO_LEAVE = "3"


def use_interface_of_node() -> None:
    """Else gloo takes the one the host name resolves to, which is often 127.0.0.1 and reaches no other host."""
    name = find_interface(ray.util.get_node_ip_address())
    if name is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
        os.environ.setdefault("NCCL_SOCKET_IFNAME", f"={name}")


class ClusterTorchConfig(TorchConfig):  # type: ignore[misc]  # Ray has no types
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
