//! What the node knows of its log without asking the disk: its ends, the vote, and the newest entries, which are read again at once
//! by replication and application, and before they are on disk.

use std::{collections::BTreeMap, ops::Range};

use crate::consensus::{LogEntry, LogId, Vote};

/// Entries that are kept in memory once they are on disk, for followers that are only a little behind.
const RECENT_MAX: usize = 256;

/// Bytes of such entries, as JSON: some large deployments.
const RECENT_BYTES_MAX: usize = 4 * 1024 * 1024;

#[derive(Debug, Default)]
pub(crate) struct Tail {
    /// The log begins after it; before the first entry was deleted there is none.
    pub(crate) purged: Option<LogId>,
    /// The newest entry, or `purged`.
    pub(crate) last: Option<LogId>,
    pub(crate) vote: Option<Vote>,
    pub(crate) committed: Option<LogId>,
    /// The log begins here, as far as it is not empty: entry 0 is its first, but for a log that somebody began later.
    begins: u64,
    /// The newest entries without a gap, with their size. All that are not on disk yet are here.
    recent: BTreeMap<u64, (LogEntry, usize)>,
    recent_bytes: usize,
    /// Entries up to here are on disk.
    flushed: Option<u64>,
}

impl Tail {
    /// Of a log that is on disk as a whole.
    pub(crate) fn new(
        purged: Option<LogId>,
        last: Option<LogId>,
        vote: Option<Vote>,
        committed: Option<LogId>,
    ) -> Self {
        let flushed = last.map(|id| id.index);
        let begins = purged.map_or(0, |id| id.index + 1);
        Self { purged, last, vote, committed, flushed, begins, ..Self::default() }
    }

    /// Index of the next entry.
    pub(crate) fn next(&self) -> u64 {
        self.last.map_or(0, |id| id.index + 1)
    }

    pub(crate) fn append(&mut self, entry: LogEntry, size: usize) {
        if self.last.is_none() {
            self.begins = entry.log_id.index;
        }
        self.last = Some(entry.log_id);
        self.recent_bytes += size;
        self.recent.insert(entry.log_id.index, (entry, size));
    }

    /// Entries up to `index` are on disk now.
    pub(crate) fn flush(&mut self, index: u64) {
        self.flushed = Some(index.max(self.flushed.unwrap_or(0)));
        while self.recent.len() > RECENT_MAX || self.recent_bytes > RECENT_BYTES_MAX {
            let Some(oldest) = self.recent.first_entry().filter(|oldest| Some(*oldest.key()) <= self.flushed) else {
                return;
            };
            self.recent_bytes -= oldest.remove().1;
        }
    }

    /// Forgets the entries after `kept`.
    pub(crate) fn truncate(&mut self, kept: Option<LogId>) {
        if kept >= self.last {
            return;
        }
        for (_, size) in self.recent.split_off(&kept.map_or(0, |id| id.index + 1)).into_values() {
            self.recent_bytes -= size;
        }
        self.last = kept.max(self.purged);
        self.flushed = self.flushed.min(self.last.map(|id| id.index));
    }

    /// Forgets the entries up to `upto`.
    pub(crate) fn purge(&mut self, upto: LogId) {
        self.purged = self.purged.max(Some(upto));
        self.last = self.last.max(Some(upto));
        self.begins = self.begins.max(upto.index + 1);
        let kept = self.recent.split_off(&(upto.index + 1));
        self.recent_bytes = kept.values().map(|(_, size)| size).sum();
        self.recent = kept;
        if self.last == Some(upto) {
            self.flushed = Some(upto.index);
        }
    }

    /// Of `range`, what has to be read from the disk, and the entries that follow it.
    pub(crate) fn read(&self, range: Range<u64>) -> (Range<u64>, Vec<(LogEntry, usize)>) {
        let start = range.start.max(self.begins);
        let end = range.end.min(self.next());
        let memory = self.recent.first_key_value().map_or(end, |(first, _)| *first).clamp(start.min(end), end);
        (start.min(memory)..memory, self.recent.range(memory..end).map(|(_, entry)| entry.clone()).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::consensus::{Payload, log_id};

    fn filled(last: u64) -> Tail {
        let mut tail = Tail::default();
        for index in 0..=last {
            tail.append(LogEntry { log_id: log_id(1, index), payload: Payload::Blank }, 10);
        }
        tail
    }

    fn indices((disk, memory): (Range<u64>, Vec<(LogEntry, usize)>)) -> (Range<u64>, Vec<u64>) {
        (disk, memory.iter().map(|(entry, _)| entry.log_id.index).collect())
    }

    #[test]
    fn what_is_not_on_disk_is_kept_in_memory() {
        let mut tail = filled(1000);
        assert_eq!(indices(tail.read(998..2000)), (998..998, vec![998, 999, 1000]));
        tail.flush(900);
        assert_eq!(tail.recent.len(), RECENT_MAX);
        assert_eq!(indices(tail.read(0..10)), (0..10, vec![]));
        assert_eq!(indices(tail.read(744..746)), (744..745, vec![745]));
        tail.append(LogEntry { log_id: log_id(1, 1001), payload: Payload::Blank }, RECENT_BYTES_MAX);
        tail.flush(900);
        assert_eq!(*tail.recent.first_key_value().unwrap().0, 901, "an entry was dropped that is not on disk");
    }

    #[test]
    fn both_ends_can_be_cut() {
        let mut tail = filled(9);
        tail.flush(9);
        tail.truncate(Some(log_id(1, 6)));
        assert_eq!((tail.last, tail.flushed), (Some(log_id(1, 6)), Some(6)));
        tail.truncate(Some(log_id(1, 8)));
        assert_eq!(tail.last, Some(log_id(1, 6)), "cutting behind the end made the log longer");
        tail.purge(log_id(1, 3));
        assert_eq!(indices(tail.read(0..100)), (4..4, vec![4, 5, 6]));
        assert_eq!(tail.recent_bytes, 30);
        tail.purge(log_id(2, 20));
        assert_eq!((tail.purged, tail.last), (Some(log_id(2, 20)), Some(log_id(2, 20))));
        assert_eq!(indices(tail.read(0..100)), (21..21, vec![]));
        assert_eq!(tail.next(), 21);
    }
}
