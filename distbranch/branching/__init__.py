"""The method itself, pure: trees, affinity between tasks, grouping, decisions, widening. Arrays in, values out."""
