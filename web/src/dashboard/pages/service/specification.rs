use std::collections::BTreeMap;

use flotilla_api::{
    rest::ServiceDetail,
    spec::{HealthCheck, Resources, Restart, ServiceSpec, ValueKind},
};
use leptos::prelude::*;

use crate::dashboard::{
    components::{Glyph, Icon, Section},
    format,
};

#[component]
pub(crate) fn Specification(detail: Signal<ServiceDetail>) -> impl IntoView {
    // Drawn again when it changes, not with each figure.
    let spec = Memo::new(move |_| detail.with(|detail| detail.spec.clone()));
    view! {
        <Section id="specification" title="Specification">
            {move || facts(spec.get())}
        </Section>
    }
}

fn facts(spec: ServiceSpec) -> impl IntoView {
    let fact = |name: &'static str, value: AnyView| {
        view! {
            <div>
                <dt>{name}</dt>
                <dd>{value}</dd>
            </div>
        }
    };
    let words = |words: Vec<String>| {
        (!words.is_empty()).then(|| view! { <code class="break">{words.join(" ")}</code> }.into_any())
    };
    let texts = |texts: Vec<String>| {
        (!texts.is_empty()).then(|| {
            let items = texts.into_iter().map(|text| view! { <li><code class="break">{text}</code></li> });
            view! { <ul class="plain">{items.collect_view()}</ul> }.into_any()
        })
    };
    let volumes = spec.volumes.iter().map(|mount| {
        format!("{} → {}{}", mount.volume, mount.target, if mount.read_only { ", read only" } else { "" })
    });
    let values = |kind: ValueKind| {
        let of_kind = spec.values.iter().filter(move |it| it.kind == kind);
        texts(of_kind.map(|it| format!("{} (version {}) → {}", it.name, it.version, it.given)).collect())
    };
    let (secrets, configs) = (values(ValueKind::Secret), values(ValueKind::Config));
    let rows = [
        ("Port", spec.port.map(|port| port.to_string().into_any())),
        ("Volumes", texts(volumes.collect())),
        ("Secrets", secrets),
        ("Configs", configs),
        ("Temporary directories", texts(spec.tmpfs)),
        ("Limits", limits(spec.resources).map(IntoAny::into_any)),
        ("Health check", spec.health.map(|health| health_check(&health).into_any())),
        ("Restart", Some(restart(spec.restart).into_any())),
        ("Command", words(spec.command.unwrap_or_default())),
        ("Entry point", words(spec.entrypoint.unwrap_or_default())),
        ("User", spec.user.map(IntoAny::into_any)),
        ("Needs", texts(spec.depends_on.iter().map(ToString::to_string).collect())),
        ("Environment", environment(spec.environment)),
        ("Labels", texts(spec.labels.iter().map(|(name, value)| format!("{name}={value}")).collect())),
    ];
    let rows = rows.into_iter().filter_map(|(name, value)| value.map(|value| fact(name, value))).collect::<Vec<_>>();
    view! { <dl class="facts stacked card">{rows}</dl> }
}

fn limits(resources: Resources) -> Option<String> {
    let cpu = resources.cpu_millis.map(|millis| format::cores(millis as f64 / 1000.0));
    let memory = resources.memory_bytes.map(|bytes| format!("{} of memory", format::bytes(bytes)));
    let limits: Vec<_> = cpu.into_iter().chain(memory).collect();
    (!limits.is_empty()).then(|| limits.join(", "))
}

fn health_check(health: &HealthCheck) -> String {
    match health.test.split_first() {
        Some((kind, _)) if kind == "NONE" => "Turned off".to_owned(),
        Some((_, command)) => format!(
            "{}, every {}, {} to fail",
            command.join(" "),
            format::setting(health.interval_ms),
            format::counted(health.retries as usize, "time", "times")
        ),
        None => "None".to_owned(),
    }
}

fn restart(restart: Restart) -> String {
    match restart {
        Restart::Always => "Always".to_owned(),
        Restart::OnFailure { max: Some(max) } => {
            format!("After a failure, at most {} in a row", format::counted(max as usize, "time", "times"))
        }
        Restart::OnFailure { max: None } => "After a failure".to_owned(),
        Restart::Never => "Never".to_owned(),
    }
}

/// Names at once; values, which are often secrets, when they are asked for.
fn environment(environment: BTreeMap<String, String>) -> Option<AnyView> {
    if environment.is_empty() {
        return None;
    }
    let shown = RwSignal::new(false);
    let items = environment
        .into_iter()
        .map(|(name, value)| {
            view! {
                <li>
                    <code class="break">
                        {name} "="
                        {move || if shown.get() { value.clone() } else { "••••••".to_owned() }}
                    </code>
                </li>
            }
        })
        .collect_view();
    Some(
        view! {
            <ul class="plain">{items}</ul>
            <button
                class="button small"
                aria-pressed=move || shown.get().to_string()
                on:click=move |_| shown.update(|shown| *shown = !*shown)
            >
                <Glyph icon=Icon::Eye/>
                {move || if shown.get() { "Hide values" } else { "Show values" }}
            </button>
        }
        .into_any(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_read_as_sentences() {
        assert_eq!(restart(Restart::OnFailure { max: Some(1) }), "After a failure, at most 1 time in a row");
        assert_eq!(limits(Resources::default()), None);
        let resources = Resources { cpu_millis: Some(500), memory_bytes: Some(256 * 1024 * 1024) };
        assert_eq!(limits(resources).as_deref(), Some("0.50 cores, 256 MiB of memory"));
        let health = HealthCheck {
            test: vec!["CMD-SHELL".into(), "wget -q localhost".into()],
            interval_ms: 1500,
            timeout_ms: 1000,
            start_period_ms: 0,
            retries: 3,
        };
        assert_eq!(health_check(&health), "wget -q localhost, every 1500 ms, 3 times to fail");
    }
}
