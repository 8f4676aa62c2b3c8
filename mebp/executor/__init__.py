"""Run plans for real, in torch: stores of compressed weights, the ops, the engines, and what is measured."""
