"""The torch side of the op table: one function a kind, under the same name as in mebp/models/kind.py."""
