"""Storage drivers: one file for each kind of storage that a pool can stand on."""
