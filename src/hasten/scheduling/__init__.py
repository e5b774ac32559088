"""The scheduler: which tokens the next step computes. Plain Python over integers, without torch."""
