"""`distbranch ls` and what else is asked of runs and sweeps: answers from files and jobs, without torch."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from http_thread import serve_http
from listed_runs import (
    begin_on,
    finish,
    set_age,
    write_program,
    write_results,
    write_run,
    write_sweep_directory,
)
from rich.console import Console
from tiny_world import assert_one_sentence, faults_of_message, run_command

from distbranch.errors import UserError
from distbranch.launch.jobs import Job, describe_job_state, write_job
from distbranch.listing.asking import cancel, check_resumable, describe_status, read_log
from distbranch.listing.listing import list_rows
from distbranch.listing.rows import Row
from distbranch.listing.scores import SHORT_NAMES
from distbranch.listing.table import make_table
from distbranch.locks import hold_lock
from distbranch.metrics import list_metrics

HEAVY = ("torch", "ray", "pandas", "matplotlib", "numpy", "pyarrow", "submitit", "onnxruntime")


def row_of(folder: Path) -> Row:
    return next(row for row in list_rows(folder) if row.directory == folder)


def job(kind: str, number: str = "12", where: str = "partition gpu", log: str = "") -> Job:
    return Job(kind, number, where, log, "2026-01-02 03:04:05")  # type: ignore[arg-type]


# ---- runs


def test_a_run_that_is_trained_shows_step_rate_minutes_left_and_the_best_on_val(
    tmp_path: Path,
) -> None:
    run = write_run(tmp_path / "run", done=400, evaluations={100: 0.5, 200: 0.7, 300: 0.6})
    with hold_lock(run / ".lock"):
        row = row_of(run)
    assert (row.kind, row.method, row.done, row.total) == ("run", "branching", 400, 1000)
    assert row.state == "running"
    assert row.rate == 50.0
    assert row.minutes_left == pytest.approx(600 * 10 / 50 / 60)
    assert row.score is not None
    assert (row.score.text, row.score.split, row.score.iteration) == ("AP 70.0 %", "val", 200)
    assert row_of(run).state == "stopped"
    assert row_of(run).minutes_left is None, "nobody trains it"


def test_of_an_error_the_smallest_value_is_the_best(tmp_path: Path) -> None:
    metric = {"metric": "standardised_error"}
    run = write_run(tmp_path / "run", evaluations={100: 0.5, 200: 0.75, 300: 0.6}, **metric)
    score = row_of(run).score
    assert score is not None
    assert (score.text, score.iteration) == ("std. err. 0.25", 200)


def test_a_finished_run_shows_its_score_on_test_whatever_else_is_known(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", done=1000, evaluations={500: 0.9})
    finish(run, average_precision=0.8)
    begin_on(run, "elsewhere")
    row = row_of(run)
    assert (row.state, row.done) == ("finished", 1000)
    assert row.score is not None
    assert (row.score.text, row.score.split) == ("AP 79.0 %", "test")


def test_every_mean_over_tasks_has_a_short_name_that_says_what_its_kind_does() -> None:
    metrics = {name: one for name, one in list_metrics().items() if one.is_averaged}
    told = {name: (one.unit == "%", one.lower_is_better) for name, one in metrics.items()}
    assert {name: (share, lower) for name, (_, share, lower) in SHORT_NAMES.items()} == told


def test_a_run_on_another_machine_is_seen_by_its_sign_of_life(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", done=10)
    begin_on(run, "elsewhere")
    assert (row_of(run).state, row_of(run).detail) == ("running", "on elsewhere")
    set_age(run / ".alive", 3600)
    assert row_of(run).state == "stopped"
    begin_on(run, platform.node())
    assert row_of(run).state == "stopped", "nobody holds its lock here"


def test_a_run_that_is_held_and_shows_no_sign_of_life_is_silent(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", done=10)
    begin_on(run, platform.node())
    for file in run.iterdir():
        set_age(file, 1800)
    with hold_lock(run / ".lock"):
        row = row_of(run)
    assert (row.state, row.detail) == (
        "silent",
        "on this machine, no sign of life for 30 min",
    )


def test_a_run_whose_job_ended_with_an_error_says_which(tmp_path: Path) -> None:
    run, log = write_run(tmp_path / "run", done=10), tmp_path / "log.out"
    log.write_text("step 10\nError: The loss of step 11 is not finite (nan). Lower optim.lr.\n")
    write_job(run, job("local", "999999999", log=str(log)))
    row = row_of(run)
    assert row.state == "failed"
    assert row.detail == "The loss of step 11 is not finite (nan). Lower optim.lr."
    log.write_text("step 10\n")
    assert row_of(run).state == "stopped"


# ---- sweeps


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Two trials finished (one after the table was written), one failed, one stopped early, one runs, one has not begun."""
    folder = write_sweep_directory(tmp_path / "runs" / "widths")
    for name, value in {"width8-seed0": 0.6, "width8-seed1": 0.7}.items():
        finish(write_run(folder / name), average_precision=value)
    for name in ("width16-seed0", "width16-seed1", "width32-seed0"):
        write_run(folder / name, done=10)
    begin_on(folder / "width32-seed0", "elsewhere")
    ended = [
        {"trial": "width16-seed0", "status": "failed", "reason": "a node was lost"},
        {"trial": "width16-seed1", "status": "stopped early", "reason": "not among the best"},
    ]
    (folder / "ended.jsonl").write_text("".join(json.dumps(line) + "\n" for line in ended))
    first = {
        "trial": "width8-seed0",
        "status": "finished",
        "val_average_precision": 0.6,
        "seconds": 60,
    }
    write_results(folder, [first, {"trial": "width8-seed1", "status": "unfinished"}])
    return folder


def test_a_sweep_is_one_row_with_its_trials_counted_and_the_best_of_them(sweep: Path) -> None:
    with hold_lock(sweep / ".lock"):
        [row] = list_rows(sweep.parent)
    assert (row.kind, row.method, row.done, row.total, row.failed) == ("sweep", "grid", 4, 6, 1)
    assert (row.state, row.detail) == ("running", "on this machine, 1 trial(s)")
    assert row.score is not None
    assert row.score.text == "AP 70.0 %"
    # One trial runs and is half done, one has not begun, each takes a minute.
    assert row.minutes_left == pytest.approx(1.5)
    assert row.rate == pytest.approx(60)


def test_a_sweep_that_nobody_drives_says_what_failed(sweep: Path) -> None:
    [row] = list_rows(sweep.parent)
    assert (row.state, row.detail) == ("failed", "1 trial(s): a node was lost")
    (sweep / "ended.jsonl").unlink()
    [row] = list_rows(sweep.parent)
    assert (row.state, row.detail) == ("stopped", "")
    (sweep / "experiment.json").write_text("{}")
    for name in ("width8", "width16", "width32"):
        for seed in (0, 1):
            finish(write_run(sweep / f"{name}-seed{seed}"), average_precision=0.9)
    [row] = list_rows(sweep.parent)
    assert (row.kind, row.state, row.done, row.total) == ("experiment", "finished", 6, 6)


def test_a_driver_on_another_machine_is_seen_by_its_sign_of_life(sweep: Path) -> None:
    (sweep / ".alive").write_text("elsewhere")
    [row] = list_rows(sweep.parent)
    assert (row.state, row.detail) == ("running", "on elsewhere, 1 trial(s)")


def test_the_status_of_a_sweep_names_the_best_trial_and_those_that_run_and_failed(
    sweep: Path,
) -> None:
    answers = dict(describe_status(sweep))
    counts = answers["trials"]
    assert counts.startswith("4 of 6 ended (")
    assert {"2 finished", "1 failed", "1 stopped early", "1 running"} <= set(
        counts.partition("(")[2].rstrip(")").split(", ")
    )
    assert answers["best"] == "AP 70.0 % on val, width8-seed1"
    assert answers["running"] == "width32-seed0"
    assert answers["failed"] == "width16-seed0 (a node was lost)"


def test_the_folder_of_a_sweep_lists_the_sweep_and_its_trials(sweep: Path) -> None:
    rows = {row.name: row for row in list_rows(sweep)}
    assert len(rows) == 6
    assert rows["widths"].kind == "sweep"
    assert rows["width8-seed0"].state == "finished"


# ---- the list


def test_what_was_active_last_comes_first_and_folders_of_runs_are_looked_into(
    tmp_path: Path,
) -> None:
    for age, name in enumerate(("third", "deeper/second", "first")):
        run = write_run(tmp_path / name)
        for file in run.iterdir():
            set_age(file, 1000 - 100 * age)
    # What is no run is not listed: somebody else's config.yaml, and packed data.
    (tmp_path / "data" / "part").mkdir(parents=True)
    (tmp_path / "data" / "dataset.json").write_text("{}")
    write_run(tmp_path / "data" / "part" / "run")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.yaml").write_text("theme: dark\n")
    assert [row.name for row in list_rows(tmp_path)] == ["first", "deeper/second", "third"]


@pytest.mark.parametrize(("width", "comma"), [(80, ""), (120, ",")])
def test_a_table_keeps_to_the_width_of_the_terminal_and_shows_names_whole(
    width: int, comma: str, sweep: Path
) -> None:
    name = "celeba-branch-32-2-permuted-seed0"
    write_run(sweep.parent / name, done=123, evaluations={100: 0.7123})
    console = Console(width=width, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(make_table(list_rows(sweep.parent), width))
    lines = console.export_text().splitlines()
    assert all(len(line) <= width for line in lines)
    assert any(line.split(" ")[0] == name for line in lines)
    assert any("AP 71.2 %" in line for line in lines)
    assert any(f"{123}/{1000:{comma}}" in line for line in lines)


def test_a_program_reads_the_same_rows_as_json(sweep: Path) -> None:
    ended = run_command(["ls", str(sweep.parent), "--json"])
    [row] = json.loads(ended.out)
    assert (row["name"], row["done"], row["total"]) == ("widths", 4, 6)
    assert row["score"]["value"] == 0.7
    assert row["age_s"] < 3600


def test_a_folder_without_runs_and_one_that_is_absent_are_said_to_be_so(tmp_path: Path) -> None:
    assert "no runs" in run_command(["ls", str(tmp_path)]).out
    ended = run_command(["ls", str(tmp_path / "absent")])
    assert ended.code == 1
    assert "does not exist" in ended.err


def test_what_is_asked_loads_nothing_heavy(sweep: Path) -> None:
    run = write_run(sweep.parent / "run", done=3)
    asked = [
        ["ls", str(sweep.parent)],
        ["ls", str(sweep), "--json"],
        *([word, str(folder)] for word in ("status", "logs", "cancel") for folder in (run, sweep)),
        ["resume", str(sweep.parent)],
    ]
    program = (
        "import json, sys\nfrom distbranch.cli import main\n"
        f"for words in json.loads({json.dumps(asked)!r}):\n"
        "    sys.argv = ['distbranch', *words]\n"
        "    try:\n        main()\n    except SystemExit:\n        pass\n"
        f"    loaded = [name for name in {HEAVY} if name in sys.modules]\n"
        "    assert not loaded, (words, loaded)\n"
    )
    # A config by hand is no whole one, so that `status` of the run ends with a sentence: it has looked by then.
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)  # fmt: skip
    assert ended.returncode == 0, ended.stderr


# ---- jobs


SQUEUE = """
echo "7_0|RUNNING|node1|5:00|1:00:00|None"
echo "7_1|PENDING||0:00|1:00:00|JobArrayTaskLimit"
echo "9|PENDING||0:00|1:00:00|Priority"
"""


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Slurm's commands as they answer of the array 7 and the job 9; what is cancelled is written down."""
    programs = tmp_path / "programs"
    write_program(programs, "squeue", SQUEUE)
    write_program(programs, "scancel", f'echo "$@" >> {tmp_path}/cancelled')
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    return tmp_path / "cancelled"


def test_jobs_of_slurm_are_told_apart_with_one_question(queue: Path, tmp_path: Path) -> None:
    expected = {
        "9": ("waiting", "Slurm 9, Priority"),
        "7_0": ("running", "Slurm 7_0 on node1"),
        "3": ("stopped", "Slurm 3 ended"),
    }
    for number in expected:
        write_job(write_run(tmp_path / "runs" / number, done=1), job("slurm", number))
    found = {row.name: (row.state, row.detail) for row in list_rows(tmp_path / "runs")}
    assert found == expected
    assert not queue.exists()


def test_an_array_is_one_row_and_is_cancelled_as_a_whole(queue: Path, tmp_path: Path) -> None:
    folder = write_sweep_directory(tmp_path / "runs" / "array")
    for number in (0, 1):
        write_job(write_run(folder / f"width8-seed{number}", done=1), job("slurm", f"7_{number}"))
    [row] = list_rows(folder.parent)
    assert (row.state, row.detail) == ("running", "1 run, 1 wait in Slurm's array 7")
    with pytest.raises(UserError, match="of the array 7"):
        check_resumable(folder)
    said: list[str] = []
    cancel([folder], patience_s=1, say=said.append)
    assert queue.read_text().split() == ["7"]
    assert said == ["The array 7 of Slurm is ended; trials that ran save a checkpoint."]


def test_what_cannot_be_cancelled_does_not_keep_the_rest_and_is_told_in_one_message(
    queue: Path, tmp_path: Path
) -> None:
    folder = write_sweep_directory(tmp_path / "runs" / "array")
    write_job(write_run(folder / "width8-seed0", done=1), job("slurm", "7_0"))
    idle = write_sweep_directory(tmp_path / "runs" / "idle")
    with pytest.raises(UserError) as raised:
        cancel([tmp_path, idle, folder], patience_s=1, say=lambda _: None)
    assert queue.read_text().split() == ["7"]
    assert "2 problems: (1)" in str(raised.value)
    assert not faults_of_message(str(raised.value))


class Dashboard(BaseHTTPRequestHandler):
    """Of a Ray cluster with a token: one job runs, one has failed."""

    def do_GET(self) -> None:
        if self.headers.get("Authorization") != "Bearer secret":
            return self._answer(401, {})
        if self.path == "/api/jobs/":
            statuses = {"raysubmit_1": "RUNNING", "raysubmit_2": "FAILED"}
            return self._answer(
                200, [{"submission_id": one, "status": two} for one, two in statuses.items()]
            )
        if self.path == "/api/jobs/raysubmit_1":
            return self._answer(200, {"status": "RUNNING"})
        if self.path == "/api/jobs/raysubmit_2/logs":
            return self._answer(200, {"logs": "Error: no such file.\n"})
        return self._answer(404, {})

    def _answer(self, code: int, value: object) -> None:
        self.send_response(code)
        self.end_headers()
        self.wfile.write(json.dumps(value).encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def dashboard() -> Iterator[str]:
    with serve_http(Dashboard) as place:
        yield f"http://{place}"


def test_jobs_of_ray_are_asked_for_by_http_with_the_token_of_the_environment(
    dashboard: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    for number in (1, 2):
        write_job(write_run(tmp_path / str(number), done=1), job("ray", f"raysubmit_{number}", dashboard))  # fmt: skip
    found = {row.name: (row.state, row.detail) for row in list_rows(tmp_path)}
    assert found["1"] == ("running", f"Ray raysubmit_1 at {dashboard}")
    assert found["2"] == ("stopped", "Ray raysubmit_2 ended (failed)")
    assert describe_job_state(job("ray", "raysubmit_1", dashboard)) == f"running at {dashboard}"
    assert describe_job_state(job("ray", "raysubmit_3", dashboard)).startswith("ended (the cluster")


def test_a_dashboard_that_wants_a_token_or_is_gone_leaves_the_state_unknown(
    dashboard: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    write_job(write_run(tmp_path / "strange", done=1), job("ray", "raysubmit_1", dashboard))
    gone = "http://127.0.0.1:9"
    write_job(write_run(tmp_path / "gone", done=1), job("ray", "raysubmit_1", gone))
    found = {row.name: row for row in list_rows(tmp_path)}
    assert found["strange"].state == "silent"
    assert "answers only to those who hold its token" in found["strange"].detail
    assert "No Ray dashboard answers" in found["gone"].detail
    with pytest.raises(UserError, match="no run directory"):
        next(read_log(tmp_path, follow=False))


def test_the_log_of_a_command_about_a_run_is_found_by_its_name_and_without_another_by_itself(
    tmp_path: Path,
) -> None:
    run = write_run(tmp_path / "run", done=1)
    for number, command in enumerate(("evaluate", "report")):
        folder = run / "slurm" / command
        folder.mkdir(parents=True)
        (folder / "log").write_text(f"{command} says\n")
        submitted = f"2026-01-02 03:04:0{number}"
        write_job(folder, Job("local", "1", "host", str(folder / "log"), submitted, command))
    assert run_command(["logs", str(run)]).out == "report says\n", "the newest"
    assert run_command(["logs", str(run), "evaluate"]).out == "evaluate says\n"

    (run / "log").write_text("train says\n")
    write_job(run, Job("local", "1", "host", str(run / "log"), "2026-01-01 00:00:00"))
    assert run_command(["logs", str(run)]).out == "train says\n"
    assert run_command(["logs", str(run), "report", "--follow"]).out == "report says\n"
    ended = run_command(["logs", str(run), "export"])
    assert_one_sentence(ended, 1, ("no job of `export`", "evaluate, report, train"))
