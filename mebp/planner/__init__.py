"""Find plans: fixed strategies, the CP-SAT model, packing. Everything here ends in the plan language of mebp/plan.py."""
