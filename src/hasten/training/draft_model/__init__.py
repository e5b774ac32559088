"""Training a draft model: a small decoder of the target's family that learns the target's distribution."""
