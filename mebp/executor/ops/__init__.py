"""The torch side of the op table: one function per kind, under the same name as in mebp/models/kind/."""
