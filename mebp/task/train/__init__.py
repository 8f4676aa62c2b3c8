"""Fine-tuning as a task: what is asked, the data, the plans, the run and its folder, and what comes out."""
