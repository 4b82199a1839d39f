"""Commands as a user for whom the modes of files count, which they do not for the root that tests may run as; without HOME or a name."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tiny_world import Ended

HERE = Path(__file__).resolve().parent
USER = 12345  # has no entry in passwd
RUN_ALL = """
import json, os, sys
sys.path[:0] = [{here!r}, {project!r}]
from dataclasses import asdict
from tiny_world import run_command
ended = []
for closed, arguments in json.loads(sys.stdin.read()):
    mode = os.stat(closed).st_mode if closed else None
    if closed:
        os.chmod(closed, 0)
    ended.append(asdict(run_command(arguments)))
    if closed:
        os.chmod(closed, mode)
with open(sys.argv[1], "w") as file:
    json.dump(ended, file)
"""


def run_as_plain_user(
    folder: Path,
    commands: Sequence[tuple[str | None, Sequence[str]]],
    environment: Mapping[str, str] | None = None,
) -> list[Ended]:
    """How commands end in `folder`, each while a file or folder (or none) may not be used.

    A user namespace without capabilities: this user is the owner of our files, and may do what their modes allow.
    """
    answers = folder.parent / "answers.json"
    nobody = ["unshare", "--user", f"--map-user={USER}", f"--map-group={USER}"]
    code = RUN_ALL.format(here=str(HERE), project=str(HERE.parent))
    variables = {
        key: value
        for key, value in os.environ.items()
        if key not in ("HOME", "USER", "LOGNAME", "XDG_CACHE_HOME")
    }
    ended = subprocess.run(
        [*nobody, sys.executable, "-c", code, str(answers)],
        input=json.dumps([(closed, list(arguments)) for closed, arguments in commands]),
        env={**variables, **(environment or {})},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert ended.returncode == 0, ended.stderr
    return [Ended(**one) for one in json.loads(answers.read_text())]
