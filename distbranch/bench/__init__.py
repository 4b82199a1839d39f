"""Measurements that anyone can repeat, each by one command."""
