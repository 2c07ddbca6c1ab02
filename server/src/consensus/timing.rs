//! How long what takes between nodes. Chosen for machines on one LAN or a home network behind relays: a heartbeat that is late by a
//! Wi-Fi hiccup must not cost a leader, and a leader that lost power must be replaced within two seconds.

use std::time::Duration;

use openraft::{Config, ConfigError, SnapshotPolicy};

/// A leader says so five times a second. openraft gives a heartbeat as long to be answered, so that this is also the longest round
/// trip on which a leader can be sure of itself; relays between two home networks have less. Milliseconds.
pub const HEARTBEAT_MS: u64 = 200;

/// A follower holds on to its leader for [`ELECTION_MAX_MS`] after a heartbeat (openraft's leader lease), in which it votes for
/// nobody else, and then for a random time between these two. So a leader is replaced 1.3 to 1.6 s after its last heartbeat: four
/// may be lost. The spread of 300 ms keeps two candidates apart by several round trips. Milliseconds.
pub const ELECTION_MIN_MS: u64 = 500;
/// See [`ELECTION_MIN_MS`].
pub const ELECTION_MAX_MS: u64 = 800;

/// A leader that no quorum answers falls silent for so long, then tries for so long, in turns. Where its words arrive and only the
/// answers are lost, its followers could never choose another one otherwise. At least a leader lease and an election. Milliseconds.
pub const QUORUM_LOSS_PROBE_MS: u64 = 2_000;

/// Entries in one message to a follower; its bytes are bounded by [`APPEND_BYTES_MAX`].
const APPEND_ENTRIES_MAX: u64 = 128;

/// Bytes of entries in one message to a follower, beyond the first entry. It shares a connection with heartbeats, and takes 20 ms at
/// 100 Mbit/s.
pub const APPEND_BYTES_MAX: usize = 256 * 1024;

/// How long a follower may take to write and answer entries, when they are few: a slow disk's `fsync`, several times over.
const APPEND_WITHIN: Duration = Duration::from_secs(1);

/// The slowest link that is waited for: at 64 KiB/s the largest entry (4 MiB) takes a minute.
const SLOWEST_BYTES_PER_SECOND: u64 = 64 * 1024;

/// How long a snapshot may take on top of its bytes on the slowest link: it is read, checked and written on the other side.
const SNAPSHOT_WITHIN: Duration = Duration::from_secs(10);

/// How long a new entry may take to be agreed on, or a leader to be found, before its proposer is told.
pub const PROPOSE_WITHIN: Duration = Duration::from_secs(10);

/// Waits between two attempts to reach a leader: at first about one heartbeat's answer.
pub const RETRY_FIRST: Duration = Duration::from_millis(25);
/// See [`RETRY_FIRST`].
pub const RETRY_MAX: Duration = Duration::from_millis(400);

/// How long a proposer waits until its own node has applied what the leader already has.
pub const CATCH_UP_WITHIN: Duration = Duration::from_secs(5);

/// How long a linearizable read may take to hear from a quorum.
pub const READ_WITHIN: Duration = Duration::from_secs(5);

/// How long leadership may take to go elsewhere: one election without its wait, and some tries.
pub const TRANSFER_WITHIN: Duration = Duration::from_secs(3);

/// How long a change of the membership may take: two entries, each agreed on by a quorum.
pub const MEMBERS_WITHIN: Duration = Duration::from_secs(10);

/// How long the only voter may take to be elected when it starts: two writes on a slow disk.
pub const ALONE_WITHIN: Duration = Duration::from_secs(10);

/// Waits before a consensus that was stopped by its disk begins again.
pub const RESTART_FIRST: Duration = Duration::from_millis(250);
/// See [`RESTART_FIRST`]: a full disk is looked at a few times a minute.
pub const RESTART_MAX: Duration = Duration::from_secs(10);

/// How far behind a learner may be that becomes a voter: it has to catch up before it can confirm anything, and until then
/// the cluster may have too few that can.
pub const PROMOTE_LAG_MAX: u64 = 64;

/// A learner that becomes a voter has answered within this time: twice what an answer may be late on a busy machine.
pub const PROMOTE_HEARD_WITHIN: Duration = Duration::from_secs(2);

/// Entries that are kept behind a snapshot, as a part of the entries between two: a follower that was away for a moment gets those,
/// rather than everything.
const KEPT_FRACTION: u64 = 4;

/// How long a message with `bytes` bytes of entries may take to be written and answered.
pub fn append_within(bytes: usize) -> Duration {
    APPEND_WITHIN + on_the_slowest_link(bytes)
}

/// How long a snapshot of `bytes` bytes may take to be written and answered.
pub fn snapshot_within(bytes: usize) -> Duration {
    SNAPSHOT_WITHIN + on_the_slowest_link(bytes)
}

fn on_the_slowest_link(bytes: usize) -> Duration {
    Duration::from_millis(u64::try_from(bytes).unwrap_or(u64::MAX).saturating_mul(1000) / SLOWEST_BYTES_PER_SECOND)
}

/// openraft's settings for a log that is folded into a snapshot every `snapshot_every` entries.
///
/// # Errors
/// Only where the constants above contradict each other.
pub fn config(snapshot_every: u64) -> Result<Config, ConfigError> {
    Config {
        cluster_name: "flotilla".to_owned(),
        heartbeat_interval: HEARTBEAT_MS,
        election_timeout_min: ELECTION_MIN_MS,
        election_timeout_max: ELECTION_MAX_MS,
        enable_pre_vote: Some(true),
        quorum_loss_probe_interval: Some(QUORUM_LOSS_PROBE_MS),
        // A leader that starts again is a new leader: the leases that it granted before are not known to it.
        enable_leader_restore: Some(false),
        max_payload_entries: APPEND_ENTRIES_MAX,
        snapshot_policy: SnapshotPolicy::LogsSinceLast(snapshot_every),
        max_in_snapshot_log_to_keep: snapshot_every / KEPT_FRACTION,
        // Larger than the distance between snapshots, or one would not be enough to catch up.
        replication_lag_threshold: snapshot_every * 2,
        backoff: "100ms 200ms 400ms ...1s".to_owned(),
        ..Config::default()
    }
    .validate()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_constants_agree_with_each_other() {
        let config = config(1024).unwrap();
        assert!(
            config.heartbeat_interval * 4 <= config.election_timeout_max,
            "one late heartbeat would cost the leader"
        );
        assert!(config.max_in_snapshot_log_to_keep < 1024);
    }

    #[test]
    fn what_is_large_may_take_longer() {
        assert_eq!(append_within(0), APPEND_WITHIN);
        assert_eq!(append_within(64 * 1024), APPEND_WITHIN + Duration::from_secs(1));
        assert!(snapshot_within(crate::peers::BODY_MAX) < Duration::from_secs(20 * 60));
    }
}
