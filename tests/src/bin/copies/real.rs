//! What people have: sources, documents and a database, from what is installed on this machine. So it is the same in all runs of one
//! machine, and about the same on others.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Result, ensure};
use sqlx::{
    Connection, SqliteConnection,
    sqlite::{SqliteConnectOptions, SqliteJournalMode},
};

/// Sources and documents, as they are found, and how much of each is taken. Bytes.
const FROM: [(&str, u64); 4] = [
    ("/usr/include", 40_000_000),
    ("/usr/lib/python3", 40_000_000),
    ("/usr/share/perl", 20_000_000),
    ("/usr/share/doc", 40_000_000),
];
/// Of their texts as many are in the database. Bytes.
const IN_ROWS: u64 = 40_000_000;
/// With less, nothing that counts would be measured. Bytes.
const LEAST: u64 = 60_000_000;

/// Writes it into a directory.
pub(crate) async fn write(directory: &Path) -> Result<()> {
    let mut taken = Vec::new();
    let mut bytes = 0;
    for (from, most) in FROM {
        let from = Path::new(from);
        bytes += copy(from, &directory.join(from.strip_prefix("/")?), most, &mut taken)?;
    }
    ensure!(bytes >= LEAST, "only {bytes} bytes of sources and documents are installed on this machine");
    // SQLite takes a path apart itself, and with that of a simulated machine's disk it ends at this machine's.
    let made = tempfile::NamedTempFile::new()?;
    database(made.path(), &taken).await?;
    fs::copy(made.path(), directory.join("texts.sqlite"))?;
    Ok(())
}

/// Files, in the order of their names, until there are enough bytes; says how many.
fn copy(from: &Path, to: &Path, most: u64, taken: &mut Vec<PathBuf>) -> Result<u64> {
    let mut bytes = 0;
    // Not every machine has all of them.
    let mut entries: Vec<_> = fs::read_dir(from).into_iter().flatten().collect::<Result<_, _>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let (kind, to) = (entry.file_type()?, to.join(entry.file_name()));
        if kind.is_dir() && bytes < most {
            bytes += copy(&entry.path(), &to, most - bytes, taken)?;
        } else if kind.is_file() && bytes + entry.metadata()?.len() <= most {
            if let Some(parent) = to.parent() {
                fs::create_dir_all(parent)?;
            }
            bytes += fs::copy(entry.path(), &to)?;
            taken.push(entry.path());
        }
    }
    Ok(bytes)
}

/// Texts, and where each is from, with an index of their beginnings.
async fn database(file: &Path, texts: &[PathBuf]) -> Result<()> {
    let options = SqliteConnectOptions::new().filename(file).create_if_missing(true);
    let mut database = SqliteConnection::connect_with(&options.journal_mode(SqliteJournalMode::Delete)).await?;
    sqlx::query("CREATE TABLE texts (number INTEGER PRIMARY KEY, path TEXT NOT NULL, body TEXT NOT NULL)")
        .execute(&mut database)
        .await?;
    let mut all = database.begin().await?;
    let mut bytes = 0;
    // Of all kinds: every other one, from the end.
    for path in texts.iter().rev().step_by(2) {
        let Ok(body) = fs::read_to_string(path) else { continue };
        if bytes > IN_ROWS {
            break;
        }
        bytes += body.len() as u64;
        sqlx::query("INSERT INTO texts (path, body) VALUES (?, ?)")
            .bind(path.display().to_string())
            .bind(body)
            .execute(&mut *all)
            .await?;
    }
    all.commit().await?;
    sqlx::query("CREATE INDEX beginnings ON texts (substr(body, 1, 200))").execute(&mut database).await?;
    database.close().await?;
    Ok(())
}
