"""Training Medusa heads on the last hidden state of a frozen target."""
