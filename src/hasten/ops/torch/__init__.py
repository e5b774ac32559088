"""The reference backend in plain PyTorch. Its results are the specification of other backends."""
