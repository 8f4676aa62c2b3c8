"""How long and how much: device profiles, the cost of an op, and the simulator of a plan."""
