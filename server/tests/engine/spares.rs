//! Containers that stand by: made before they are needed, and an instance's only when one takes them.

use std::collections::HashMap;

use bollard::query_parameters::ListContainersOptions;
use flotilla::engine::{Engine, take_down};
use flotilla_api::{NodeId, spec::ValueKind::Secret};
use flotilla_core::{CommandV1, command::Change};

use crate::playground::{PATIENCE, Playground, name, only};

impl Playground {
    /// The container that stands by, when it is another than `former`.
    async fn until_spare(&self, former: Option<&str>) -> String {
        let looking = async {
            loop {
                let spares = self.spares().await;
                if let [(id, state)] = &spares[..]
                    && Some(id.as_str()) != former
                    && state == "created"
                {
                    return id.clone();
                }
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
        };
        match tokio::time::timeout(PATIENCE, looking).await {
            Ok(id) => id,
            Err(_) => panic!("no container stands by: {:?}", self.spares().await),
        }
    }

    async fn spares(&self) -> Vec<(String, String)> {
        let filters =
            [("label".to_owned(), vec![format!("flotilla.cluster={}", self.cluster), "flotilla.spare".to_owned()])];
        let options = ListContainersOptions { all: true, filters: Some(HashMap::from(filters)), ..Default::default() };
        let listed = self.docker.list_containers(Some(options)).await.unwrap();
        let told = |it: bollard::models::ContainerSummary| Some((it.id?, it.state?.to_string()));
        listed.into_iter().filter_map(told).collect()
    }

    fn place(&self, changes: Vec<Change>) {
        self.apply(CommandV1::Place { term: self.state().leadership.term, changes });
    }

    fn stand_by(&self, machines: &[&NodeId]) {
        let machines = machines.iter().map(|&machine| machine.clone()).collect();
        self.place(vec![Change::StandBy { service: name("web"), machines }]);
    }
}

/// An engine of a second machine, which the playground's services go to only when they are told.
struct Second {
    node: NodeId,
    data: tempfile::TempDir,
}

impl Second {
    fn join(playground: &Playground) -> Self {
        Self { node: playground.admit("second"), data: tempfile::tempdir().unwrap() }
    }

    fn start(&self, playground: &Playground) -> Engine {
        playground.start_node(self.node.clone(), self.data.path(), None)
    }
}

/// `web` runs elsewhere, as far as anybody was told, and the second machine stands by for it with this container.
async fn standing_by() -> (Playground, Second, Engine, String) {
    let playground = Playground::new().await;
    let second = Second::join(&playground);
    playground.deploy(WEB);
    playground.stand_by(&[&second.node]);
    let engine = second.start(&playground);
    let spare = playground.until_spare(None).await;
    (playground, second, engine, spare)
}

const WEB: &str = "  web: { image: $IMAGE, volumes: ['kept:/seed:ro'] }\nvolumes: { kept: {} }";

#[tokio::test]
async fn what_stands_by_is_nobodys_until_it_is_started_under_an_epoch() {
    let (playground, second, engine, spare) = standing_by().await;
    let mut observed = engine.watch_observed();
    let seen = tokio::time::timeout(PATIENCE, observed.wait_for(Option::is_some)).await.unwrap().unwrap().clone();
    assert!(seen.unwrap().containers.is_empty(), "it is no instance");
    assert!(playground.state().services[&name("web")].hosts.contains(&second.node), "its volume's directory is here");
    assert!(second.data.path().join("volumes/web/kept").is_dir());

    // A daemon that starts again knows it.
    engine.stop().await;
    let engine = second.start(&playground);
    assert_eq!(playground.until_spare(None).await, spare);

    let former = playground.state().services[&name("web")].placements[0].clone();
    playground.place(vec![
        Change::Leave { epoch: former.epoch, reason: "its machine is drained".into() },
        Change::Assign {
            service: name("web"),
            replica: 1,
            machine: second.node.clone(),
            revision: former.revision,
            restarts: former.restarts,
            reason: "it takes over".into(),
        },
    ]);
    let placement = playground.state().services[&name("web")].placed_on(&second.node).next().unwrap().clone();
    let container = only(&engine).await;
    assert_eq!((container.id.as_str(), container.epoch), (spare.as_str(), placement.epoch));
    assert_eq!(
        (container.replica, container.revision, container.restarts),
        (1, placement.revision, placement.restarts)
    );
    let named = playground.inspect(&spare).await.name.unwrap();
    assert!(named.ends_with(&format!(".1.{}.{}", placement.restarts, placement.epoch)), "{named}");
    let networks = playground.inspect(&spare).await.network_settings.unwrap().networks.unwrap();
    assert!(networks.values().next().unwrap().aliases.as_ref().unwrap().contains(&"web".to_owned()));

    // It is an instance like any other: it is adopted, and goes when it is not wanted.
    engine.stop().await;
    let engine = second.start(&playground);
    assert_eq!(only(&engine).await.id, spare);
    playground.apply(CommandV1::Remove { service: name("web"), volumes: true });
    let mut observed = engine.watch_observed();
    let empty = observed.wait_for(|seen| seen.as_ref().is_some_and(|seen| seen.containers.is_empty()));
    tokio::time::timeout(PATIENCE, empty).await.expect("it is removed").unwrap();
}

#[tokio::test]
async fn what_stands_by_follows_the_service_and_never_runs_by_itself() {
    let (playground, second, engine, first) = standing_by().await;

    playground.deploy(&WEB.replace("image:", "environment: { COLOUR: blue }, image:"));
    let newer = playground.until_spare(Some(&first)).await;
    let environment = playground.inspect(&newer).await.config.unwrap().env.unwrap();
    assert!(environment.contains(&"COLOUR=blue".to_owned()));

    // It has no epoch, so what somebody starts by hand is taken away and made anew.
    playground.docker.start_container(&newer, None).await.unwrap();
    engine.stop().await;
    let engine = second.start(&playground);
    let third = playground.until_spare(Some(&newer)).await;

    playground.stand_by(&[]);
    let gone = async {
        while !playground.spares().await.is_empty() {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.expect("a machine that stands by no more has none");

    playground.stand_by(&[&second.node]);
    assert_ne!(playground.until_spare(None).await, third);
    engine.stop().await;
    take_down(None, &playground.cluster, Some(&second.node), second.data.path(), &[]).await.unwrap();
    assert!(playground.containers().await.is_empty());
}

#[tokio::test]
async fn what_stands_by_has_no_secret_until_it_is_taken() {
    let playground = Playground::new().await;
    let second = Second::join(&playground);
    playground.set(Secret, "db", "hunter");
    let web = "  web: { image: $IMAGE, secrets: [db] }\nsecrets: { db: }";
    playground.deploy(web);
    playground.stand_by(&[&second.node]);
    let engine = second.start(&playground);
    let spare = playground.until_spare(None).await;
    let files = playground.files_of(&spare).await;
    assert_eq!(files.len(), 1);
    assert_eq!(std::fs::metadata(&files[0]).unwrap().len(), 0, "it may never be needed");

    let former = playground.state().services[&name("web")].placements[0].clone();
    let reason = || "it takes over".to_owned();
    playground.place(vec![
        Change::Leave { epoch: former.epoch, reason: reason() },
        Change::Assign {
            service: name("web"),
            replica: 1,
            machine: second.node.clone(),
            revision: former.revision,
            restarts: former.restarts,
            reason: reason(),
        },
    ]);
    assert_eq!(only(&engine).await.id, spare);
    assert_eq!(std::fs::read(&files[0]).unwrap(), b"hunter");
    engine.stop().await;
}

/// The engine would keep it on its disk, for a container that may never run.
#[tokio::test]
async fn none_stands_by_that_would_tell_the_engine_a_secret() {
    let (playground, _second, engine, _) = standing_by().await;
    playground.set(Secret, "db", "hunter");
    playground
        .deploy("  web: { image: $IMAGE, x-flotilla: { environment: { DB: { secret: db } } } }\nsecrets: { db: }");
    let gone = async {
        while !playground.spares().await.is_empty() {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.expect("the one of the former revision goes");
    engine.stop().await;
}
