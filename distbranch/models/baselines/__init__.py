"""Networks of other papers over the same residual units and heads, to compare with: neither a tree nor a policy.

`baseline.py` says what one must bring, and every other file is one of them.
"""

from distbranch.models.baselines.baseline import Baseline
from distbranch.models.baselines.cross_stitch import CrossStitch
from distbranch.models.baselines.mtan import Mtan
from distbranch.models.baselines.nddr import Nddr
from distbranch.models.baselines.sluice import Sluice

# By their names in `method.name`.
BASELINES: dict[str, type[Baseline]] = {
    "cross-stitch": CrossStitch,
    "mtan": Mtan,
    "nddr": Nddr,
    "sluice": Sluice,
}

__all__ = ["BASELINES", "Baseline"]
