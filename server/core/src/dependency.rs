//! Which services wait for which.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Display,
};

use flotilla_api::ServiceName;

/// The services that wait for each other in a circle, and those that wait for them; empty when there is none. Names that are
/// not there are waited for by nobody.
pub(crate) fn circle<'a>(
    depends_on: impl IntoIterator<Item = (&'a ServiceName, &'a BTreeSet<ServiceName>)>,
) -> BTreeSet<&'a ServiceName> {
    let mut waiting: BTreeMap<&ServiceName, &BTreeSet<ServiceName>> = depends_on.into_iter().collect();
    loop {
        let ready: Vec<&ServiceName> = waiting
            .iter()
            .filter(|(_, depends_on)| !depends_on.iter().any(|name| waiting.contains_key(name)))
            .map(|(name, _)| *name)
            .collect();
        if ready.is_empty() {
            return waiting.into_keys().collect();
        }
        for name in ready {
            waiting.remove(name);
        }
    }
}

/// `a`, `b` and `c`, for a sentence.
pub fn listed(names: impl IntoIterator<Item: Display>) -> String {
    let names: Vec<String> = names.into_iter().map(|name| format!("`{name}`")).collect();
    match names.split_last() {
        None => String::new(),
        Some((last, [])) => last.clone(),
        Some((last, rest)) => format!("{} and {last}", rest.join(", ")),
    }
}
