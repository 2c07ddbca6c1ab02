//! The labels that tie a container to its service: all that a restarted daemon needs to adopt what it finds.
//!
//! One that was made before it was needed ([`super::spare`]) has an epoch only when it is taken. Labels can't be changed, so its *name*
//! tells the epoch then; nothing else does, and of other containers the name tells nothing.

use std::collections::HashMap;

use flotilla_api::{InstanceId, NodeId, Revision, ServiceName, StackName};

pub(super) const CLUSTER: &str = "flotilla.cluster";
/// Several nodes of one cluster may share an engine (a demo on one computer); each sees and touches only what carries its id.
pub(super) const NODE: &str = "flotilla.node";
pub(super) const SERVICE: &str = "flotilla.service";
pub(super) const STACK: &str = "flotilla.stack";
pub(super) const REVISION: &str = "flotilla.revision";
pub(super) const REPLICA: &str = "flotilla.replica";
pub(super) const RESTARTS: &str = "flotilla.restarts";
pub(super) const EPOCH: &str = "flotilla.epoch";
pub(super) const INSTANCE: &str = "flotilla.instance";
/// On containers that were made before they were needed; its value says what of ([`super::spare::key`]).
pub(super) const SPARE: &str = "flotilla.spare";
/// On short-lived containers of our own that are no instance of anything; its value is the cluster's id.
pub(super) const SCRATCH: &str = "flotilla.scratch";

/// Characters of the cluster's and the node's id that names carry. Only a hint for people: labels hold the whole ids.
const CLUSTER_IN_NAMES: usize = 12;
const NODE_IN_NAMES: usize = 8;

/// Whose containers and networks are meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Owner {
    pub(super) cluster: String,
    /// Absent: those of all nodes of the cluster.
    pub(super) node: Option<NodeId>,
    /// Also what names no node. An older version made it, when the cluster was one machine: it belongs to that machine.
    pub(super) unlabelled: bool,
}

impl Owner {
    pub(super) fn owns(&self, labels: &HashMap<String, String>) -> bool {
        let cluster = labels.get(CLUSTER).or_else(|| labels.get(SCRATCH));
        cluster == Some(&self.cluster)
            && match (&self.node, labels.get(NODE)) {
                (None, _) => true,
                (Some(node), Some(label)) => node.0 == *label,
                (Some(_), None) => self.unlabelled,
            }
    }

    /// For what the engine is asked to list; what it answers still has to pass [`Owner::owns`].
    pub(super) fn filter(&self) -> HashMap<String, Vec<String>> {
        filter(CLUSTER, &self.cluster)
    }

    pub(super) fn spare_filter(&self) -> HashMap<String, Vec<String>> {
        let mut filter = self.filter();
        filter.values_mut().for_each(|labels| labels.push(SPARE.to_owned()));
        filter
    }

    pub(super) fn scratch_filter(&self) -> HashMap<String, Vec<String>> {
        filter(SCRATCH, &self.cluster)
    }

    /// On instances and networks.
    pub(super) fn labels(&self) -> HashMap<String, String> {
        self.labelled(CLUSTER)
    }

    pub(super) fn scratch_labels(&self) -> HashMap<String, String> {
        self.labelled(SCRATCH)
    }

    fn labelled(&self, cluster: &str) -> HashMap<String, String> {
        let node = self.node.iter().map(|node| (NODE.to_owned(), node.to_string()));
        node.chain([(cluster.to_owned(), self.cluster.clone())]).collect()
    }

    pub(super) fn container_name(&self, instance: &InstanceId) -> String {
        format!("{}-{instance}", self.prefix())
    }

    /// Of a spare container that became this instance. No part of it has a dot in it.
    pub(super) fn taken_name(&self, identity: &Identity) -> String {
        let Identity { instance, replica, restarts, epoch, .. } = identity;
        format!("{}.{replica}.{restarts}.{epoch}", self.container_name(instance))
    }

    /// Of a spare container that nobody has taken yet.
    pub(super) fn spare_name(&self, service: &ServiceName, random: &str) -> String {
        format!("{}-{service}-spare-{random}", self.prefix())
    }

    pub(super) fn network_name(&self, stack: &StackName) -> String {
        format!("{}-{stack}", self.prefix())
    }

    /// The name that older versions gave to a stack's network.
    pub(super) fn former_network_name(&self, stack: &StackName) -> String {
        format!("flotilla-{}-{stack}", short(&self.cluster, CLUSTER_IN_NAMES))
    }

    fn prefix(&self) -> String {
        let cluster = short(&self.cluster, CLUSTER_IN_NAMES);
        match &self.node {
            Some(node) => format!("flotilla-{cluster}-{}", short(&node.0, NODE_IN_NAMES)),
            None => format!("flotilla-{cluster}"),
        }
    }
}

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
    pub(super) fn to_labels(&self) -> HashMap<String, String> {
        let mut labels = of_revision(&self.service, &self.stack, self.revision);
        labels.extend([
            (REPLICA.to_owned(), self.replica.to_string()),
            (RESTARTS.to_owned(), self.restarts.to_string()),
            (EPOCH.to_owned(), self.epoch.to_string()),
            (INSTANCE.to_owned(), self.instance.to_string()),
        ]);
        labels
    }

    /// As a container's labels and its name, without the slash, tell. `None` where one is missing or makes no sense: such a container
    /// is nobody's, and is left alone.
    pub(super) fn read(owner: &Owner, labels: &HashMap<String, String>, name: &str) -> Option<Self> {
        if !labels.contains_key(SPARE) {
            return Self::from_labels(labels);
        }
        let name = name.strip_prefix(&owner.prefix())?.strip_prefix('-')?;
        let [instance, replica, restarts, epoch] = name.split('.').collect::<Vec<_>>().try_into().ok()?;
        let told = [(INSTANCE, instance), (REPLICA, replica), (RESTARTS, restarts), (EPOCH, epoch)];
        let told = told.map(|(label, text)| (label.to_owned(), text.to_owned()));
        Self::from_labels(&labels.clone().into_iter().chain(told).collect())
    }

    fn from_labels(labels: &HashMap<String, String>) -> Option<Self> {
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

/// What is the same for all instances of a revision.
pub(super) fn of_revision(service: &ServiceName, stack: &StackName, revision: Revision) -> HashMap<String, String> {
    HashMap::from([
        (SERVICE.to_owned(), service.to_string()),
        (STACK.to_owned(), stack.to_string()),
        (REVISION.to_owned(), revision.to_string()),
    ])
}

/// As in `filters` of the engine's API: things that carry the label with this value.
fn filter(label: &str, value: &str) -> HashMap<String, Vec<String>> {
    HashMap::from([("label".to_owned(), vec![format!("{label}={value}")])])
}

fn short(id: &str, length: usize) -> &str {
    id.get(..length).unwrap_or(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_survives_its_labels_and_the_name_of_a_spare() {
        let identity = Identity {
            instance: InstanceId("notes-3-0-ab12".into()),
            service: "notes".parse().unwrap(),
            stack: "home".parse().unwrap(),
            revision: Revision(3),
            replica: 0,
            restarts: 2,
            epoch: 7,
        };
        assert_eq!(Identity::from_labels(&identity.to_labels()), Some(identity.clone()));

        let owner = Owner { cluster: "c".to_owned(), node: Some(NodeId("n1".to_owned())), unlabelled: false };
        assert_eq!(Identity::read(&owner, &identity.to_labels(), "whatever"), Some(identity.clone()));

        let mut spare = of_revision(&identity.service, &identity.stack, identity.revision);
        spare.insert(SPARE.to_owned(), "0123".to_owned());
        assert_eq!(Identity::read(&owner, &spare, &owner.spare_name(&identity.service, "ab12")), None, "nobody has it");
        assert_eq!(Identity::read(&owner, &spare, &owner.taken_name(&identity)), Some(identity.clone()));
        let other = Owner { node: Some(NodeId("n2".to_owned())), ..owner.clone() };
        for name in [other.taken_name(&identity), "flotilla-c-n1-notes-3-0-ab12.0.2".to_owned(), "7".to_owned()] {
            assert_eq!(Identity::read(&owner, &spare, &name), None, "{name}");
        }

        let mut damaged = identity.to_labels();
        damaged.insert(REVISION.to_owned(), "three".to_owned());
        assert_eq!(Identity::from_labels(&damaged), None);
    }

    #[test]
    fn each_node_owns_what_carries_its_id_and_the_first_what_carries_none() {
        let owner =
            |node: &str, unlabelled| Owner { cluster: "c".to_owned(), node: Some(NodeId(node.to_owned())), unlabelled };
        let (first, second) = (owner("n1", true), owner("n2", false));
        let all = Owner { node: None, ..first.clone() };
        let former = HashMap::from([(CLUSTER.to_owned(), "c".to_owned())]);
        for (labels, owners) in [
            (first.labels(), [true, false, true]),
            (second.scratch_labels(), [false, true, true]),
            (former, [true, false, true]),
            (Owner { cluster: "d".to_owned(), ..first.clone() }.labels(), [false; 3]),
            (HashMap::new(), [false; 3]),
        ] {
            assert_eq!([&first, &second, &all].map(|owner| owner.owns(&labels)), owners, "{labels:?}");
        }
    }
}
