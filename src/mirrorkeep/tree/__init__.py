"""Trees seen through one interface: native, stored, remote."""
