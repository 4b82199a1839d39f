"""What is running: runs, sweeps and experiments below a folder as rows, read from their directories and asked of their jobs.

Nothing here loads torch, pandas, ray or matplotlib: an answer should be there in half a second, also on a login node.
"""
