"""Speculative decoding: drafters, draft trees, acceptance rules, and the policy that decides what is worth verifying."""
