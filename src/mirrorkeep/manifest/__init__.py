"""The manifest: the ordered text description of a whole tree, and its reading, writing and merging."""
