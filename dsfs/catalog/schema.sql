-- One catalog is one revision. Once sealed it never changes.

CREATE TABLE meta (
    key   TEXT PRIMARY KEY,  -- layout, revision, sealed (0 or 1), files, bytes, largest (file, bytes), skipped, created_ns,
                             -- next_ino: the first number that neither this nor a revision before it has given;
                             -- and, where the source refused some, their number: refused, and of one of them why: refusal;
                             -- of files that cannot be read as they are there, also of those that stay as they were shown:
                             -- unreadable, and unreadable_one;
                             -- where it gave some sizes that no file can have: impossible, and one of their paths: impossible_one
    value
) WITHOUT ROWID;

CREATE TABLE entry (
    ino      INTEGER PRIMARY KEY,         -- the inode number within the dataset; 1 is the root
    parent   INTEGER NOT NULL,            -- ino of the directory; 0 for the root
    name     BLOB    NOT NULL,            -- the bytes that readdir shows
    kind     INTEGER NOT NULL,            -- model.Kind; -1 for a dead link of an index, which is not shown
    size     INTEGER,                     -- bytes; NULL while only the name is known, or if it is one
                                          -- that no file can have (then tag is empty too)
    mtime_ns INTEGER NOT NULL DEFAULT 0,
    tag      TEXT    NOT NULL DEFAULT '', -- version tag
    target   BLOB,                        -- where a symbolic link points
    executable INTEGER NOT NULL DEFAULT 0, -- files: 1 if the source says so; directories: 1 where a look at its
                                           -- name has shown that it is one
    listed   INTEGER NOT NULL DEFAULT 0,  -- directories: 1 once every name in it is a row; 2: the source refused to list it.
                                          -- Files: 2 if the source refused to say its size, 3 if no file can have that,
                                          -- 4 if it does not say what it takes to read the file
    subdirs  INTEGER NOT NULL DEFAULT 0   -- directories: directories in it, counted when it was listed
);

-- lookup by name, and readdir in order of name
CREATE UNIQUE INDEX entry_parent_name ON entry (parent, name);
