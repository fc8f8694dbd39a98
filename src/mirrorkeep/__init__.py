"""Mirrorkeep: a live, mountable, versioned mirror of machines' data, proven right.

The rooms and the only arrows between them (``scripts/check`` holds them)::

    manifest  <-  delta  <-  tree  <-  sync  <-  store  <-  server
                                        ^                     |
                                       cli  (may import everything)

``errors`` and ``progress`` stand beside the rooms: every room may import them, they import none.
"""

__version__ = "0.1.0"
