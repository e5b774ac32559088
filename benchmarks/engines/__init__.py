"""Comparing CPU engines: the engines, their workloads, their order, and the goals."""
