"""The reference backend: plain PyTorch, on any device. Its results are the specification of all other backends."""
