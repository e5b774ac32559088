"""From logits to tokens: one logits processor per file, the chain that orders them, and a sampler that keeps no state.

It knows rows of logits and the settings of each row. It knows no model, no tokenizer, no cache and no schedule.
"""
