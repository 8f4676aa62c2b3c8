"""Tests of mebp/export."""
