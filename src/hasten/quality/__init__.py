"""Quality beside speed: how far a candidate's predictions are from a reference's, on the same text.

It knows logits, token ids and texts. It knows no engine and no model: both sides come as a ``Scorer``.
"""
