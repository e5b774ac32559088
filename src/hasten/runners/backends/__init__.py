"""The backends: native CPU kernels or PyTorch, chosen once when a model is loaded."""
