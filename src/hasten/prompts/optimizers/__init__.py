"""Ways to find a better prompt: one module per method (``hasten.prompts.optimizer.Optimizer``).

A new file here is a new method of ``hasten prompt optimize``.
"""
