"""Processes that launchers start, as other processes see them."""

import subprocess
import sys

import psutil

from distbranch.launch.processes import wait_for_command_line

NUM_STARTED = 60  # without the wait one in ten was not seen yet


def test_a_process_that_was_just_started_is_found_by_its_command_line() -> None:
    command = [sys.executable, "-I", "-S", "-c", "import time; time.sleep(60)", "folder"]
    for _ in range(NUM_STARTED):
        with subprocess.Popen(command) as process:
            wait_for_command_line(process)
            words = psutil.Process(process.pid).cmdline()
            process.kill()
        assert words == command


def test_a_process_that_has_ended_is_not_waited_for() -> None:
    with subprocess.Popen([sys.executable, "-I", "-S", "-c", ""]) as process:
        process.wait()
        wait_for_command_line(process)
