"""Scores of layers.

Each file is one score, and its name is the score's name.
"""
