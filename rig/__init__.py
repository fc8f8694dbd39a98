"""The rig: what the demo, the system tests and the benchmark stand on.

Scratch file systems on loop devices (``scratch``), a store served by a child process (``served``), and a
comparer of trees that knows nothing of the product (``compare``).  Not part of the installed package.
"""
