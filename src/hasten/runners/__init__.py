"""From a ``StepPlan`` to logits: PyTorch and native runners, early exit, self-drafting, EAGLE heads, and the backends."""
