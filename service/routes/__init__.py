"""One file per resource; each has its `routes`."""
