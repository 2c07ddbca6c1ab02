//! A service that writes a row into a SQLite database (WAL, every commit synced) and then a line into a file on another volume, all the
//! time, and answers over HTTP how far it is. What it finds when it starts tells whether both volumes are of one instant.
#![allow(clippy::print_stdout, reason = "its output is what `flotilla logs` shows")]

use std::{
    fs::File,
    io::{Read as _, Write as _},
    net::Ipv4Addr,
    path::Path,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result};
use axum::{Json, Router, extract::State, routing::get};
use flotilla_tests::{
    bed::probe::clock,
    ledger::{DATA, JOURNAL, Ledger, PORT},
};
use sqlx::{
    Connection as _, SqliteConnection,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous},
};
use tokio::{net::TcpListener, signal::unix, time::sleep};

/// Between two rows.
const PAUSE: Duration = Duration::from_millis(10);
/// So many bytes of each row are nothing but weight.
const WEIGHT: usize = 500;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let options = SqliteConnectOptions::new()
        .filename(Path::new(DATA).join("ledger.db"))
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full);
    let mut database = SqliteConnection::connect_with(&options).await.context("open the database")?;
    sqlx::query("CREATE TABLE IF NOT EXISTS ledger (number INTEGER PRIMARY KEY, at INTEGER, weight BLOB)")
        .execute(&mut database)
        .await?;
    let integrity: String = sqlx::query_scalar("PRAGMA integrity_check").fetch_one(&mut database).await?;
    let found: i64 = sqlx::query_scalar("SELECT coalesce(max(number), 0) FROM ledger").fetch_one(&mut database).await?;
    let rows: i64 = sqlx::query_scalar("SELECT count(*) FROM ledger").fetch_one(&mut database).await?;
    anyhow::ensure!(rows == found, "the database has {rows} rows, and the newest is {found}");
    let found = u64::try_from(found)?;
    let found_in_journal = last_line()?;
    println!("found {found} rows and {found_in_journal} lines; integrity: {integrity}");

    let host = std::fs::read_to_string("/etc/hostname").unwrap_or_default().trim().to_owned();
    let ledger =
        Ledger { host, started: clock(), found, found_in_journal, integrity, acknowledged: found, at: unix_millis() };
    let ledger = Arc::new(Mutex::new(ledger));
    let writing = tokio::spawn(write(database, Arc::clone(&ledger)));
    let router = Router::new()
        .route(
            "/",
            get(async |State(ledger): State<Arc<Mutex<Ledger>>>| Json(ledger.lock().expect("none panics").clone())),
        )
        .route("/healthz", get(async || "ok"))
        .with_state(ledger);
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)).await?;
    let mut term = unix::signal(unix::SignalKind::terminate())?;
    tokio::select! {
        served = axum::serve(listener, router) => served?,
        written = writing => written??,
        _ = term.recv() => {}
    }
    Ok(())
}

async fn write(mut database: SqliteConnection, ledger: Arc<Mutex<Ledger>>) -> Result<()> {
    let mut journal = File::options().create(true).append(true).open(Path::new(JOURNAL).join("journal"))?;
    let mut number = ledger.lock().expect("none panics").found;
    // Lines of rows that are lost stand for nothing; those that are missing are made up for.
    let lines = ledger.lock().expect("none panics").found_in_journal;
    (lines + 1..=number).try_for_each(|line| writeln!(journal, "{line}"))?;
    loop {
        number += 1;
        sqlx::query("INSERT INTO ledger VALUES (?, ?, randomblob(?))")
            .bind(i64::try_from(number)?)
            .bind(i64::try_from(unix_millis())?)
            .bind(i64::try_from(WEIGHT)?)
            .execute(&mut database)
            .await?;
        writeln!(journal, "{number}")?;
        {
            let mut ledger = ledger.lock().expect("none panics");
            (ledger.acknowledged, ledger.at) = (number, unix_millis());
        }
        sleep(PAUSE).await;
    }
}

/// The number on the last whole line.
fn last_line() -> Result<u64> {
    let mut text = String::new();
    match File::open(Path::new(JOURNAL).join("journal")) {
        Ok(mut file) => drop(file.read_to_string(&mut text)?),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error.into()),
    }
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole.lines().next_back().map_or(Ok(0), |line| line.parse().context("a line of the journal"))
}

fn unix_millis() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
