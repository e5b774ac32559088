"""Benchmarks: reports of measured runs that contain everything needed to repeat them."""
