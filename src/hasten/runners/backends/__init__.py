"""What computes: the native kernels of this processor, or PyTorch. Chosen once, when a model is loaded."""
