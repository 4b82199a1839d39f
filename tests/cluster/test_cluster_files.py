"""The files of cluster/ are what Ray's own schema, KubeRay's fields and our own command line accept."""

import json
import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml
from packaging.requirements import Requirement

from distbranch.config import Config, load_config

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


def check_fields(found: dict[str, Any], known: dict[str, Any], where: str) -> None:
    """Every field is a known one and of its type; of several values that are allowed it is one."""
    for key, value in found.items():
        assert key in known, f"{where} has no field {key}"
        if isinstance(known[key], tuple):
            assert value in known[key], (where, key)
        else:
            assert type(value) is known[key], (where, key)


# Of KubeRay's types RayJob and RayCluster (ray.io/v1, 1.5.1 to 1.7) what the file uses, and what KubeRay itself refuses.
RAYJOB = {
    "entrypoint": str,
    "submissionMode": ("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"),
    "shutdownAfterJobFinishes": bool,
    "ttlSecondsAfterFinished": int,
    "backoffLimit": int,
    "activeDeadlineSeconds": int,
    "rayClusterSpec": dict,
}
RAYCLUSTER = {
    "rayVersion": str,
    "authOptions": dict,
    "enableInTreeAutoscaling": bool,
    "autoscalerOptions": dict,
    "headGroupSpec": dict,
    "workerGroupSpecs": list,
}
AUTOSCALER = {
    "idleTimeoutSeconds": int,
    "upscalingMode": ("Default", "Aggressive", "Conservative"),
    "resources": dict,
}
HEAD_GROUP = {"rayStartParams": dict, "template": dict}
WORKER_GROUP = HEAD_GROUP | dict.fromkeys(("replicas", "minReplicas", "maxReplicas"), int)
WORKER_GROUP["groupName"] = str
TOLERATION = {
    "key": str,
    "operator": ("Exists", "Equal"),
    "effect": ("NoSchedule", "PreferNoSchedule", "NoExecute"),
}


def test_the_rayjob_has_the_fields_of_kuberay_and_demands_the_token() -> None:
    job = read("kuberay-rayjob.yaml")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    spec = job["spec"]
    check_fields(spec, RAYJOB, "RayJob")
    assert spec["activeDeadlineSeconds"] > 0
    assert spec["ttlSecondsAfterFinished"] >= 0
    assert spec["shutdownAfterJobFinishes"]
    cluster = spec["rayClusterSpec"]
    check_fields(cluster, RAYCLUSTER, "RayCluster")
    check_fields(cluster["autoscalerOptions"], AUTOSCALER, "autoscalerOptions")
    assert cluster["authOptions"] == {"mode": "token"}
    assert tuple(map(int, cluster["rayVersion"].split("."))) >= (2, 52, 0)
    check_fields(cluster["headGroupSpec"], HEAD_GROUP, "headGroupSpec")
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
        check_fields(group, WORKER_GROUP, "workerGroupSpecs")
        assert 0 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


def test_workers_of_the_rayjob_come_when_the_run_asks_for_them_onto_nodes_that_are_kept_for_gpus() -> (
    None
):
    spec = read("kuberay-rayjob.yaml")["spec"]
    cluster = spec["rayClusterSpec"]
    assert cluster["enableInTreeAutoscaling"]
    resolved = resolve_train(shlex.split(spec["entrypoint"]))
    assert resolved.launch.wait_for_nodes_min > 0  # else a cluster without workers refuses the run
    for group in cluster["workerGroupSpecs"]:
        assert group["minReplicas"] < group["maxReplicas"]
        tolerations = group["template"]["spec"]["tolerations"]
        for toleration in tolerations:
            check_fields(toleration, TOLERATION, "tolerations")
        assert "nvidia.com/gpu" in [one["key"] for one in tolerations]


def resolve_train(command: list[str]) -> Config:
    """The configuration of a command line whose config file is that of the image."""
    program, name, config, *overrides = command
    assert (program, name) == ("distbranch", "train")
    return load_config(TOP / config.removeprefix("/opt/distbranch/"), overrides)


def test_the_command_of_the_rayjob_is_one_of_ours_and_asks_for_the_gpus_that_are_there() -> None:
    spec = read("kuberay-rayjob.yaml")["spec"]
    resolved = resolve_train(shlex.split(spec["entrypoint"]))
    workers = [
        (group["maxReplicas"], group["template"]["spec"]["containers"][0]["resources"]["limits"])
        for group in spec["rayClusterSpec"]["workerGroupSpecs"]
    ]
    gpus = sum(replicas * int(limits["nvidia.com/gpu"]) for replicas, limits in workers)
    assert resolved.launch.workers == gpus
    assert resolved.launch.address == "auto"
    assert resolved.run.directory.startswith("/shared/")


def test_ray_starts_nodes_on_aws_from_an_image_of_their_region_and_installs_nothing_in_ours() -> (
    None
):
    from ray.autoscaler._private.util import prepare_config

    text = (CLUSTER / "ray-aws.yaml").read_text()
    content = read("ray-aws.yaml")
    region = content["provider"]["region"]
    assert f"aws ssm get-parameter --region {region} " in text
    for kind in content["available_node_types"].values():
        assert (
            kind["node_config"]["ImageId"] == "AMI"
        )  # an id of ours would be of one region and soon too old
    prepared = prepare_config(content)
    for key in ("setup_commands", "head_setup_commands", "worker_setup_commands"):
        assert prepared[key] == []
    assert "--gpus all" in content["docker"]["worker_run_options"]
    assert "2049" in text


def run_with(stand_ins: Path, command: str, **environment: str) -> list[str]:
    """Run a shell line with these programs in place of all others but the shell's own; what they were called with."""
    called = stand_ins / "called"
    called.write_text("")
    subprocess.run(
        ["/bin/bash", "-euc", command],
        env={"PATH": str(stand_ins), "CALLED": str(called), **environment},
        check=True,
    )
    return called.read_text().splitlines()


def make_stand_in(folder: Path, name: str, code: int = 0) -> None:
    program = folder / name
    program.write_text(f'#!/bin/bash\necho "{name} $*" >> "$CALLED"\nexit {code}\n')
    program.chmod(0o755)


def test_a_node_on_aws_mounts_the_shared_folder_once_by_nfs_with_what_ubuntu_has(
    tmp_path: Path,
) -> None:
    content = read("ray-aws.yaml")
    lines = " ; ".join(f"( {line} )" for line in content["initialization_commands"])
    make_stand_in(tmp_path, "sudo")
    make_stand_in(tmp_path, "mountpoint", code=1)
    first = run_with(tmp_path, lines)
    assert [line.split()[-1] for line in first if " install " in line] == ["nfs-common"]
    mounts = [line.split() for line in first if line.startswith("sudo mount ")]
    ((*_, kind, _, options, source, target),) = mounts
    assert kind == "nfs4"
    assert {"nfsvers=4.1", "hard", "noresvport"} <= set(options.split(","))
    region = content["provider"]["region"]
    assert re.fullmatch(rf"fs-0+\.efs\.{region}\.amazonaws\.com:/", source)
    assert target == "/shared"

    make_stand_in(tmp_path, "mount.nfs4")
    make_stand_in(tmp_path, "mountpoint")
    assert run_with(tmp_path, lines) == ["sudo mkdir -p /shared", "mountpoint -q /shared"]


# Of SkyPilot's task and resources (0.14) what the file uses.
SKY_TASK = {"name": str, "resources": dict, "num_nodes": int, "envs": dict, "run": str}
SKY_RESOURCES = {
    "image_id": str,
    "accelerators": dict,
    "use_spot": bool,
    "disk_size": int,
    "job_recovery": dict,
}


def test_the_skypilot_file_has_its_fields_and_starts_a_rank_per_gpu_of_every_node(
    tmp_path: Path,
) -> None:
    task = read("skypilot.yaml")
    check_fields(task, SKY_TASK, "task")
    check_fields(task["resources"], SKY_RESOURCES, "resources")
    check_fields(task["resources"]["job_recovery"], {"max_restarts_on_errors": int}, "job_recovery")
    assert task["resources"]["image_id"] == "docker:" + read("ray-aws.yaml")["docker"]["image"]

    make_stand_in(tmp_path, "torchrun")
    (tmp_path / "head").symlink_to(str(shutil.which("head")))
    given = {
        **task["envs"],
        "BUCKET": "s3://mine",
        "SKYPILOT_NUM_NODES": "2",
        "SKYPILOT_NODE_RANK": "1",
        "SKYPILOT_NUM_GPUS_PER_NODE": "4",
        "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2",
    }
    (called,) = run_with(tmp_path, task["run"], **given)
    torchrun, _, ours = called.partition(" -m ")
    assert torchrun == (
        "torchrun --nnodes 2 --node-rank 1 --nproc-per-node 4 --master-addr 10.0.0.1 --master-port 29500"
    )
    resolved = resolve_train(ours.split())
    assert resolved.launch.workers == 1  # which takes whatever torchrun starts
    assert resolved.run.directory == "s3://mine/runs"
    assert resolved.data.path == "s3://mine/data/celeba"


def read_arguments() -> dict[str, str]:
    """The build arguments of the image with their defaults."""
    return dict(re.findall(r"^ARG (\w+)=(.*)$", (CLUSTER / "Dockerfile").read_text(), re.M))


def test_the_image_and_the_rayjob_have_one_version_of_ray_that_the_package_takes() -> None:
    arguments = read_arguments()
    cluster = read("kuberay-rayjob.yaml")["spec"]["rayClusterSpec"]
    assert arguments["RAY"] == cluster["rayVersion"]
    project = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]
    bounds = {one.name: one.specifier for one in map(Requirement, project["dependencies"])}
    assert arguments["RAY"] in bounds["ray"]
    assert arguments["TORCH"] in bounds["torch"]


def test_the_image_is_for_gpus_unless_another_index_is_named_and_proves_its_imports() -> None:
    text = (CLUSTER / "Dockerfile").read_text()
    arguments = read_arguments()
    # torch's own build brings CUDA along; a base with CUDA would bring it twice, and a torch of its own
    assert arguments["TORCH_INDEX"] == ""
    assert arguments["BASE"].startswith("python:")
    assert '${TORCH_INDEX:+--index-url ${TORCH_INDEX}} "torch==${TORCH}"' in text
    assert 'python -c "import torch, ray, distbranch"' in text


def test_a_dashboard_that_others_reach_comes_with_a_word_about_trust_and_the_token() -> None:
    sections = [part for file in CLUSTER.iterdir() for part in file.read_text().split("\n## ")]
    open_ones = [part for part in sections if "0.0.0.0" in part]
    assert len(open_ones) >= 2
    for part in open_ones:
        assert "trust" in part, part
        assert "token" in part, part


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
