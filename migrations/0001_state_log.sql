-- The state log: what was agreed, in order. `chain` is SHA-256 over the previous row's chain and this row's entry, so that
-- a damaged or edited row is noticed when the log is replayed.
CREATE TABLE log (
    position INTEGER PRIMARY KEY CHECK (position > 0),
    entry    TEXT NOT NULL,
    chain    BLOB NOT NULL CHECK (length(chain) = 32)
) STRICT;

-- The state after `position`; entries up to there are deleted. At most one row.
CREATE TABLE snapshot (
    id       INTEGER PRIMARY KEY CHECK (id = 1),
    position INTEGER NOT NULL,
    state    TEXT NOT NULL,
    digest   BLOB NOT NULL CHECK (length(digest) = 32),
    chain    BLOB NOT NULL CHECK (length(chain) = 32)
) STRICT;

-- Who changed what, when and from where. Kept longer than the log, up to a fixed number of rows.
CREATE TABLE audit (
    position INTEGER NOT NULL,
    ordinal  INTEGER NOT NULL,
    at       INTEGER NOT NULL,
    actor    TEXT NOT NULL,
    token    TEXT,
    origin   TEXT,
    kind     TEXT NOT NULL,
    service  TEXT,
    message  TEXT NOT NULL,
    PRIMARY KEY (position, ordinal)
) STRICT, WITHOUT ROWID;

CREATE TABLE meta (
    name  TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;
