"""What makes a model cheaper to run and is done once, beforehand: it writes checkpoints and never serves.

Here: training small parts beside a frozen model. ``training/`` is the loop, one for all; what it trains is a ``Trainee``, made by a
``Recipe`` (``heads/``, ``draft.py``).
"""
