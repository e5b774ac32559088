"""Speculative decoding: drafters, draft trees, acceptance rules, and the policy of drafting."""
