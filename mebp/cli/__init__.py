"""The command mebp-plan. Tables, progress and exit codes live here; nothing else prints."""
