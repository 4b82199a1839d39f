"""Packed data sets: made from images and tables, checked, shown, and read in one order on any number of ranks."""
