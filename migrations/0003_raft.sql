-- The state log becomes the log of a Raft group. What one machine wrote before is kept under another name: the node turns it into the
-- new form when it opens the file, as the chain has to be computed anew, and then drops it.
ALTER TABLE log RENAME TO log_of_one;
ALTER TABLE snapshot RENAME TO snapshot_of_one;

-- `chain` is SHA-256 over the previous row's chain, this row's position, term and kind, and its entry. `entry` is JSON: a command for
-- `normal`, the voters and learners for `membership`, empty for `blank` (the first of a new leader).
CREATE TABLE log (
    position INTEGER PRIMARY KEY CHECK (position >= 0),
    term     INTEGER NOT NULL CHECK (term >= 0),
    kind     TEXT    NOT NULL CHECK (kind IN ('blank', 'normal', 'membership')),
    entry    TEXT    NOT NULL,
    chain    BLOB    NOT NULL CHECK (length(chain) = 32)
) STRICT;

-- The state after `position`, with the membership of that time. At most one row. `digest` is SHA-256 over all of it.
CREATE TABLE snapshot (
    id         INTEGER PRIMARY KEY CHECK (id = 1),
    position   INTEGER NOT NULL CHECK (position >= 0),
    term       INTEGER NOT NULL CHECK (term >= 0),
    membership TEXT    NOT NULL,
    state      TEXT    NOT NULL,
    digest     BLOB    NOT NULL CHECK (length(digest) = 32),
    chain      BLOB    NOT NULL CHECK (length(chain) = 32)
) STRICT;

-- What this node must not forget, as JSON: `node` (its id), `vote`, `committed` and `applied` (how far the log is agreed on, and is
-- reflected in `audit`), `purged` (what the log begins after), `joining`, `batch` (counts transactions).
CREATE TABLE raft (
    name  TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;
