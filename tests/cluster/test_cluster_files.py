"""The files of cluster/ are what Ray's own schema, KubeRay's fields and our own command line accept."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml

from distbranch.config import load_config

TOP = Path(__file__).resolve().parents[2]
CLUSTER = TOP / "cluster"
AUTOSCALER_FILES = ("ray-aws.yaml", "ray-on-premise.yaml")


def read(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((CLUSTER / name).read_text())
    return content


@pytest.mark.parametrize("name", AUTOSCALER_FILES)
def test_ray_prepares_a_file_of_the_autoscaler_and_finds_it_valid_under_its_schema(
    name: str,
) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(read(name))
    validate_config(prepared)
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    jsonschema.validate(
        {key: value for key, value in prepared.items() if key in schema["properties"]}, schema
    )
    with pytest.raises(jsonschema.ValidationError, match="cluster_nam"):
        validate_config({**prepared, "cluster_nam": "x"})
    types = prepared["available_node_types"]
    assert prepared["head_node_type"] in types
    assert sum(kind["max_workers"] for kind in types.values()) > 0


@pytest.mark.parametrize("name", AUTOSCALER_FILES)
def test_every_node_of_the_autoscaler_starts_ray_with_a_token(name: str) -> None:
    content = read(name)
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        starts = [command for command in content[key] if "ray start" in command]
        assert len(starts) == 1
        assert "RAY_AUTH_MODE=token" in starts[0]
        assert "RAY_AUTH_TOKEN_PATH=" in starts[0]
        assert ("--head" in starts[0]) == (key == "head_start_ray_commands")
        if (
            "docker" in content
        ):  # Ray itself binds what it mounts into the container, and knows no other file of the node
            assert re.findall(r"RAY_AUTH_TOKEN_PATH=(\S+)", starts[0]) == list(
                content["file_mounts"]
            )


def test_the_rayjob_has_the_structure_of_kuberay_and_demands_the_token() -> None:
    job = read("kuberay-rayjob.yaml")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    spec = job["spec"]
    fields = {
        "entrypoint",
        "submissionMode",
        "shutdownAfterJobFinishes",
        "ttlSecondsAfterFinished",
        "backoffLimit",
    }
    assert set(spec) == fields | {"rayClusterSpec"}
    cluster = spec["rayClusterSpec"]
    assert set(cluster) == {"rayVersion", "authOptions", "headGroupSpec", "workerGroupSpecs"}
    assert cluster["authOptions"] == {"mode": "token"}
    assert tuple(map(int, cluster["rayVersion"].split("."))) >= (2, 52, 0)
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for group in groups:
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        pod = group["template"]["spec"]
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        (container,) = pod["containers"]
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        assert volumes[mounts["/dev/shm"]]["emptyDir"]["medium"] == "Memory"
        assert "persistentVolumeClaim" in volumes[mounts["/shared"]]
        assert container["resources"]["limits"] == container["resources"]["requests"]
    for group in cluster["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        assert set(group) == {
            "groupName",
            "replicas",
            "minReplicas",
            "maxReplicas",
            "rayStartParams",
            "template",
        }


def test_the_command_of_the_rayjob_is_one_of_ours_and_asks_for_the_gpus_that_are_there() -> None:
    spec = read("kuberay-rayjob.yaml")["spec"]
    program, command, config, *overrides = shlex.split(spec["entrypoint"])
    assert (program, command) == ("distbranch", "train")
    resolved = load_config(TOP / config.removeprefix("/opt/distbranch/"), overrides)
    workers = [
        (group["replicas"], group["template"]["spec"]["containers"][0]["resources"]["limits"])
        for group in spec["rayClusterSpec"]["workerGroupSpecs"]
    ]
    gpus = sum(replicas * int(limits["nvidia.com/gpu"]) for replicas, limits in workers)
    assert resolved.launch.workers == gpus
    assert resolved.launch.address == "auto"
    assert resolved.run.directory.startswith("/shared/")


def test_the_image_copies_what_exists_and_holds_no_token() -> None:
    lines = (CLUSTER / "Dockerfile").read_text().splitlines()
    for line in lines:
        if line.startswith("COPY "):
            *sources, _ = line.split()[1:]
            for source in sources:
                assert (TOP / source).exists(), source
    assert not re.search(r"RAY_AUTH_TOKEN=", "\n".join(lines))


def test_every_file_of_the_folder_is_named_in_its_readme() -> None:
    readme = (CLUSTER / "README.md").read_text()
    for file in CLUSTER.iterdir():
        if file.name != "README.md":
            assert file.name in readme, f"cluster/README.md does not name {file.name}"
