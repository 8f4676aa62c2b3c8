"""What is trained: model configs, weight formats, LoRA, and the graph of one training step."""
