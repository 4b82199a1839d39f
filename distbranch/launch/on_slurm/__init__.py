"""Runs as jobs of Slurm, through submitit: what is asked of the queue, and what each task of a job does."""
