"""Experiments: comparisons of runs. Each file says which runs an experiment is made of and what is read off them.

A `design_*` function returns an `Experiment` (runner.py): variants of a configuration and an analysis. All are trained as a
sweep by `run_experiment`, so the same command resumes and repeats nothing. What was found is in the directory of the experiment:
results.csv (a row per run), table.md and figures.
"""
