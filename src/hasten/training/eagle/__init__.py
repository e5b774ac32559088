"""Training an EAGLE-3 head on the hidden states of a frozen target."""
