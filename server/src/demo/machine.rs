//! One machine of the demo: its plug, its node, and what becomes of that when it dies by itself.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use flotilla_api::MachineName;
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
    time::sleep,
};

use super::{
    child::{NodeProcess, Recipe},
    family,
    front::Doors,
};
use crate::{
    cli::{Failure, Output},
    client::Client,
    engine,
    identity::Identity,
};

/// Orders that wait; a person gives one at a time.
const ORDERS_MAX: usize = 8;

/// Pauses before a node is started again that has died by itself.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// A node that ran this long was well; the next pause is short again.
const WELL_AFTER: Duration = Duration::from_secs(30);

/// What a machine is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Power {
    /// Its plug was pulled, or never put in.
    Off,
    Starting,
    On,
}

/// A machine at this moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Condition {
    pub(super) power: Power,
    pub(super) pid: Option<u32>,
}

type Reply = oneshot::Sender<Result<(), Failure>>;

#[derive(Debug)]
enum Order {
    Start(Reply),
    Unplug(Reply),
    Stop(Reply),
}

/// A handle to the task that owns the machine.
#[derive(Clone, Debug)]
pub(super) struct Machine {
    pub(super) name: MachineName,
    pub(super) address: SocketAddr,
    orders: mpsc::Sender<Order>,
    condition: watch::Receiver<Condition>,
}

/// What a machine is made of.
#[derive(Clone, Debug)]
pub(super) struct Parts {
    pub(super) name: MachineName,
    pub(super) recipe: Recipe,
    /// Of its own API.
    pub(super) client: Client,
    pub(super) cluster: String,
    pub(super) doors: Doors,
    /// Its place among the doors.
    pub(super) index: usize,
    pub(super) output: Output,
}

impl Machine {
    /// With its plug out. The task ends with the last handle, and takes the node's process along.
    pub(super) fn new(parts: Parts) -> (Self, JoinHandle<()>) {
        let (orders, queue) = mpsc::channel(ORDERS_MAX);
        let (teller, condition) = watch::channel(Condition { power: Power::Off, pid: None });
        let handle = Self { name: parts.name.clone(), address: parts.recipe.listen, orders, condition };
        let task = tokio::spawn(Runner { parts, state: State::Off, teller }.run(queue));
        (handle, task)
    }

    pub(super) fn condition(&self) -> Condition {
        *self.condition.borrow()
    }

    pub(super) fn watch(&self) -> watch::Receiver<Condition> {
        self.condition.clone()
    }

    /// Puts the plug in and waits until the node is ready. One that runs is left alone.
    pub(super) async fn start(&self) -> Result<(), Failure> {
        self.order(Order::Start).await
    }

    /// Pulls the plug: the node, all that is beside it and its containers are dead at once. Nothing starts them again.
    pub(super) async fn unplug(&self) -> Result<(), Failure> {
        self.order(Order::Unplug).await
    }

    /// Stops the node in order; its containers go on.
    pub(super) async fn stop(&self) {
        // A task that is gone has nothing to stop.
        let _ = self.order(Order::Stop).await;
    }

    async fn order(&self, order: impl FnOnce(Reply) -> Order) -> Result<(), Failure> {
        let (reply, done) = oneshot::channel();
        let gone = || Failure::Other(format!("{} is being taken down", self.name));
        self.orders.send(order(reply)).await.map_err(|_| gone())?;
        done.await.unwrap_or_else(|_| Err(gone()))
    }
}

struct Runner {
    parts: Parts,
    state: State,
    teller: watch::Sender<Condition>,
}

enum State {
    Off,
    /// Somebody waits for it, and is told if it does not work.
    Starting(Reply),
    On(Box<NodeProcess>, Duration),
    /// It died by itself and is started again after the pause.
    Fallen(Duration),
}

impl Runner {
    async fn run(mut self, mut orders: mpsc::Receiver<Order>) {
        loop {
            let order = tokio::select! {
                order = orders.recv() => order,
                () = self.live() => continue,
            };
            match order {
                Some(order) => self.take(order).await,
                None => return,
            }
        }
    }

    /// Until the state changes by itself. Dropping the future kills a process that is just starting.
    async fn live(&mut self) {
        match &mut self.state {
            State::Off => std::future::pending().await,
            State::Starting(_) => {
                let started = NodeProcess::start(self.parts.recipe.clone(), &self.parts.client).await;
                let State::Starting(reply) = std::mem::replace(&mut self.state, State::Off) else { return };
                let answer = match started {
                    Ok(process) => {
                        self.become_on(process, FIRST_PAUSE);
                        Ok(())
                    }
                    Err(failure) => {
                        self.tell(Power::Off, None);
                        Err(failure)
                    }
                };
                // Whoever asked may have left.
                let _ = reply.send(answer);
            }
            State::On(process, pause) => {
                let how = process.died().await;
                let pause = if process.ran_for() > WELL_AFTER { FIRST_PAUSE } else { *pause };
                let text = format!("{}: the node {how}; starting it again. Containers go on running.", self.parts.name);
                self.parts.output.note(&text);
                self.state = State::Fallen(pause);
                self.tell(Power::Starting, None);
            }
            State::Fallen(pause) => {
                let pause = *pause;
                sleep(pause).await;
                let next = (pause * 2).min(LONGEST_PAUSE);
                match NodeProcess::start(self.parts.recipe.clone(), &self.parts.client).await {
                    Ok(process) => {
                        let pid = process.pid().unwrap_or_default();
                        self.parts.output.note(&format!("{}: the node is back, pid {pid}.", self.parts.name));
                        self.become_on(process, next);
                    }
                    Err(error) => {
                        let seconds = next.as_secs_f32();
                        self.parts.output.note(&format!("{}: {error}; trying again in {seconds} s", self.parts.name));
                        self.state = State::Fallen(next);
                    }
                }
            }
        }
    }

    async fn take(&mut self, order: Order) {
        let former = std::mem::replace(&mut self.state, State::Off);
        match order {
            Order::Start(reply) => match former {
                State::On(..) => {
                    self.state = former;
                    let _ = reply.send(Ok(()));
                }
                State::Starting(first) => {
                    // It begins anew, for the one who asked last.
                    let _ = first.send(self.refuse("was started again meanwhile"));
                    self.state = State::Starting(reply);
                }
                State::Off | State::Fallen(_) => {
                    self.tell(Power::Starting, None);
                    self.state = State::Starting(reply);
                }
            },
            Order::Unplug(reply) => {
                let _ = reply.send(self.unplug(former).await);
            }
            Order::Stop(reply) => {
                self.tell(Power::Off, None);
                match former {
                    State::On(process, _) => process.stop().await,
                    State::Starting(first) => {
                        let _ = first.send(self.refuse("is being stopped"));
                        family::kill(None, &self.parts.recipe.data_dir);
                    }
                    State::Off | State::Fallen(_) => family::kill(None, &self.parts.recipe.data_dir),
                }
                let _ = reply.send(Ok(()));
            }
        }
    }

    async fn unplug(&self, former: State) -> Result<(), Failure> {
        let began = Instant::now();
        match former {
            State::On(process, _) => process.kill().await,
            State::Off => return self.refuse("is off already"),
            State::Starting(first) => {
                let _ = first.send(self.refuse("was unplugged before it was ready"));
                family::kill(None, &self.parts.recipe.data_dir);
            }
            State::Fallen(_) => family::kill(None, &self.parts.recipe.data_dir),
        }
        self.tell(Power::Off, None);
        let Recipe { data_dir, docker_host, .. } = &self.parts.recipe;
        let node = Identity::node_id_in(data_dir).map_err(|error| Failure::Other(error.to_string()))?;
        let containers = engine::pull_the_plug(docker_host.as_deref(), &self.parts.cluster, &node).await;
        tracing::debug!(machine = %self.parts.name, took = ?began.elapsed(), "unplugged");
        containers.map_err(|error| {
            Failure::Other(format!("the containers of {} could not be killed: {error}", self.parts.name))
        })
    }

    fn refuse(&self, what: &str) -> Result<(), Failure> {
        Err(Failure::Other(format!("{} {what}", self.parts.name)))
    }

    fn become_on(&mut self, process: NodeProcess, pause: Duration) {
        self.tell(Power::On, process.pid());
        self.state = State::On(Box::new(process), pause);
    }

    fn tell(&self, power: Power, pid: Option<u32>) {
        // The door first: nobody is sent to a machine that is not there.
        self.parts.doors.set(self.parts.index, power == Power::On);
        self.teller.send_replace(Condition { power, pid });
    }
}
