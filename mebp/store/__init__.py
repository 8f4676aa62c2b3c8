"""Stores of compressed weights: read, written, made from checkpoints or at random; and the formats' codecs."""
