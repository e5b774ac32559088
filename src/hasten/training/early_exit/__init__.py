"""Early exit beside a frozen model: exit heads, exit tables and calibrated thresholds.

``task.py`` trains the exit heads. ``calibrate.py`` then measures confidence and loss (``exit_statistics.py``), the cost of exits
(``risks.py``, ``run_with_exits.py``), and from it finds tables (``tables.py``) and thresholds (``thresholds.py``).
"""
