"""The training loop beside a frozen model: text into batches, steps, held-out acceptance, early stop, resume after a kill.

It knows no head and no method: what is trained is a ``TrainingTask`` (``base.py``).
"""
