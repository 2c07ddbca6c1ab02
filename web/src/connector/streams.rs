//! Which request of which page a stream on the wire is.
//!
//! Each port (a run of a service worker) counts its requests from 1. On the wire an id is used once in a connection, so the
//! connector gives its own and keeps both.

use std::collections::BTreeMap;

use flotilla_api::frame::{Header, Kind, Lane, STREAMS_MAX};

/// A port to a service worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct PortId(pub(super) u32);

/// A stream as its page knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Local {
    pub(super) port: PortId,
    pub(super) stream: u32,
}

#[derive(Debug)]
struct Stream {
    local: Local,
    lane: Lane,
    /// When the page asked, in milliseconds of any steady clock.
    since: f64,
    page_ended: bool,
    node_ended: bool,
}

#[derive(Debug, Default)]
pub(super) struct Streams {
    by_wire: BTreeMap<u32, Stream>,
    by_local: BTreeMap<Local, u32>,
    last: u32,
}

/// Why a page's stream is not opened.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refused {
    TooMany,
    /// The page used the id before, and the stream still lives.
    Repeated,
}

impl Streams {
    /// # Errors
    /// Where the node would refuse it, too.
    pub(super) fn open(&mut self, local: Local, lane: Lane, has_body: bool, now: f64) -> Result<u32, Refused> {
        if self.by_local.contains_key(&local) {
            return Err(Refused::Repeated);
        }
        if self.by_wire.len() >= STREAMS_MAX {
            return Err(Refused::TooMany);
        }
        self.last += 1;
        let stream = Stream { local, lane, since: now, page_ended: !has_body, node_ended: false };
        self.by_wire.insert(self.last, stream);
        self.by_local.insert(local, self.last);
        Ok(self.last)
    }

    /// Where a page's frame goes; `None` for one of a stream that is over.
    pub(super) fn page_sent(&mut self, local: Local, kind: Kind) -> Option<(u32, Lane)> {
        let wire = *self.by_local.get(&local)?;
        let stream = self.by_wire.get_mut(&wire)?;
        let lane = stream.lane;
        stream.page_ended |= kind == Kind::End;
        self.close_if_over(wire, kind);
        Some((wire, lane))
    }

    /// Where a node's frame goes; `None` for one of a stream that is over.
    pub(super) fn node_sent(&mut self, header: Header) -> Option<Local> {
        let stream = self.by_wire.get_mut(&header.stream)?;
        let local = stream.local;
        stream.node_ended |= header.ends();
        self.close_if_over(header.stream, header.kind);
        Some(local)
    }

    fn close_if_over(&mut self, wire: u32, kind: Kind) {
        let over =
            kind == Kind::Reset || self.by_wire.get(&wire).is_some_and(|stream| stream.page_ended && stream.node_ended);
        if over && let Some(stream) = self.by_wire.remove(&wire) {
            self.by_local.remove(&stream.local);
        }
    }

    /// The streams of a port that is gone, which are over.
    pub(super) fn lose_port(&mut self, port: PortId) -> Vec<(u32, Lane)> {
        self.take(|stream| stream.local.port == port).into_iter().map(|(wire, stream)| (wire, stream.lane)).collect()
    }

    /// All streams, which are over because their connection is.
    pub(super) fn lose_all(&mut self) -> Vec<Local> {
        self.take(|_| true).into_iter().map(|(_, stream)| stream.local).collect()
    }

    /// The streams that have waited since `before` or longer, which are over.
    pub(super) fn expire(&mut self, before: f64) -> Vec<(u32, Lane, Local)> {
        let expired = self.take(|stream| stream.since <= before);
        expired.into_iter().map(|(wire, stream)| (wire, stream.lane, stream.local)).collect()
    }

    fn take(&mut self, which: impl Fn(&Stream) -> bool) -> Vec<(u32, Stream)> {
        let taken: Vec<_> = self.by_wire.extract_if(.., |_, stream| which(stream)).collect();
        for (_, stream) in &taken {
            self.by_local.remove(&stream.local);
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use flotilla_api::frame::flags;

    use super::*;

    fn from_node(stream: u32, kind: Kind) -> Header {
        Header { kind, flags: 0, stream }
    }

    fn local(port: u32, stream: u32) -> Local {
        Local { port: PortId(port), stream }
    }

    #[test]
    fn two_pages_with_the_same_ids_do_not_meet() {
        let mut streams = Streams::default();
        let first = streams.open(local(1, 1), Lane::Interactive, false, 0.0).unwrap();
        let second = streams.open(local(2, 1), Lane::Bulk, true, 0.0).unwrap();
        assert_ne!(first, second);
        assert_eq!(streams.page_sent(local(2, 1), Kind::Data), Some((second, Lane::Bulk)));
        assert_eq!(streams.node_sent(from_node(first, Kind::Head)), Some(local(1, 1)));
        assert_eq!(streams.node_sent(from_node(second, Kind::Head)), Some(local(2, 1)));
    }

    #[test]
    fn a_stream_is_over_when_both_sides_ended_or_one_gave_up() {
        let mut streams = Streams::default();
        let upload = streams.open(local(1, 1), Lane::Bulk, true, 0.0).unwrap();
        assert!(streams.node_sent(from_node(upload, Kind::End)).is_some());
        assert!(streams.page_sent(local(1, 1), Kind::End).is_some());
        assert_eq!(streams.page_sent(local(1, 1), Kind::Credit), None);

        let download = streams.open(local(1, 2), Lane::Interactive, false, 0.0).unwrap();
        assert!(streams.node_sent(from_node(download, Kind::End)).is_some());
        assert_eq!(streams.node_sent(from_node(download, Kind::Data)), None);

        let whole = streams.open(local(1, 4), Lane::Interactive, false, 0.0).unwrap();
        let head = Header { flags: flags::WHOLE, ..from_node(whole, Kind::Head) };
        assert_eq!(streams.node_sent(head), Some(local(1, 4)));
        assert_eq!(streams.node_sent(from_node(whole, Kind::End)), None);

        let aborted = streams.open(local(1, 3), Lane::Interactive, false, 0.0).unwrap();
        assert!(streams.page_sent(local(1, 3), Kind::Reset).is_some());
        assert_eq!(streams.node_sent(from_node(aborted, Kind::Data)), None);
    }

    #[test]
    fn an_id_on_the_wire_is_never_used_twice() {
        let mut streams = Streams::default();
        let first = streams.open(local(1, 1), Lane::Interactive, false, 0.0).unwrap();
        streams.lose_all();
        assert_eq!(streams.open(local(1, 1), Lane::Interactive, false, 0.0).unwrap(), first + 1);
    }

    #[test]
    fn a_page_can_open_no_more_than_the_node_takes() {
        let mut streams = Streams::default();
        for stream in 1..=u32::try_from(STREAMS_MAX).unwrap() {
            streams.open(local(1, stream), Lane::Interactive, false, 0.0).unwrap();
        }
        assert_eq!(streams.open(local(1, 9999), Lane::Interactive, false, 0.0), Err(Refused::TooMany));
        assert_eq!(streams.open(local(1, 1), Lane::Interactive, false, 0.0), Err(Refused::Repeated));
    }

    #[test]
    fn losing_a_port_ends_its_streams_only() {
        let mut streams = Streams::default();
        let lost = streams.open(local(1, 1), Lane::Bulk, true, 0.0).unwrap();
        let kept = streams.open(local(2, 1), Lane::Interactive, false, 5.0).unwrap();
        assert_eq!(streams.lose_port(PortId(1)), [(lost, Lane::Bulk)]);
        assert_eq!(streams.expire(4.0), []);
        assert_eq!(streams.expire(5.0), [(kept, Lane::Interactive, local(2, 1))]);
        assert!(streams.by_local.is_empty());
    }
}
