"""Address packing: lifetimes in, offsets out."""
