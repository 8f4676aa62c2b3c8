"""Rematerialisation and paging on any training graph, not only decoders: read, check, order, solve."""
