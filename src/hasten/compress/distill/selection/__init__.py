"""Selection of the few best examples: lengths, near-duplicates, losses and diversity."""
