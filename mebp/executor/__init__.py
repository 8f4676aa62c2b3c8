"""Run plans for real, in torch: the ops, the engines, and what is measured."""
