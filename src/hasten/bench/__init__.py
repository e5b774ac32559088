"""Benchmarks: workloads, measured runs, and reports that contain everything needed to repeat them."""
