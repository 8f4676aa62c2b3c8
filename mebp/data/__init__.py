"""Text to train on: read, rendered by the chat template, turned into tokens, cut into samples, put in order."""
