"""Writers of quantised checkpoints.

Each file is one format, and its name is the format's name.
"""
