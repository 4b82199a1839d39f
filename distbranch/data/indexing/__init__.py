"""Tars that others made become a data set where they lie: each is read once, and only an index and its labels are written."""
