"""The benchmark: Mirrorkeep beside rsync, restic and Borg, on fresh loop-mounted file systems.

``trees`` makes and changes the input, ``measure`` times one command with its peak memory, ``peers`` knows how
each tool copies and restores, ``cases`` is the order of events, ``report`` the table, ``plot`` the picture.
Run by ``scripts/bench``; not part of the installed package.
"""
