"""How bytes lie on disk, for every stage: locations, whole-or-not-at-all writes, leases, datasets and their Arrow schemas."""
