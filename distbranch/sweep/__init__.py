"""Sweeps: many runs as one command."""
