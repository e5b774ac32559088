"""Quantisation of a checkpoint, layer by layer over memory-mapped weights.

``rounding`` and ``transforms`` hold the mathematics of the methods; ``quantize`` runs them over a model.
"""
