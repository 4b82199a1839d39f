"""The gauges of a run in Ray's metrics agent, from which Prometheus collects them as `ray_distbranch_...`."""

import math
import sys
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from distbranch.engine.gauges import GAUGES, Gauge


def find_ray_gauges() -> Callable[[Sequence[Gauge]], None] | None:
    """What sets them; None in a process that has not joined a cluster."""
    if "ray" not in sys.modules or not sys.modules["ray"].is_initialized():
        return None
    return _make_gauges().set_all


@cache
def _make_gauges() -> "RayGauges":
    """Those of this process, which may train trial after trial: what the one before has set goes when the next one sets its own."""
    return RayGauges()


class RayGauges:
    """Ray's own gauges by name, each made when it is first set."""

    def __init__(self) -> None:
        self._gauges: dict[str, Any] = {}
        self._last: list[Gauge] = []

    def set_all(self, gauges: Sequence[Gauge]) -> None:
        """Set all values; one whose labels are gone (another rank is the slowest now) is no number from here on."""
        now = {(gauge.name, *gauge.labels.items()) for gauge in gauges}
        gone = [one for one in self._last if (one.name, *one.labels.items()) not in now]
        for gauge in gone:
            self._find(gauge).set(math.nan, tags=dict(gauge.labels))
        for gauge in gauges:
            self._find(gauge).set(gauge.value, tags=dict(gauge.labels))
        self._last = list(gauges)

    def _find(self, gauge: Gauge) -> Any:
        from ray.util.metrics import Gauge as RayGauge

        if gauge.name not in self._gauges:
            self._gauges[gauge.name] = RayGauge(
                gauge.name, description=GAUGES[gauge.name][0], tag_keys=tuple(gauge.labels)
            )
        return self._gauges[gauge.name]
