"""Leaving a frozen model early: exits that are trained, tables that are counted, thresholds that are calibrated.

``exits.py`` is the recipe and ``exits_trainee.py`` what is trained; ``leave.py`` runs a model that is left, over whole texts at a
time; ``risks.py`` measures what that costs, ``calibrate.py`` decides on it, and ``tables.py`` knows layers beforehand.
"""
