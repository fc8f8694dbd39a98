"""The store: pools, volumes, runs, snapshots, validation; everything that lies on the server's disks."""
