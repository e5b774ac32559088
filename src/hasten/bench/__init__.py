"""Measuring: workloads, runs, and reports that carry what is needed to repeat them."""
