"""One module per command: flags in, a task run, a view printed."""
