"""`distbranch serve`: an exported file behind HTTP, by Ray Serve in a Ray of its own that ends with it.

Ray Serve gives what is the same for every model: replicas that are started anew, batches, health at `/-/healthz`, metrics.
"""

import logging
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from distbranch.config import LaunchConfig
from distbranch.engine.cores import num_cores
from distbranch.errors import UsageError, UserError, reason_of
from distbranch.export import SUFFIXES
from distbranch.extras import require
from distbranch.launch.on_ray.cluster import open_cluster
from distbranch.launch.processes import find_free_port
from distbranch.launch.stopping import StopRequest

SECONDS_BETWEEN_LOOKS = 0.2
LONGEST_QUEUE = (
    96  # requests at a replica at a time: three batches, one that is answered and two that fill
)
APPLICATION = "distbranch"


def serve_file(
    file: Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    replicas: int = 1,
    max_megabytes: float = 20,
    plugins: Sequence[str] = (),
    say: Callable[[str], None],
) -> None:
    """Serve an exported file until a signal asks to stop.

    Args:
        file: that `distbranch export --format onnx` wrote.
        host: an address of this machine; `0.0.0.0` for all of them.
        port: of it.
        replicas: processes that answer; they share the cores.
        max_megabytes: of a request.
        plugins: absolute paths, or modules, that bring the kinds of the file's tasks.
        say: called with a line when requests are answered.

    Raises:
        UserError: a package is absent, the file is none that can be served, the port is taken, or Ray cannot be started.
    """
    if file.suffix.lower() != SUFFIXES["onnx"]:
        raise UsageError(
            f"What is served is an .onnx file, found {file}. Write one: `distbranch export RUN --out mine.onnx`."
        )
    for package in ("onnxruntime", "starlette", "uvicorn", "python_multipart"):
        require(package, "serve", "distbranch serve")
    from distbranch.export.onnx_model import OnnxModel

    # Before Ray is started, which takes seconds.
    num_tasks = OnnxModel(file).tasks.num_tasks
    _check_port(host, port)
    metrics_port = find_free_port()
    request = StopRequest()
    alone = LaunchConfig(address="local")
    with request.receive_signals(), open_cluster(alone, metrics_port=metrics_port):
        from ray import serve
        from ray.serve.config import HTTPOptions

        from distbranch.launch.on_ray.image_server import ImageServer

        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        arguments = {
            "most_bytes": int(max_megabytes * 1e6),
            "plugins": list(plugins),
            "num_threads": max(1, num_cores() // replicas),
        }
        # Threads share the cores already; for more replicas than cores Ray would wait for ever.
        deployment = serve.deployment(
            ImageServer,
            num_replicas=replicas,
            ray_actor_options={"num_cpus": 0},
            max_ongoing_requests=LONGEST_QUEUE,
        )
        serve.start(http_options=HTTPOptions(host=host, port=port))
        serve.run(
            deployment.bind(str(file.absolute()), **arguments),
            name=APPLICATION,
            logging_config={"enable_access_log": False},
        )
        say(
            f"{file}: {num_tasks} tasks at http://{host}:{port}/, health at /-/healthz, metrics for Prometheus at "
            f"http://127.0.0.1:{metrics_port}/metrics; Ctrl-C ends it"
        )
        while not request():
            time.sleep(SECONDS_BETWEEN_LOOKS)
        serve.delete(APPLICATION)  # requests that have begun are answered


def _check_port(host: str, port: int) -> None:
    try:
        with socket.create_server((host, port)):
            pass
    except OSError as error:
        reason, _, _ = reason_of(error).partition(" (")
        raise UserError(
            f"Nothing can be served at {host}:{port} ({reason}). Give another --port, or a --host of this machine."
        ) from None
