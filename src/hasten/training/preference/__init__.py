"""Learning from preferences and rewards: DPO, reward models, and policy gradients."""
