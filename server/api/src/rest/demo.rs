//! What a demo's dashboard may do to its machines, and what people saw of it.

use serde::{Deserialize, Serialize};

use crate::{MachineName, ServiceName};

/// Answer of `POST /api/v1/demo/machines/{machine}/kill` and `…/start`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DemoAnswer {
    pub ok: bool,
    /// One sentence, if not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Of a plug that was pulled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outage: Option<DemoOutage>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DemoOutage {
    pub machine: MachineName,
    pub services: Vec<DemoServiceOutage>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DemoServiceOutage {
    pub service: ServiceName,
    /// Questions since just before, and those without a good answer.
    pub polls: u64,
    pub failed: u64,
    /// Absent where nobody could notice anything. Milliseconds.
    pub gap_ms: Option<u64>,
    /// `back`, `away` (it did not answer again while it was watched) or `never-there`.
    pub outcome: String,
    /// The machines that it ran on, before and after.
    pub before: Vec<MachineName>,
    pub after: Vec<MachineName>,
    /// Of the first question that failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}
