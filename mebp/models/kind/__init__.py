"""Kinds of ops, an area per module: what an op of the kind computes with, costs and needs. executor/ops has the same modules."""
