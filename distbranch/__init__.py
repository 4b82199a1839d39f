"""distbranch: multi-task networks that find out by themselves what to share, trained from a laptop to a cluster."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distbranch.api import evaluate, load, predict, report, train

__all__ = ["evaluate", "load", "predict", "report", "train"]


def __getattr__(name: str) -> Any:
    # On demand: `import distbranch` stays fast, without ray and without a process group.
    if name in __all__:
        from distbranch import api

        return getattr(api, name)
    raise AttributeError(f"module 'distbranch' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
