//! What a service's instances print, on whichever machines they are.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use axum::{
    body::Body,
    extract::{Request, State},
    response::Response,
};
use flotilla_api::{
    ApiError, ErrorCode, InstanceId, NodeId, ServiceName, UnixMillis,
    rest::{LogLine, LogQuery},
};
use futures::{Stream, StreamExt as _, TryStreamExt as _, stream::FuturesUnordered};
use http::{HeaderMap, Method};
use serde::Deserialize;
use tokio::{
    sync::{mpsc, watch},
    time::sleep,
};
use tokio_util::{
    codec::{FramedRead, LinesCodec},
    io::StreamReader,
};

use crate::{
    clock,
    http::{
        App,
        answer::{Answer, Asked, Failure, Segment},
        caller::{Caller, Operator},
        forward::{self, OnBehalf},
        merge::{self, Merged, Source},
        sight::Moment,
        streams,
    },
};

/// A line of another machine: its node cuts what a program prints far below this. Bytes.
const LINE_MAX: usize = 1024 * 1024;

/// Machines whose output begins to be followed while nobody reads: there are never more.
const COMING_MAX: usize = flotilla_core::state::MACHINES_MAX;

/// After a machine's lines broke off, or could not be had, it is asked again not sooner than this.
const AGAIN_AFTER: Duration = Duration::from_secs(1);

#[derive(Debug, Deserialize)]
pub(super) struct InstanceQuery {
    /// One instance alone.
    pub(super) instance: Option<InstanceId>,
}

pub(super) async fn read(
    State(app): State<Arc<App>>,
    Operator(caller): Operator,
    Segment(service): Segment<ServiceName>,
    Asked(query): Asked<LogQuery>,
    Asked(InstanceQuery { instance }): Asked<InstanceQuery>,
    request: Request,
) -> Answer<Response> {
    let place = streams::place(&app)?;
    let for_another_node = request.extensions().get::<OnBehalf>().is_some();
    let elsewhere = if for_another_node { BTreeSet::new() } else { machines(&app, &service, instance.as_ref()) };
    let alone = elsewhere.is_empty() && (for_another_node || app.members.network().is_none());
    let only_here = instance.is_some() && elsewhere.is_empty();
    if alone || only_here {
        let opening = app.engine.logs(&service, instance.as_ref(), query);
        let logs = streams::opened(&app, opening).await??;
        return Ok(streams::fallible_lines(&app, &caller, place, logs));
    }
    let subject = Subject { app: app.clone(), caller: caller.clone(), service, query };
    if let (Some(instance), Some(machine)) = (&instance, elsewhere.first()) {
        let answer = subject.ask(machine, query, Some(instance)).await?;
        let lines = lines(answer);
        return Ok(streams::fallible_lines(&app, &caller, place, lines));
    }
    let lines = streams::opened(&app, subject.merged(elsewhere)).await??;
    Ok(streams::lines(&app, &caller, place, lines))
}

/// Other machines that have, or shall have, an instance of the service, or the one.
fn machines(app: &App, service: &ServiceName, instance: Option<&InstanceId>) -> BTreeSet<NodeId> {
    let moment = Moment::of(app);
    let seen = moment.views().into_iter().filter_map(|(machine, view)| {
        let mut containers = view.observed.into_iter().flat_map(|observed| &observed.containers);
        let has = containers.any(|container| {
            container.service == *service && instance.is_none_or(|instance| *instance == container.instance)
        });
        has.then(|| machine.clone())
    });
    let mut machines: BTreeSet<NodeId> = seen.collect();
    if instance.is_none() {
        let placed = moment.state.services.get(service).map_or(&[][..], |service| &service.placements);
        machines.extend(placed.iter().map(|placement| placement.machine.clone()));
    }
    machines.remove(&app.node);
    // What is known of a lost machine is that it does not answer.
    machines.retain(|machine| moment.state.machines.get(machine).is_some_and(|machine| machine.lost_at.is_none()));
    machines
}

/// Whose output is read, by whom.
#[derive(Clone)]
struct Subject {
    app: Arc<App>,
    caller: Caller,
    service: ServiceName,
    query: LogQuery,
}

impl Subject {
    /// Lines of this machine and of others, as one stream.
    async fn merged(self, elsewhere: BTreeSet<NodeId>) -> Answer<impl Stream<Item = LogLine> + Send + use<>> {
        let opened_at = clock::now();
        let own = self.app.node.clone();
        let all: Vec<NodeId> = elsewhere.into_iter().chain([own]).collect();
        let opening: FuturesUnordered<_> =
            all.iter().map(|machine| async { (machine.clone(), self.open(machine, self.query).await) }).collect();
        let opened: Vec<_> = opening.collect().await;
        let (mut sources, mut read, mut failures) = (Vec::new(), Vec::new(), Vec::new());
        for (machine, opened) in opened {
            match opened {
                Ok(source) => {
                    read.push(machine);
                    sources.push(source);
                }
                Err(Failure(error)) => failures.push((self.name_of(&machine), error)),
            }
        }
        // Nobody has anything: whatever this node said of the service is the answer.
        if sources.is_empty()
            && let Some((_, error)) = failures.pop()
        {
            return Err(Failure(error));
        }
        // A machine that knows nothing of the service has nothing to say.
        failures.retain(|(_, error)| error.code != ErrorCode::ServiceNotFound);
        sources.extend(failures.into_iter().map(|(machine, error)| Source {
            lines: futures::stream::iter([Ok(merge::remark(&machine, &error))]).boxed(),
            machine,
        }));
        let tail = self.query.tail.map(|lines| lines as usize);
        let coming = if self.query.follow {
            let (sender, coming) = mpsc::channel(COMING_MAX);
            let (followed, sources_followed) = Followed::begin(read, sources, opened_at);
            sources = sources_followed;
            tokio::spawn(followed.run(self, sender));
            Some(coming)
        } else {
            None
        };
        Ok(Merged { coming, opened_at, tail }.stream(sources))
    }

    async fn open(&self, machine: &NodeId, query: LogQuery) -> Answer<Source> {
        let name = self.name_of(machine);
        if *machine == self.app.node {
            let lines = self.app.engine.logs(&self.service, None, query).await?;
            return Ok(Source { machine: name, lines: lines.map_err(ApiError::from).boxed() });
        }
        let answer = self.ask(machine, query, None).await?;
        Ok(Source { machine: name, lines: lines(answer).boxed() })
    }

    async fn ask(
        &self,
        machine: &NodeId,
        query: LogQuery,
        instance: Option<&InstanceId>,
    ) -> Answer<http::Response<hyper::body::Incoming>> {
        let mut path = format!("/api/v1/services/{}/logs?follow={}", self.service, query.follow);
        if let Some(tail) = query.tail {
            path.push_str(&format!("&tail={tail}"));
        }
        if let Some(since) = query.since {
            path.push_str(&format!("&since={}", since.0));
        }
        if let Some(instance) = instance {
            path.push_str("&instance=");
            path.extend(url::form_urlencoded::byte_serialize(instance.0.as_bytes()));
        }
        let answer = forward::ask(&self.app, machine, &self.caller, Method::GET, &path, &HeaderMap::new()).await?;
        forward::refusal(answer).await
    }

    fn name_of(&self, machine: &NodeId) -> String {
        let state = self.app.store.state();
        state.machines.get(machine).map_or_else(|| machine.to_string(), |machine| machine.name().to_string())
    }
}

/// Another node's lines of JSON.
fn lines(answer: http::Response<hyper::body::Incoming>) -> impl Stream<Item = Result<LogLine, ApiError>> + Send {
    let bytes = Body::new(answer.into_body()).into_data_stream().map_err(std::io::Error::other);
    let framed = FramedRead::new(StreamReader::new(bytes), LinesCodec::new_with_max_length(LINE_MAX));
    framed.filter_map(async |line| match line {
        // So that nothing on the way takes the stream for dead.
        Ok(line) if line.trim().is_empty() => None,
        Ok(line) => Some(serde_json::from_str(&line).map_err(|error| broken(&error))),
        Err(error) => Some(Err(broken(&error))),
    })
}

fn broken(error: &dyn std::fmt::Display) -> ApiError {
    ApiError::new(ErrorCode::ServiceUnavailable, format!("its stream broke ({error})"))
}

/// The machines that are read while the output is followed: others join when an instance comes there, and one whose stream ended is
/// asked again, from where it was.
struct Followed {
    /// Machines that are read now.
    read: BTreeSet<NodeId>,
    /// Up to when the lines of each machine have come.
    last: BTreeMap<NodeId, watch::Receiver<UnixMillis>>,
    ended: mpsc::Receiver<NodeId>,
    tell: mpsc::Sender<NodeId>,
    opened_at: UnixMillis,
}

/// Tells when a machine's lines have ended.
struct Ended {
    machine: NodeId,
    tell: mpsc::Sender<NodeId>,
}

impl Drop for Ended {
    fn drop(&mut self) {
        // There is room: a machine is read again only after this was heard. Or nobody follows any more.
        let _ = self.tell.try_send(self.machine.clone());
    }
}

impl Followed {
    fn begin(read: Vec<NodeId>, sources: Vec<Source>, opened_at: UnixMillis) -> (Self, Vec<Source>) {
        let (tell, ended) = mpsc::channel(COMING_MAX);
        let mut followed = Self { read: BTreeSet::new(), last: BTreeMap::new(), ended, tell, opened_at };
        let mut machines = read.into_iter();
        // Those that could not be read come last, and are no machine's.
        let sources = sources.into_iter().map(|source| match machines.next() {
            Some(machine) => followed.noted(machine, source),
            None => source,
        });
        let sources = sources.collect();
        (followed, sources)
    }

    fn noted(&mut self, machine: NodeId, source: Source) -> Source {
        let before = self.last.get(&machine).map_or(UnixMillis(0), |last| *last.borrow());
        let (note, last) = watch::channel(before);
        self.last.insert(machine.clone(), last);
        self.read.insert(machine.clone());
        let ended = Ended { machine, tell: self.tell.clone() };
        let lines = source.lines.inspect_ok(move |line| {
            let _ = &ended;
            note.send_if_modified(|last| {
                let newer = line.at > *last;
                *last = line.at.max(*last);
                newer
            });
        });
        Source { machine: source.machine, lines: lines.boxed() }
    }

    async fn run(mut self, subject: Subject, sender: mpsc::Sender<Source>) {
        let mut states = subject.app.store.watch();
        let mut reports = subject.app.members.watch_reports();
        let stop = subject.app.stop.clone();
        loop {
            let mut wanted = machines(&subject.app, &subject.service, None);
            wanted.insert(subject.app.node.clone());
            wanted.retain(|machine| !self.read.contains(machine));
            for machine in wanted {
                // From where it was, or, of a machine where an instance has just come, from the beginning of this reading.
                let last = self.last.get(&machine).map(|last| *last.borrow()).filter(|last| last.0 > 0);
                let since = Some(last.map_or(self.opened_at, |last| last.plus(1)));
                let query = LogQuery { since, tail: None, ..subject.query };
                if let Ok(source) = subject.open(&machine, query).await {
                    let source = self.noted(machine, source);
                    if sender.send(source).await.is_err() {
                        return;
                    }
                }
            }
            tokio::select! {
                () = sender.closed() => return,
                () = stop.cancelled() => return,
                ended = self.ended.recv() => if let Some(machine) = ended {
                    self.read.remove(&machine);
                },
                changed = states.changed() => if changed.is_err() { return },
                changed = reports.changed() => if changed.is_err() { return },
            }
            // Reports come often, and a machine that just failed is not there again at once.
            tokio::select! {
                () = sender.closed() => return,
                () = sleep(AGAIN_AFTER) => {}
            }
        }
    }
}
