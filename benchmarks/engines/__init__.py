"""Comparing CPU engines: which engines run which workloads, in which order, and how the goals are computed."""
