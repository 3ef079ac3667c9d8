"""Readers and writers of single file formats; each reader gives columns by the names of its file."""
