"""The values everyone speaks. Nothing here imports torch, and nothing here knows a model."""
