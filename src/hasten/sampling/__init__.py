"""Sampling of tokens from logits: logits processors and their order, token selectors and the sampler.

The package knows rows of logits and the settings of each row. It knows no model, tokenizer, KV cache or schedule.
"""
