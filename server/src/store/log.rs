//! The log and the vote, as openraft asks for them.

use std::{
    fmt::Debug,
    io,
    ops::{Bound, Range, RangeBounds},
};

use openraft::{
    OptionalSend, RaftLogReader, alias,
    storage::{IOFlushed, LogState, RaftLogStorage},
};

use super::{
    Error,
    disk::{Disk, Done, Work, row::Row},
};
use crate::consensus::{LogEntry, LogId, Types, Vote, timing::APPEND_BYTES_MAX};

/// Clones read and write the same log.
#[derive(Clone, Debug)]
pub(crate) struct Log(pub(crate) Disk);

impl RaftLogReader<Types> for Log {
    async fn try_get_log_entries<R: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: R,
    ) -> io::Result<Vec<LogEntry>> {
        self.0.entries(half_open(&range), None).await
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<LogEntry>> {
        self.0.entries(start..end, Some(APPEND_BYTES_MAX)).await
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(self.0.with_tail(|tail| tail.vote.clone()))
    }
}

impl RaftLogStorage<Types> for Log {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<Types>> {
        Ok(self.0.with_tail(|tail| LogState { last_purged_log_id: tail.purged, last_log_id: tail.last }))
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        self.0.perform(|done| Work::Vote { vote: vote.clone(), done }).await?;
        self.0.with_tail(|tail| tail.vote = Some(vote.clone()));
        Ok(())
    }

    /// It is written with what is applied next: losing it means that a restarted node learns it from its leader again.
    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        self.0.with_tail(|tail| tail.committed = committed);
        Ok(())
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        Ok(self.0.with_tail(|tail| tail.committed))
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Types>) -> io::Result<()>
    where
        I: IntoIterator<Item = alias::EntryOf<Types>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<LogEntry> = entries.into_iter().collect();
        let rows = entries.iter().map(Row::of).collect::<Result<Vec<_>, _>>().map_err(io::Error::other)?;
        let gap = self.0.with_tail(|tail| {
            // Only an empty log may begin anywhere.
            if let (Some(last), Some(first)) = (tail.last, rows.first())
                && first.id.index != last.index + 1
            {
                return Some(last.index);
            }
            for (entry, row) in entries.into_iter().zip(&rows) {
                tail.append(entry, row.text.len());
            }
            None
        });
        if let Some(last) = gap {
            return Err(io::Error::other(format!("entries that do not follow entry {last} were to be written")));
        }
        self.0.submit(Work::Append { rows, done: Done::Flushed(callback) }).await
    }

    async fn truncate_after(&mut self, kept: Option<LogId>) -> io::Result<()> {
        self.0.with_tail(|tail| tail.truncate(kept));
        // Waited for, so that no reader finds on the disk what is gone from memory.
        self.0.perform(|done| Work::Truncate { kept, done }).await
    }

    async fn purge(&mut self, upto: LogId) -> io::Result<()> {
        self.0.with_tail(|tail| tail.purge(upto));
        self.0.perform(|done| Work::Purge { upto, done }).await
    }
}

fn half_open(range: &impl RangeBounds<u64>) -> Range<u64> {
    let start = match range.start_bound() {
        Bound::Included(start) => *start,
        Bound::Excluded(start) => start.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(end) => end.saturating_add(1),
        Bound::Excluded(end) => *end,
        Bound::Unbounded => u64::MAX,
    };
    start..end
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        Self::other(error)
    }
}
