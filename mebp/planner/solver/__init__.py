"""The solver: the problem, its bounds, its model, the search, the plan."""
