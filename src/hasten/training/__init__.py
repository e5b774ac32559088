"""Training beside a frozen target model: draft heads, draft models and exit heads.

``train.py`` runs one training. A recipe (``recipes.py``) holds its options, and ``build_task.py`` makes the ``TrainingTask`` of a
recipe. The loop (``loop.py``) trains any task.
"""
