"""Quality metrics: how far a candidate's predictions are from a reference's, and scores on tasks.

The room knows logits, token ids and texts, and no engine or model: each side is a ``Scorer``.
"""
