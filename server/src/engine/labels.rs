//! The labels that tie a container to its service: all that a restarted daemon needs to adopt what it finds.

use std::collections::HashMap;

use flotilla_api::{InstanceId, Revision, ServiceName, StackName};

pub(super) const CLUSTER: &str = "flotilla.cluster";
pub(super) const SERVICE: &str = "flotilla.service";
pub(super) const STACK: &str = "flotilla.stack";
pub(super) const REVISION: &str = "flotilla.revision";
pub(super) const REPLICA: &str = "flotilla.replica";
pub(super) const RESTARTS: &str = "flotilla.restarts";
pub(super) const EPOCH: &str = "flotilla.epoch";
pub(super) const INSTANCE: &str = "flotilla.instance";
/// On short-lived containers of our own that are no instance of anything; its value is the cluster's id.
pub(super) const SCRATCH: &str = "flotilla.scratch";

/// Characters of the cluster's id that names carry. Only a hint for people: labels hold the whole id.
const CLUSTER_IN_NAMES: usize = 12;

/// What identifies an instance, as its labels say it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) instance: InstanceId,
    pub(super) service: ServiceName,
    pub(super) stack: StackName,
    pub(super) revision: Revision,
    pub(super) replica: u32,
    pub(super) restarts: u64,
    pub(super) epoch: u64,
}

impl Identity {
    pub(super) fn to_labels(&self, cluster: &str) -> HashMap<String, String> {
        HashMap::from([
            (CLUSTER.to_owned(), cluster.to_owned()),
            (SERVICE.to_owned(), self.service.to_string()),
            (STACK.to_owned(), self.stack.to_string()),
            (REVISION.to_owned(), self.revision.to_string()),
            (REPLICA.to_owned(), self.replica.to_string()),
            (RESTARTS.to_owned(), self.restarts.to_string()),
            (EPOCH.to_owned(), self.epoch.to_string()),
            (INSTANCE.to_owned(), self.instance.to_string()),
        ])
    }

    /// `None` where a label is missing or makes no sense: such a container is nobody's, and is left alone.
    pub(super) fn from_labels(labels: &HashMap<String, String>) -> Option<Self> {
        let text = |name: &str| labels.get(name).map(String::as_str);
        Some(Self {
            instance: InstanceId(text(INSTANCE)?.to_owned()),
            service: text(SERVICE)?.parse().ok()?,
            stack: text(STACK)?.parse().ok()?,
            revision: Revision(text(REVISION)?.parse().ok()?),
            replica: text(REPLICA)?.parse().ok()?,
            restarts: text(RESTARTS)?.parse().ok()?,
            epoch: text(EPOCH)?.parse().ok()?,
        })
    }
}

/// As in `filters` of the engine's API: things that carry the label with this value.
pub(super) fn filter(label: &str, value: &str) -> HashMap<String, Vec<String>> {
    HashMap::from([("label".to_owned(), vec![format!("{label}={value}")])])
}

pub(super) fn container_name(cluster: &str, instance: &InstanceId) -> String {
    format!("flotilla-{}-{instance}", short(cluster))
}

pub(super) fn network_name(cluster: &str, stack: &StackName) -> String {
    format!("flotilla-{}-{stack}", short(cluster))
}

fn short(cluster: &str) -> &str {
    cluster.get(..CLUSTER_IN_NAMES).unwrap_or(cluster)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_survives_its_labels() {
        let identity = Identity {
            instance: InstanceId("notes-3-0-ab12".into()),
            service: "notes".parse().unwrap(),
            stack: "home".parse().unwrap(),
            revision: Revision(3),
            replica: 0,
            restarts: 2,
            epoch: 7,
        };
        assert_eq!(Identity::from_labels(&identity.to_labels("c")), Some(identity.clone()));

        let mut damaged = identity.to_labels("c");
        damaged.insert(REVISION.to_owned(), "three".to_owned());
        assert_eq!(Identity::from_labels(&damaged), None);
    }
}
