"""`distbranch experiment`: comparisons of runs over seeds, each a sweep with an analysis at its end; `distbranch compare`."""

from distbranch.cli.experiment import networks, structures
from distbranch.cli.experiment.networks import compare
from distbranch.cli.experiment.options import experiment_app

__all__ = ["compare", "experiment_app", "networks", "structures"]
