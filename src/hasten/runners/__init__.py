"""From a ``StepPlan`` to logits: the PyTorch and native runners, early exit and self-drafting on top of them, backends."""
