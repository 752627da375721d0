-- Which router has a name, and until when.
CREATE TABLE leases (
    name      TEXT PRIMARY KEY,
    holder    TEXT NOT NULL,
    until_ms  INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
