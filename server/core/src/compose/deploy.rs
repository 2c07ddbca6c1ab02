//! `deploy`: what a service needs, where it may run, and how a new revision reaches its instances.

use flotilla_api::{
    ApiError,
    spec::{Attribute, Constraint, OnFailure, Operator, PlacementRules, Resources, UpdateOrder, UpdateRules},
};

use super::{
    forms,
    runtime::{agreed, duration},
    section::Section,
    tree::shown,
};
use crate::state::REPLICAS_MAX;

/// Docker refuses less. Bytes.
const MEMORY_MIN: u64 = 6 * 1024 * 1024;
/// Rules of each kind on one service. A few tell ten machines apart in every way.
const RULES_MAX: usize = 16;
/// A label's value has no more characters.
const VALUE_MAX: usize = 63;

/// `deploy` and its parts must be maps: what is something else would be passed over.
pub(super) fn check_shape(section: &Section<'_>) -> Result<(), ApiError> {
    let Some(deploy) = section.get("deploy") else { return Ok(()) };
    let map = |section: &Section<'_>| section.named("a map as the Compose specification has it").map(drop);
    map(&deploy)?;
    for key in ["resources", "placement", "update_config"] {
        deploy.get(key).iter().try_for_each(map)?;
    }
    for key in ["limits", "reservations"] {
        deploy.get("resources").and_then(|resources| resources.get(key)).iter().try_for_each(map)?;
    }
    Ok(())
}

fn part<'a>(section: &Section<'a>, key: &str) -> Option<Section<'a>> {
    section.get("deploy").and_then(|deploy| deploy.get("resources")).and_then(|resources| resources.get(key))
}

pub(super) fn limits(section: &Section<'_>) -> Result<Resources, ApiError> {
    let limits = part(section, "limits");
    let at = |key: &str| limits.as_ref().and_then(|limits| limits.get(key));
    let cpu_millis = agreed(section.get("cpus"), at("cpus"), cpus)?;
    let memory_bytes = agreed(section.get("mem_limit"), at("memory"), |section| {
        forms::bytes(section.text()?)
            .filter(|bytes| *bytes >= MEMORY_MIN)
            .ok_or_else(|| section.invalid("must be a size such as `512m`, and at least `6m`"))
    })?;
    Ok(Resources { cpu_millis, memory_bytes })
}

/// What a machine must have left. More than the limit makes no sense.
pub(super) fn reservations(section: &Section<'_>, limits: Resources) -> Result<Resources, ApiError> {
    let reservations = part(section, "reservations");
    let at = |key: &str| reservations.as_ref().and_then(|reservations| reservations.get(key));
    let bounded = |section: Section<'_>, amount: u64, limit: Option<u64>| match limit {
        Some(limit) if amount > limit => Err(section.invalid("is more than the limit; reserve at most that")),
        _ => Ok(amount),
    };
    let cpu_millis = match at("cpus") {
        Some(section) => Some(bounded(section.clone(), cpus(&section)?, limits.cpu_millis)?),
        None => None,
    };
    let memory_bytes = match at("memory") {
        Some(section) => {
            let bytes =
                forms::bytes(section.text()?).ok_or_else(|| section.invalid("must be a size such as `512m`"))?;
            Some(bounded(section, bytes, limits.memory_bytes)?)
        }
        None => None,
    };
    Ok(Resources { cpu_millis, memory_bytes })
}

fn cpus(section: &Section<'_>) -> Result<u64, ApiError> {
    forms::cpu_millis(section.text()?)
        .filter(|millis| *millis > 0)
        .ok_or_else(|| section.invalid("must be a number of cores such as `0.5`"))
}

pub(super) fn placement(section: &Section<'_>) -> Result<PlacementRules, ApiError> {
    let Some(section) = section.get("deploy").and_then(|deploy| deploy.get("placement")) else {
        return Ok(PlacementRules::default());
    };
    let items = |key: &str, what: &str| match section.get(key) {
        None => Ok(Vec::new()),
        Some(list) => {
            let items = list.items(what)?;
            if items.len() > RULES_MAX {
                return Err(list.invalid(&format!("has {} entries; at most {RULES_MAX} are read", items.len())));
            }
            Ok(items)
        }
    };
    let mut spread = Vec::new();
    for item in items("preferences", "a list of maps with `spread`")? {
        item.named("a map with `spread`")?;
        let of =
            item.get("spread").ok_or_else(|| item.invalid("has no `spread`; say what instances shall differ in"))?;
        spread.push(attribute(&of, of.text()?)?);
    }
    let constraints = items("constraints", "a list of texts such as `node.labels.zone == attic`")?;
    let most = section.get("max_replicas_per_node").map(|section| {
        let number: i64 = section.parse("a whole number")?;
        let most = u32::try_from(number).ok().filter(|most| (1..=REPLICAS_MAX).contains(most));
        most.ok_or_else(|| section.invalid(&format!("must be a number from 1 to {REPLICAS_MAX}")))
    });
    Ok(PlacementRules {
        constraints: constraints.iter().map(constraint).collect::<Result<_, _>>()?,
        spread,
        max_per_machine: most.transpose()?,
    })
}

fn constraint(item: &Section<'_>) -> Result<Constraint, ApiError> {
    let text = item.text()?;
    let split = text
        .split_once("==")
        .map(|(name, value)| (name, Operator::Equal, value))
        .or_else(|| text.split_once("!=").map(|(name, value)| (name, Operator::Unequal, value)));
    let Some((name, operator, value)) = split else {
        return Err(item.invalid("must be a text such as `node.labels.zone == attic` or `node.hostname != atlas`"));
    };
    let value = value.trim();
    let good = !value.is_empty()
        && value.len() <= VALUE_MAX
        && value.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_./".contains(&byte));
    if !good {
        return Err(item.invalid(&format!(
            "compares with `{}`; a value has 1 to {VALUE_MAX} letters, digits, `-`, `_`, `.` and `/`",
            shown(value)
        )));
    }
    Ok(Constraint { attribute: attribute(item, name.trim())?, operator, value: value.to_owned() })
}

fn attribute(section: &Section<'_>, text: &str) -> Result<Attribute, ApiError> {
    text.parse().map_err(|error| section.unsupported(&format!("names what no machine has: {error}")))
}

/// `writes` is a volume that the service writes, if it writes one.
pub(super) fn update(section: &Section<'_>, writes: Option<&str>) -> Result<UpdateRules, ApiError> {
    let usual = UpdateRules::default();
    let Some(section) = section.get("deploy").and_then(|deploy| deploy.get("update_config")) else { return Ok(usual) };
    let order = match section.get("order") {
        None => usual.order,
        Some(order) => match (order.text()?, writes) {
            ("stop-first", _) => UpdateOrder::StopFirst,
            ("start-first", None) => UpdateOrder::StartFirst,
            ("start-first", Some(volume)) => {
                return Err(order.invalid(&format!(
                    "can't be `start-first`, because the service writes the volume `{volume}`, and two instances would spoil it"
                )));
            }
            _ => return Err(order.invalid("must be `start-first` or `stop-first`")),
        },
    };
    let on_failure = match section.get("failure_action") {
        None => usual.on_failure,
        Some(action) => match action.text()? {
            "rollback" => OnFailure::Rollback,
            "pause" => OnFailure::Pause,
            "continue" => {
                return Err(action.unsupported(
                    "would replace instances that run well by ones that do not; use `rollback` or `pause`",
                ));
            }
            _ => return Err(action.invalid("must be `rollback` or `pause`")),
        },
    };
    let parallelism = match section.get("parallelism") {
        None => usual.parallelism,
        Some(section) => {
            let number: i64 = section.parse("a whole number")?;
            let number = u32::try_from(number).ok().filter(|number| *number <= REPLICAS_MAX);
            number
                .ok_or_else(|| section.invalid(&format!("must be a number from 0 (all at once) to {REPLICAS_MAX}")))?
        }
    };
    Ok(UpdateRules {
        order,
        parallelism,
        delay_ms: duration(&section, "delay")?.unwrap_or(usual.delay_ms),
        monitor_ms: duration(&section, "monitor")?,
        on_failure,
    })
}
