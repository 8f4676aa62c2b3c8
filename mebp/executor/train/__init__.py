"""Training: the loop over plans and data, what it saves, and how it goes on."""
