"""Published data sets with dense labels (classes, depth, normals, edges per pixel), a file per format.

Look for a format in the file of its name; for what a label becomes in `conversions.py`; for reading, comparing and resizing
samples in `frames.py`; for kinds of files in `files.py`.
"""
