"""How many cores this process may use; without torch, for a task of Slurm asks before any rank starts."""


def num_cores() -> int:
    """The cores that this process may use: those it is bound to, or fewer where its container's share of time is less."""
    from joblib import cpu_count  # comes with scikit-learn; knows the quotas of cgroups

    return int(cpu_count())
