"""The ruler for messages to people notices what makes them bad, and lets good ones pass."""

import errno

import pytest
from tiny_world import faults_of_message

from distbranch.errors import reason_of

GOOD = [
    "The run directory runs/a cannot be written (No space left on device). Give another run.directory, or make room.",
    "'mehtod' is no key. Did you mean method?",
    "There are no images (.jpg, .png) in ../photos. Give launch.address=127.0.0.1:6379, or {layer: [[task, ...], ...]}.",
    "The weights in /a/b/c/d.pth are not those of /a/b/c/d.json.",
]
ADVICE = "Give another run.directory, or make room on the disk."
BAD = {
    "ends without a stop": "The file is absent",
    "doubles a stop": "The file is absent.. Make it.",
    "doubles a stop around a bracket": "The file is absent (it was not found.). Make it.",
    "has a stop after a question mark": "Did you mean method?.",
    "repeats its advice": f"The file is absent. {ADVICE} {ADVICE}",
    "is a paragraph": "The file is absent. It should be there. Somebody may have moved it. Look for it, or make it.",
    "is endless": f"The file {'very ' * 200}long is absent.",
    "holds another error": "The file is absent (Error: it cannot be read).",
    "speaks of error numbers": f"The file cannot be read ({OSError(errno.EACCES, 'Permission denied', 'x')}).",
}


@pytest.mark.parametrize("told", GOOD)
def test_a_good_message_passes(told: str) -> None:
    assert not faults_of_message(told)


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_message_is_noticed(kind: str) -> None:
    assert faults_of_message(BAD[kind])


def test_the_reason_of_an_error_is_its_words_without_number_and_file() -> None:
    assert reason_of(OSError(errno.EACCES, "Permission denied", "/a/b")) == "Permission denied"
    assert reason_of(OSError("the tar file is cut.")) == "the tar file is cut"
    assert reason_of(ValueError("two\n lines")) == "two lines"
    assert reason_of(KeyError()) == "KeyError"
