//! The largest cluster that there is.

use anyhow::Result;
use flotilla_tests::bed::{Cluster, cluster::Sample};

use flotilla_tests::series::{Report, Series, Unit};

const MACHINES: usize = 10;
const SERVICES: usize = 50;
/// Deployed at one time: two cores start ten machines' containers.
const AT_ONCE: usize = 10;

/// Resident memory of each node, of ten, once fifty services run.
pub(crate) async fn memory(report: &mut Report) -> Result<()> {
    let mut resident = Series::new("memory of a node, 10 machines and 50 services", Unit::Megabytes);
    let cluster = Cluster::up(MACHINES).await?;
    let names: Vec<String> = (1..=SERVICES).map(|number| format!("pages-{number}")).collect();
    for (batch, names) in names.chunks(AT_ONCE).enumerate() {
        let services: Vec<Sample<'_>> = names.iter().map(|name| Sample::stateless(name)).collect();
        cluster.deploy_stack(&format!("batch-{batch}"), &cluster.compose(&services)).await?;
        for service in &services {
            cluster.runs(service.name).await?;
        }
    }
    for machine in cluster.bed.machines() {
        resident.add(machine.node_memory()? as f64 / 1e6);
    }
    report.add(resident);
    Ok(())
}
