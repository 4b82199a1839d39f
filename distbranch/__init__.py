"""distbranch: multi-task networks that find out by themselves what to share."""
