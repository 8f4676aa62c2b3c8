"""Run a plan in a process of its own and measure it: memory, time, limits, gradients against autograd."""
