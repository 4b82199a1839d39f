"""Questions about jobs to the dashboard of a Ray cluster, by plain HTTP: Ray's own client takes seconds to load.

Jobs are submitted by that client all the same (`address.open_job_client`), for it uploads the source.
"""

import http.client
import json
import os
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from distbranch.errors import UserError, reason_of
from distbranch.launch.on_ray.address import explain_silence, explain_token, shorten

SECONDS_TO_ANSWER = 10.0
NOT_KNOWN_HERE = (401, 403)  # without the token of the cluster


class JobClient:
    """Asks the dashboard at `address`, such as http://HEAD:8265, about jobs of its cluster; the first question shows if it answers."""

    def __init__(self, address: str, *, timeout_s: float = SECONDS_TO_ANSWER) -> None:
        self.address, self.timeout_s = address.rstrip("/"), timeout_s

    def get_job_status(self, job_id: str) -> str:
        """`PENDING`, `RUNNING`, `STOPPED`, `SUCCEEDED` or `FAILED`.

        Raises:
            UserError: nobody answers, or the token is wrong.
            RuntimeError: the dashboard refuses, such as a job that it does not know (`status code 404`).
        """
        return str(self._ask(f"/api/jobs/{job_id}")["status"])

    def list_job_statuses(self) -> dict[str, str]:
        """The status of every job that was submitted to the cluster, by its name."""
        return {one["submission_id"]: one["status"] for one in self._ask("/api/jobs/")}

    def get_job_logs(self, job_id: str) -> str:
        """What a job has said."""
        return str(self._ask(f"/api/jobs/{job_id}/logs")["logs"])

    def stop_job(self, job_id: str) -> bool:
        """Ask a job to end; it has RAY_JOB_STOP_WAIT_TIME_S to save everything."""
        return bool(self._ask(f"/api/jobs/{job_id}/stop", method="POST")["stopped"])

    def _ask(self, path: str, method: str = "GET") -> Any:
        request = urllib.request.Request(self.address + path, method=method, headers=_read_token())
        try:
            with urllib.request.urlopen(request, timeout=self.timeout_s) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError as error:
            if error.code in NOT_KNOWN_HERE:
                raise UserError(explain_token(self.address)) from None
            said = shorten(error.read().decode(errors="replace"))
            raise RuntimeError(f"Request failed with status code {error.code}: {said}.") from None
        # No answer, or that of something else.
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise UserError(explain_silence(self.address, reason_of(error))) from None


def ask_ray_job(question: str, address: str, job_id: str) -> str:
    """What the cluster answers to `get_job_logs` or `stop_job` (which lets the job save everything first).

    Raises:
        UserError: the cluster does not answer, or knows no such job.
    """
    try:
        return str(getattr(JobClient(address), question)(job_id))
    except RuntimeError as error:
        raise UserError(
            f"The Ray cluster {address} knows nothing of the job {job_id} ({shorten(error)})."
        ) from None


def _read_token() -> dict[str, str]:
    """The header that shows the token which the environment names, or Ray's own file; none where there is none.

    Raises:
        UserError: the file of the token cannot be read.
    """
    if os.environ.get("RAY_AUTH_MODE", "").lower() == "disabled":
        return {}
    token = os.environ.get("RAY_AUTH_TOKEN", "")
    given = os.environ.get("RAY_AUTH_TOKEN_PATH")
    file = Path(given or os.path.expanduser("~/.ray/auth_token"))
    if not token and (given or file.is_file()):
        try:
            token = file.read_text().strip()
        except OSError as error:
            raise UserError(
                f"The file of the Ray token {file} cannot be read ({reason_of(error)}). Put the token there."
            ) from None
    return {"Authorization": f"Bearer {token}"} if token else {}
