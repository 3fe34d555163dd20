"""How fast the server is, as ratios to a bare baseline on the same machine and database: `make bench`."""
