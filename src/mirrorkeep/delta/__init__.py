"""What changed inside a file: librsync signatures, differences and deltas, so that ``rdiff`` reads them.

Not here: which files to look at (``sync``), how a delta travels (``tree.wire``, ``tree.remote``).
"""
