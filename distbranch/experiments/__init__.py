"""Experiments: comparisons of runs, each a sweep over variants with an analysis at its end.

A `design_*` function (designs.py, groupings.py) computes the variants and names the analysis (analyses.py), which reads finished
runs as one long table (runs.py). `run_experiment` (runner.py) trains what is missing, so the same command resumes and repeats
nothing, and writes results.csv (a row per run), table.md and figures.
"""
