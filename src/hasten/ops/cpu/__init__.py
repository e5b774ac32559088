"""The native CPU backend: C++ kernels for each instruction set behind a small C interface (``native/hasten.h``)."""
