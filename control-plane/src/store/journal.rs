//! The database: schema, writes, replay, pruning. Used by the writer's thread only.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rusqlite::{Connection, ErrorCode, OptionalExtension as _, params};

use super::{Config, KEPT, KnownInstance, OpenError, Report, SEQUENCES_KEPT, record};
use crate::graph::Timestamp;

/// The format of the database; raised when it changes so that an older version refuses instead of misreading.
const FORMAT: i64 = 1;
const FILE: &str = "journal.sqlite";
/// Rows pruned in one go, so that pruning never holds up commits for long: ten seconds of 1,000 sidecars, twice.
const PRUNE_ROWS: i64 = 20_000;

const SCHEMA: &str = "
    CREATE TABLE instances (
        id        INTEGER PRIMARY KEY,
        name      TEXT NOT NULL UNIQUE,  -- '' stands for all senders without sequences
        sequence  INTEGER NOT NULL,      -- highest committed
        started   INTEGER NOT NULL,      -- Unix milliseconds, here and below
        last_end  INTEGER NOT NULL,
        heard     INTEGER NOT NULL,
        workload  TEXT NOT NULL,
        addresses TEXT NOT NULL          -- separated by spaces
    );
    CREATE TABLE reports (
        instance    INTEGER NOT NULL,
        sequence    INTEGER NOT NULL,
        received_at INTEGER NOT NULL,
        start       INTEGER NOT NULL,
        end         INTEGER NOT NULL,
        body        BLOB NOT NULL,
        PRIMARY KEY (instance, sequence)
    );
    CREATE INDEX reports_received_at ON reports (received_at);
";

/// The database, or nothing where there is no data directory.
pub(super) struct Journal {
    connection: Option<Connection>,
    /// Whether it was said that the database is nearly full; said once, not every few seconds.
    is_warned: bool,
}

impl Journal {
    pub(super) fn open(config: &Config) -> Result<Self, OpenError> {
        let Some(directory) = &config.data_dir else {
            return Ok(Self { connection: None, is_warned: false });
        };
        std::fs::create_dir_all(directory)
            .map_err(|source| OpenError::Directory { path: directory.clone(), source })?;
        let path = directory.join(FILE);
        match connect(&path, config.bytes_max) {
            Err(OpenError::Database { source, .. }) if is_damaged(&source) => {
                put_aside(&path);
                connect(&path, config.bytes_max)
            }
            other => other,
        }
        .map(|connection| Self { connection: Some(connection), is_warned: false })
    }

    /// Writes all rows or none.
    pub(super) fn write<'a>(
        &mut self,
        rows: impl Iterator<Item = (&'a Report, u64, &'a [u8])>,
    ) -> rusqlite::Result<()> {
        let Some(connection) = &mut self.connection else { return Ok(()) };
        let transaction = connection.transaction()?;
        {
            let mut instance = transaction.prepare_cached(
                "INSERT INTO instances (name, sequence, started, last_end, heard, workload, addresses)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
                 ON CONFLICT (name) DO UPDATE SET sequence = max(sequence, ?2), last_end = max(last_end, ?4), heard = ?5,
                     workload = ?6, addresses = ?7
                 RETURNING id",
            )?;
            // A row can be there already when the writer had to forget the instance (see `INSTANCES_MAX` there): one
            // such repetition must not fail everybody else's reports.
            let mut insert = transaction.prepare_cached(
                "INSERT INTO reports (instance, sequence, received_at, start, end, body)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6) ON CONFLICT (instance, sequence) DO NOTHING",
            )?;
            for (report, sequence, body) in rows {
                let sequence = i64::try_from(sequence).unwrap_or(i64::MAX);
                let [received_at, start, end] = [report.received_at, report.start, report.end].map(integer);
                let name = report.instance.as_deref().unwrap_or_default();
                let addresses: Vec<String> = report.addresses.iter().map(ToString::to_string).collect();
                let values =
                    params![name, sequence, start, end, received_at, report.workload, addresses.join(" ")];
                let id: i64 = instance.query_row(values, |row| row.get(0))?;
                // An idle sidecar's report moves its sequence and nothing else.
                if !report.samples.is_empty() {
                    insert.execute(params![id, sequence, received_at, start, end, body])?;
                }
            }
        }
        transaction.commit()
    }

    /// Every instance that is remembered.
    pub(super) fn instances(&self) -> rusqlite::Result<Vec<KnownInstance>> {
        let Some(connection) = &self.connection else { return Ok(Vec::new()) };
        let mut instances =
            connection.prepare("SELECT name, sequence, started, last_end, addresses FROM instances")?;
        let known = instances.query_map([], |row| {
            Ok(KnownInstance {
                instance: row.get::<_, String>(0)?.into(),
                sequence: unsigned(row.get(1)?),
                started: timestamp(row.get(2)?),
                last_end: timestamp(row.get(3)?),
                addresses: addresses(&row.get::<_, String>(4)?),
            })
        })?;
        known.collect()
    }

    /// Reads back the last hour's reports in the order they were committed. Returns their number.
    pub(super) fn replay(&self, now: Timestamp, mut count: impl FnMut(&Report)) -> rusqlite::Result<u64> {
        let Some(connection) = &self.connection else { return Ok(0) };
        let mut reports = connection.prepare(
            "SELECT name, reports.sequence, received_at, start, end, body, workload, addresses
             FROM reports JOIN instances ON instances.id = reports.instance
             WHERE received_at >= ?1 ORDER BY reports.rowid",
        )?;
        let mut rows = reports.query([integer(now.minus(KEPT))])?;
        let mut replayed = 0;
        while let Some(row) = rows.next()? {
            let body = row.get_ref(5)?.as_blob()?;
            let Some(samples) = record::decode(body) else {
                tracing::error!("a report in the journal is not readable and is left out");
                continue;
            };
            let name: String = row.get(0)?;
            let report = Report {
                instance: (!name.is_empty()).then(|| Arc::from(name)),
                sequence: unsigned(row.get(1)?),
                received_at: timestamp(row.get(2)?),
                start: timestamp(row.get(3)?),
                end: timestamp(row.get(4)?),
                workload: row.get(6)?,
                addresses: addresses(&row.get::<_, String>(7)?),
                samples,
            };
            count(&report);
            replayed += 1;
        }
        Ok(replayed)
    }

    /// Removes what is too old, and the oldest tenth when the database is nearly as large as it may be.
    pub(super) fn prune(&mut self, now: Timestamp) -> rusqlite::Result<()> {
        let Some(connection) = &mut self.connection else { return Ok(()) };
        let old = connection.execute(
            "DELETE FROM reports WHERE rowid IN
                 (SELECT rowid FROM reports WHERE received_at < ?1 ORDER BY received_at LIMIT ?2)",
            params![integer(now.minus(KEPT)), PRUNE_ROWS],
        )?;
        connection.execute(
            "DELETE FROM instances WHERE heard < ?1 AND name <> ''
                 AND NOT EXISTS (SELECT 1 FROM reports WHERE reports.instance = instances.id)",
            params![integer(now.minus(SEQUENCES_KEPT))],
        )?;
        if old == 0 && used_share(connection)? > 0.9 {
            let pruned = connection.execute(
                "DELETE FROM reports WHERE rowid IN (SELECT rowid FROM reports ORDER BY received_at LIMIT ?1)",
                params![PRUNE_ROWS],
            )?;
            if !self.is_warned {
                self.is_warned = true;
                tracing::warn!(
                    pruned,
                    "the journal is nearly full: a restart will show less than the last hour"
                );
            }
        }
        Ok(())
    }
}

/// The share of the pages it may have that hold something.
fn used_share(connection: &Connection) -> rusqlite::Result<f64> {
    let pragma = |name: &str| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    let (pages, free, max) = (pragma("page_count")?, pragma("freelist_count")?, pragma("max_page_count")?);
    Ok((pages - free) as f64 / max.max(1) as f64)
}

fn connect(path: &Path, bytes_max: u64) -> Result<Connection, OpenError> {
    let failed = |source| OpenError::Database { path: path.to_owned(), source };
    let connection = Connection::open(path).map_err(failed)?;
    let found = prepare(&connection, bytes_max).map_err(failed)?;
    if found != FORMAT {
        return Err(OpenError::Format { path: path.to_owned(), found, known: FORMAT });
    }
    Ok(connection)
}

/// Sets the connection up and makes the tables of a new database; returns the database's format.
fn prepare(connection: &Connection, bytes_max: u64) -> rusqlite::Result<i64> {
    // One process at a time: two control planes on one directory would each count half.
    connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    connection.pragma_update(None, "journal_size_limit", 64 << 20)?;
    // In an image there is no /tmp, and nothing but the data directory can be written.
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    let page: i64 = connection.pragma_query_value(None, "page_size", |row| row.get(0))?;
    let pages = i64::try_from(bytes_max).unwrap_or(i64::MAX) / page.max(1);
    // Beyond this, writes fail as they do on a full disk.
    connection.pragma_update(None, "max_page_count", pages)?;
    let format: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let empty =
        connection.query_row("SELECT 1 FROM sqlite_schema LIMIT 1", [], |_| Ok(())).optional()?.is_none();
    if format == 0 && empty {
        connection.execute_batch(&format!("BEGIN; {SCHEMA} PRAGMA user_version = {FORMAT}; COMMIT;"))?;
        return Ok(FORMAT);
    }
    Ok(format)
}

fn is_damaged(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
}

/// Renames a damaged database: an hour of history is worth less than a control plane that starts.
fn put_aside(path: &Path) {
    let mut aside = path.as_os_str().to_owned();
    aside.push(format!(".damaged-{}", Timestamp::now().millis()));
    let aside = PathBuf::from(aside);
    match std::fs::rename(path, &aside) {
        Ok(()) => {
            tracing::error!(?path, ?aside, "the journal is damaged and was put aside; counting begins anew")
        }
        Err(error) => tracing::error!(?path, %error, "the journal is damaged and cannot be put aside"),
    }
    for suffix in ["-wal", "-shm"] {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        // Often they are not there; a leftover that stays makes the next open fail with its own message.
        drop(std::fs::remove_file(PathBuf::from(name)));
    }
}

fn addresses(text: &str) -> Vec<std::net::IpAddr> {
    text.split(' ').filter_map(|address| address.parse().ok()).collect()
}

fn integer(at: Timestamp) -> i64 {
    i64::try_from(at.millis()).unwrap_or(i64::MAX)
}

fn timestamp(millis: i64) -> Timestamp {
    Timestamp::from_millis(unsigned(millis))
}

fn unsigned(value: i64) -> u64 {
    u64::try_from(value).unwrap_or_default()
}
