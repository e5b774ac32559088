"""Diagnosis of outputs: which fault one has, where, how much, and which setting to turn next.

One file per detector. Each measures one fault on the text, the token ids and the log-probabilities of one output; it knows no
model and no engine.
"""
