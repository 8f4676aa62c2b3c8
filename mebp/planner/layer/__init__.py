"""The options of one layer, of several in a row, and the chain that they make."""
