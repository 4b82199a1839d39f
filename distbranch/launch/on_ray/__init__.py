"""Runs on a Ray cluster: joining or starting one, training under Ray Train, and jobs of a cluster elsewhere."""
