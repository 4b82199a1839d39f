"""Experiments: comparisons of runs, each one file that says which runs it is made of and what is read off them.

All are sweeps, so the same command goes on where it was stopped and repeats nothing; what they found stands in the directory of
the experiment as results.csv (a row per run), table.md and pictures.
"""
