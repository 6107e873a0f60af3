"""A recipe in, what its run will take out: counts, memory, disk and time; nothing is run."""
