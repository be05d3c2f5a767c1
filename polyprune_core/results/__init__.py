"""Rows, cells on disk, their schema and statistics."""
