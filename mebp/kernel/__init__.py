"""Compiled kernels for the processor. Each says whether it could run; where it could not, its caller does the same in torch."""
