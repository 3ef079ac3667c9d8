"""The published systems of the core, one file each; they are found by name through the entry points `vsuite.models`."""
