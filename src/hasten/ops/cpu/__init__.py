"""The native CPU backend: C++ kernels behind the C interface ``native/hasten.h``."""
