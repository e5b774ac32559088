"""From a ``StepPlan`` to logits: runners of decoders and EAGLE heads, early exit, and the backends."""
