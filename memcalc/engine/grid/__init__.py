"""Many sizes of one structure at once, as arrays."""
