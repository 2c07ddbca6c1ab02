//! Carries out what people order while the demo runs.

use std::sync::{Mutex, PoisonError};

use flotilla_api::MachineName;
use futures::future::BoxFuture;

use super::{
    control::{Answer, MachineStatus, Obey, Order},
    machine::{Machine, Power},
    outage::{self, Outage},
};
use crate::{cli::Failure, client::Client};

#[derive(Debug)]
pub(super) struct Orders {
    machines: Vec<Machine>,
    /// Speaks with whichever machine is alive.
    front: Client,
    /// What was seen last, for those whose connection did not outlive it.
    last: Mutex<Option<Outage>>,
}

impl Orders {
    pub(super) fn new(machines: Vec<Machine>, front: Client) -> Self {
        Self { machines, front, last: Mutex::default() }
    }

    async fn carry_out(&self, order: Order) -> Result<Option<Outage>, Failure> {
        match order {
            Order::Kill(name) => {
                let machine = self.named(&name)?;
                if machine.condition().power == Power::Off {
                    return Err(Failure::Other(format!(
                        "{name} is off already; `flotilla demo start {name}` starts it"
                    )));
                }
                let others_run = self.machines.iter().any(|one| one.name != name && one.condition().power == Power::On);
                let outage = outage::watch(&self.front, name, others_run, machine.unplug()).await?;
                *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(outage.clone());
                Ok(Some(outage))
            }
            Order::Start(name) => self.named(&name)?.start().await.map(|()| None),
            Order::Status {} => Ok(self.last.lock().unwrap_or_else(PoisonError::into_inner).clone()),
        }
    }

    fn named(&self, name: &MachineName) -> Result<&Machine, Failure> {
        self.machines.iter().find(|machine| machine.name == *name).ok_or_else(|| {
            let names: Vec<MachineName> = self.machines.iter().map(|machine| machine.name.clone()).collect();
            let names = outage::list(&names).unwrap_or_default();
            Failure::NotFound(format!("the demo has no machine `{name}`; it has {names}"))
        })
    }
}

impl Obey for Orders {
    fn obey(&self, order: Order) -> BoxFuture<'_, Answer> {
        Box::pin(async move {
            let answer = match self.carry_out(order).await {
                Ok(outage) => Answer { ok: true, error: None, machines: Vec::new(), outage },
                Err(failure) => Answer::refused(failure.to_string()),
            };
            Answer { machines: self.machines.iter().map(status).collect(), ..answer }
        })
    }
}

fn status(machine: &Machine) -> MachineStatus {
    let condition = machine.condition();
    MachineStatus {
        name: machine.name.clone(),
        power: condition.power,
        api_url: format!("http://{}", machine.address),
        pid: condition.pid,
    }
}
