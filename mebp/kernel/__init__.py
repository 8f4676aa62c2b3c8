"""Compiled kernels for the processor, each with an equal way in torch where it is called: unpacking, and products with compressed
weights.
"""
