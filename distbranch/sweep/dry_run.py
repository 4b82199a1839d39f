"""What a sweep would do, without starting anything."""

from collections import Counter

from distbranch.config import Config
from distbranch.config.sweep import SweepConfig
from distbranch.engine.initialisation import first_architecture
from distbranch.launch.on_ray.address import cluster_address
from distbranch.launch.prepare import check_data, is_to_be_packed, read_packed_data, warn_ignored_settings
from distbranch.models.cost import multiply_adds, num_parameters
from distbranch.sweep.plan import base_config, in_turns, planned_trials
from distbranch.sweep.run import check_begun
from distbranch.sweep.trial_status import SweepDirectory

SHOWN = 25  # names at either end of a long list


def plan(sweep: SweepConfig) -> list[tuple[str, str]]:
    """Check data and configurations, and say what the sweep would train: lines of what is asked about and the answer.

    Raises:
        UserError: what is not as it should be.
    """
    base = base_config(sweep)
    trials = [] if sweep.search == "optuna" else planned_trials(sweep)
    check_begun(sweep, SweepDirectory(sweep.path, sweep.trial_path), trials)
    lines = [("sweep directory", str(sweep.path)), ("data", " ".join(base.data.paths))]
    if sweep.search == "optuna":
        warn_ignored_settings([base])
        num_trials = (sweep.num_trials or 0) * len(sweep.seeds or (0,))
        lines += [("trials", f"{num_trials}, chosen by Optuna as results come"), *_networks([base])]
    else:
        warn_ignored_settings(trials)
        lines += [("trials", _trials(trials, sweep)), *_networks(trials)]
    workers = sweep.workers_per_trial
    where = "in the trial's own process" if workers == 1 else "by an inner Ray trainer"
    cpus, gpus = sweep.cpus_per_trial or workers, sweep.gpus_per_trial
    return [
        *lines,
        ("steps of a trial", f"{base.train.iterations:,} of {base.train.batch_size} images"),
        ("a trial takes", f"{workers} worker(s) {where}, {cpus:g} CPU(s), {gpus:g} GPU(s)"),
        ("at the same time", f"at most {sweep.concurrency}" if sweep.concurrency else "as many as fit"),
        ("on", cluster_address(base.launch) or "this machine"),
    ]


def _trials(trials: list[Config], sweep: SweepConfig) -> str:
    names = [str(config.run.name) for config in trials]
    shown = names if len(names) <= 2 * SHOWN else [*names[:SHOWN], "...", *names[-SHOWN:]]
    standings = SweepDirectory(sweep.path, sweep.trial_path).standings(names).values()
    counts = Counter(standing.status for standing in standings)
    return f"{len(names)} ({', '.join(f'{count} {status}' for status, count in counts.items())}): {', '.join(shown)}"


def _networks(trials: list[Config]) -> list[tuple[str, str]]:
    """One line per kind of network that trials begin with."""
    lines = {}
    at_once = in_turns(trials)[0]
    for config in trials:
        if is_to_be_packed(config):
            return [("networks", "known once the data set is packed, which would be done first")]
        info = read_packed_data(config)
        if config in at_once:  # others begin from runs that are still to be trained
            check_data(config, info)
        elif config.method.groups is not None or config.adashare.policy is not None:
            continue
        first = first_architecture(config, info)
        stage = "before any widening" if config.method.name == "branching" else config.method.name
        name = f"{config.model.backbone}, {config.model.width_text}, {stage}"
        lines[name] = f"{num_parameters(first):,} parameters, {multiply_adds(first):,} multiply-adds per image"
    return list(lines.items())
