"""What a person sees while something trains, on narrow and wide terminals and in a file: nothing that counts is cut off."""

import io
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from rich.console import Console

from distbranch.report import progress
from distbranch.report.progress import ProgressDisplay, SweepDisplay

STEP = {
    "kind": "progress",
    "iterations": 100_000,
    "loss": 0.4321,
    "samples_per_second": 1834.2,
    "data_wait": 0.034,
    "branches": {f"conv{layer}": width for layer, width in enumerate([1] * 8 + [2, 3, 5, 9, 9])},
    "round": 3,
    "active_layer": 7,
}
GROUPS = [
    ["Mouth_Slightly_Open", "High_Cheekbones", "Rosy_Cheeks", "Narrow_Eyes", "Heavy_Makeup"],
    ["Bald"],
]
MEANS = {
    "accuracy": 0.912,
    "balanced_accuracy": 0.8123,
    "average_precision": 0.7012,
    "top10_recall": None,
}


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    clock = Clock()
    monkeypatch.setattr(progress.time, "monotonic", clock)
    return clock


def screen(width: int, out: io.StringIO) -> list[str]:
    """The lines of a display's last state, and what stands above it, as printed."""
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue()).replace("\r", "\n").splitlines()
    assert all(len(line) <= width for line in lines)
    return [line.rstrip() for line in lines]


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("resumed_at", [0, 60_000])
def test_step_total_and_time_left_are_whole_on_a_terminal(
    width: int, resumed_at: int, clock: Clock
) -> None:
    out = io.StringIO()
    console = Console(width=width, file=out, force_terminal=True, color_system=None, get_time=clock)
    with ProgressDisplay(console) as display:
        for number in range(5):
            clock.now += 2
            display({**STEP, "iteration": resumed_at + 100 * number})
        display._bar.refresh()
    done = resumed_at + 400
    shown = " ".join(screen(width, out)[-4:])
    assert f"{done}/100000" in shown
    left = round((100_000 - done) / 50)
    assert f"{left // 3600}:{left // 60 % 60:02}:{left % 60:02}" in shown
    for part in (
        "training",
        "1834 images/s",
        "data wait 3.4%",
        "loss 0.432",
        "round 3, active layer 7",
    ):
        assert part in shown
    assert "width 1x8-2-3-5-9x2" in " ".join(shown.split())
    assert "…" not in shown


@pytest.mark.parametrize("width", [80, 120])
def test_decisions_and_evaluations_are_folded_between_words_and_below_each_other(
    width: int,
) -> None:
    out = io.StringIO()
    with ProgressDisplay(
        Console(width=width, file=out, force_terminal=True, color_system=None)
    ) as display:
        decision = {
            "kind": "decision",
            "iteration": 12_000,
            "layer_name": "conv4_3",
            "num_groups": 2,
        }
        display({**decision, "seconds_in_all": 1.23, "tasks": GROUPS})
        display({"kind": "evaluation", "iteration": 12_345, "split": "val", "mean": MEANS})
    lines = screen(width, out)
    assert "step 12,000  conv4_3: 2 branches  [1.23 s]" in lines
    assert "    Bald" in lines
    of_group = [line for line in lines if any(task in line for task in GROUPS[0])]
    assert all(line.startswith("    ") for line in of_group)
    assert ", ".join(GROUPS[0]) == " ".join(" ".join(of_group).split())
    for part in ("accuracy 91.2%", "balanced_accuracy 81.2%", "average_precision 70.1%"):
        assert any(part in line for line in lines)
    assert "\u00a0" not in out.getvalue()


def test_groups_are_listed_once_and_then_said_to_be_the_same() -> None:
    out = io.StringIO()
    with ProgressDisplay(Console(width=80, file=out)) as display:
        for layer, groups in (
            ("fc6", GROUPS),
            ("conv5_3", GROUPS[::-1]),
            ("conv5_2", [GROUPS[0] + GROUPS[1], ["Male"]]),
        ):
            decision = {"kind": "decision", "iteration": 1, "layer_name": layer, "num_groups": 2}
            display({**decision, "seconds_in_all": 1.0, "tasks": groups})
    lines = out.getvalue().splitlines()
    assert lines[1:3] == ["    " + ", ".join(tasks) for tasks in GROUPS]
    assert lines[3:5] == ["step 1  conv5_3: 2 branches  [1.00 s]", "    same groups"]
    assert lines[-1] == "    Male"


def test_what_happens_to_a_scout_is_told_as_such_and_then_what_it_decides() -> None:
    out = io.StringIO()
    with ProgressDisplay(Console(width=100, file=out)) as display:
        evaluation = {"kind": "evaluation", "iteration": 8, "split": "val", "mean": MEANS}
        display({"kind": "scout", "event": evaluation})
        decision = {"kind": "decision", "iteration": 0, "layer_name": "conv4_1", "num_groups": 2}
        decision |= {"layers": ["conv4_1", "fc7"], "seconds_in_all": 1.0, "tasks": GROUPS}
        display(decision)
        display(evaluation)
    first, second, *_, last = out.getvalue().splitlines()
    assert first.startswith("scout: step 8  val: accuracy 91.2%")
    assert second == "the scout decides from conv4_1 up: 2 branches  [1.00 s]"
    assert last == first.removeprefix("scout: ")


def test_something_moves_until_there_is_a_bar_and_is_gone_at_the_end() -> None:
    out = io.StringIO()
    console = Console(width=80, file=out, force_terminal=True, color_system=None)
    with ProgressDisplay(console) as display:
        display._bar.refresh()
        assert "starting" in out.getvalue()
        display({**STEP, "iteration": 100})
        out.seek(0)
        out.truncate()
        display._bar.refresh()
        assert "starting" not in out.getvalue()
        display({"kind": "packing", "done": 1, "total": 2})
    assert "starting" not in screen(80, out)[-1]


def test_a_log_file_has_a_line_with_step_total_and_time_left_every_half_minute(
    clock: Clock,
) -> None:
    out = io.StringIO()
    with ProgressDisplay(Console(width=80, file=out, get_time=clock)) as display:
        for number in range(40):
            clock.now += 2
            display({**STEP, "iteration": 1000 + 100 * number})
    lines = out.getvalue().splitlines()
    assert len(lines) == 2
    assert lines[0].startswith(
        "training 2,400 of 100,000, 0:32:32 left  1834 images/s  data wait 3.4%  loss 0.432"
    )
    assert lines[1].startswith("training 3,900 of 100,000, 0:32:02 left")


def test_a_search_for_a_policy_says_how_far_it_is_and_of_no_tree_that_it_is_final(
    clock: Clock,
) -> None:
    out = io.StringIO()
    step = {**STEP, "active_layer": None, "phase": "policy", "num_released": 3}
    with ProgressDisplay(Console(width=120, file=out, get_time=clock)) as display:
        for number in range(20):
            clock.now += 2
            display({**step, "iteration": 100 * number})
    assert "search: policy, 3 blocks released" in " ".join(out.getvalue().split())
    assert "tree" not in out.getvalue()


def test_a_tree_that_is_still_to_be_taken_is_not_said_to_be_final() -> None:
    shown = progress._describe_step({**STEP, "active_layer": None, "widen_at": 1500})
    assert "the given tree is taken after step 1,500" in shown
    out = io.StringIO()
    ProgressDisplay(Console(file=out))({"kind": "widened", "iteration": 1500, "tree_hash": "f0"})
    assert out.getvalue() == "step 1,500  the given tree was taken\n"


def test_packing_without_a_known_total_says_how_many_are_done(clock: Clock) -> None:
    out = io.StringIO()
    with ProgressDisplay(Console(width=80, file=out, get_time=clock)) as display:
        display({"kind": "packing", "done": 1, "total": None})
        clock.now += 31
        display({"kind": "packing", "done": 1234, "total": None})
    assert out.getvalue() == "packing 1,234\n"


def sweep_events() -> list[dict[str, Any]]:
    trials = [f"width-16-alpha-{number}-seed0" for number in range(3)]
    reason = "The loss of step 3 is not finite (nan). Lower optim.lr."
    return [
        {"kind": "sweep", "trials": 12, "open": 9, "directory": "/shared/runs/thinness"},
        {"kind": "begun", "trial": trials[0], "family": trials[:1]},
        {"kind": "begun", "trial": trials[1], "family": trials[1:]},
        {"kind": "ended", "trial": trials[0], "status": "finished", "reason": ""},
        {"kind": "ended", "trial": trials[1], "status": "failed", "reason": reason},
        {"kind": "warning", "message": "Waiting for nodes"},
    ]


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_sweep_says_how_many_of_how_many_have_ended_and_how_long_the_rest_takes(
    width: int, is_terminal: bool, clock: Clock
) -> None:
    out = io.StringIO()
    display = SweepDisplay(
        Console(width=width, file=out, force_terminal=is_terminal, color_system=None)
    )
    for event in sweep_events():
        clock.now += 60 * (event["kind"] == "ended")
        display(event)
    told = " ".join(out.getvalue().split())
    assert "12 trials, 3 of them done before, in /shared/runs/thinness" in told
    assert "begun: width-16-alpha-1-seed0 and 1 that begin alike" in told
    # One has ended in a minute, and two that run are half done: seven more, at two in a minute.
    assert "1/9 finished: width-16-alpha-0-seed0 (about 0:03:30 left)" in told
    assert (
        "2/9 failed: width-16-alpha-1-seed0: The loss of step 3 is not finite (nan). Lower optim.lr. (about 0:05:12 left)"
        in told
    )
    assert "warning: Waiting for nodes" in told
    if is_terminal:
        assert all(len(line) <= width for line in out.getvalue().splitlines())


def test_the_last_trial_of_a_sweep_has_no_time_left() -> None:
    out = io.StringIO()
    display = SweepDisplay(Console(width=80, file=out))
    display({"kind": "sweep", "trials": 1, "open": 1, "directory": "runs/s"})
    display({"kind": "begun", "trial": "a", "family": ["a"]})
    display({"kind": "ended", "trial": "a", "status": "finished", "reason": ""})
    assert out.getvalue().splitlines()[-1] == "1/1 finished: a"


def test_a_trial_that_is_stopped_with_its_sweep_is_not_counted_as_ended() -> None:
    out = io.StringIO()
    display = SweepDisplay(Console(width=80, file=out))
    display({"kind": "sweep", "trials": 4, "open": 4, "directory": "runs/s"})
    display({"kind": "begun", "trial": "a", "family": ["a"]})
    display({"kind": "ended", "trial": "a", "status": "unfinished", "reason": ""})
    assert out.getvalue().splitlines()[-1] == "unfinished: a"


def test_a_display_that_is_imported_loads_neither_pandas_nor_matplotlib() -> None:
    said = "import sys, distbranch.report.progress; assert not {'pandas', 'matplotlib'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", said], check=True)


def test_a_trial_that_finished_is_shown_with_its_value_beside_the_best_so_far() -> None:
    out = io.StringIO()
    display = SweepDisplay(Console(width=80, file=out))
    display({"kind": "sweep", "trials": 2, "open": 2, "directory": "runs/s"})
    ended = {"kind": "ended", "status": "finished", "reason": "", "best_trial": "a"}
    share = {"metric": "average_precision", "value": 0.75, "best": 0.75}
    display({"kind": "begun", "trial": "a", "family": ["a", "b"]})
    display({**ended, **share, "trial": "a"})
    display({**ended, **share, "trial": "b", "value": 0.5})
    _, _, first, second = out.getvalue().splitlines()
    assert first.startswith("1/2 finished: a, average precision 75.0 %, the best so far (about")
    assert second == "2/2 finished: b, average precision 50.0 %, best so far 75.0 % of a"
