//! What a machine that only stores may ask the others, who do not trust it with more than to keep its copies.

use flotilla_api::{ApiError, ErrorCode, NodeId};
use flotilla_core::{Actor, Entry};

use crate::{consensus::Consensus, peers::Method};

/// # Errors
/// It is nothing that it needs for following the log, telling how it does, and keeping copies.
pub(super) fn may_call(from: &NodeId, method: Method, body: &[u8]) -> Result<(), ApiError> {
    match method {
        // It renews what says that it is there, though nothing that it holds depends on that.
        Method::Renew | Method::Report | Method::Holds | Method::Past | Method::ReadIndex => Ok(()),
        Method::Propose => match Consensus::proposed(body) {
            Ok(entry) if may_propose(from, &entry) => Ok(()),
            Ok(_) => Err(refused("it changes nothing but what it says of itself")),
            Err(error) => Err(error),
        },
        Method::Append
        | Method::Vote
        | Method::PreVote
        | Method::Snapshot
        | Method::TransferLeader
        | Method::Offer
        | Method::Recall
        | Method::Image
        | Method::Layers
        | Method::Keys
        | Method::Signal
        | Method::Join
        | Method::Ping => Err(refused(&format!("`{method:?}` is not for it"))),
    }
}

/// Of itself alone, and in nobody else's name: the audit trail shows who an entry says it is from.
fn may_propose(from: &NodeId, entry: &Entry) -> bool {
    entry.actor == Actor::node() && entry.command.is_about_storage_of(from)
}

fn refused(why: &str) -> ApiError {
    ApiError::new(ErrorCode::ScopeInsufficient, format!("that machine only stores: {why}"))
}

/// It can't vouch for the cluster, and has nothing to give to a machine that joins.
pub(super) fn takes_nobody() -> ApiError {
    ApiError::new(ErrorCode::StorageOnly, "this machine only stores; join the cluster at another one")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use flotilla_api::UnixMillis;
    use flotilla_core::{
        Command, CommandV1,
        command::{Availability, GenerationName, MachineFacts},
    };

    use super::*;

    fn entry(command: CommandV1) -> Entry {
        Entry { at: UnixMillis(1), actor: Actor::node(), command: Command::V1(command) }
    }

    #[test]
    fn it_speaks_of_itself_alone() {
        let (cellar, atlas) = (NodeId("cellar".to_owned()), NodeId("atlas".to_owned()));
        let announce =
            |machine: &NodeId| CommandV1::AnnounceMachine { machine: machine.clone(), facts: MachineFacts::default() };
        let purged = |machine: Option<&NodeId>| CommandV1::VolumesPurged {
            service: "db".parse().unwrap(),
            machine: machine.cloned(),
        };
        let holds = |machine: &NodeId| CommandV1::HoldGeneration {
            machine: machine.clone(),
            service: "db".parse().unwrap(),
            generation: GenerationName { epoch: 1, sequence: 1 },
            volumes: BTreeMap::new(),
            seen: 0,
        };
        let drops = |machine: &NodeId| CommandV1::DropCopy { machine: machine.clone(), service: "db".parse().unwrap() };
        for (command, allowed) in [
            (announce(&cellar), true),
            (purged(Some(&cellar)), true),
            (holds(&cellar), true),
            (drops(&cellar), true),
            (announce(&atlas), false),
            (holds(&atlas), false),
            (drops(&atlas), false),
            (purged(Some(&atlas)), false),
            (purged(None), false),
            (CommandV1::Remove { service: "db".parse().unwrap(), volumes: true }, false),
            (CommandV1::SetAvailability { machine: cellar.clone(), availability: Availability::Active }, false),
            (CommandV1::RemoveMachine { machine: atlas.clone() }, false),
        ] {
            let body = Consensus::proposal(&entry(command.clone()));
            assert_eq!(may_call(&cellar, Method::Propose, &body).is_ok(), allowed, "{command:?}");
        }
        assert!(may_call(&cellar, Method::Propose, b"noise").is_err());
        let mut signed = entry(announce(&cellar));
        signed.actor.token = Some(flotilla_api::TokenId("admin".to_owned()));
        assert!(!may_propose(&cellar, &signed), "in nobody's name");
        for actor in [
            Actor { name: "administrator".to_owned(), ..Actor::node() },
            Actor { from: Some("192.0.2.1".to_owned()), ..Actor::node() },
        ] {
            assert!(!may_propose(&cellar, &Entry { actor, ..entry(announce(&cellar)) }), "nor as if it had it");
        }
    }

    #[test]
    fn it_leads_asks_for_no_key_and_offers_nothing() {
        let cellar = NodeId("cellar".to_owned());
        for method in [Method::Renew, Method::Report, Method::Holds, Method::Past, Method::ReadIndex] {
            may_call(&cellar, method, b"").unwrap();
        }
        for code in 0..=u8::MAX {
            let Some(method) = Method::from_code(code) else { continue };
            let allowed =
                matches!(method, Method::Renew | Method::Report | Method::Holds | Method::Past | Method::ReadIndex);
            assert_eq!(may_call(&cellar, method, b"").is_ok(), allowed, "{method:?}");
        }
    }
}
