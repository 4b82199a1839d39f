"""Parts of GPUs by MIG on a cluster that is started here: Ray would count whole GPUs, and give each worker but one none."""

import os

import pytest

from distbranch.config import LaunchConfig
from distbranch.launch.on_ray.cluster import open_cluster


def test_every_worker_gets_a_part_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = {"MIG-6e1f3a40", "MIG-6e1f3a41"}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", ",".join(sorted(parts)))
    with open_cluster(LaunchConfig(address="local", workers=2)):
        import ray

        @ray.remote(num_gpus=1, num_cpus=0)
        class Worker:
            def read_device(self) -> str:
                return os.environ["CUDA_VISIBLE_DEVICES"]

        workers = [Worker.remote() for _ in parts]
        assert set(ray.get([worker.read_device.remote() for worker in workers])) == parts
