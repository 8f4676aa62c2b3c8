"""What a command does without a terminal; where planner and executor meet."""
