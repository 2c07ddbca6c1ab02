use flotilla_api::rest::{InstanceView, ServiceDetail};
use leptos::prelude::*;

use crate::dashboard::{
    components::{Ago, Prose, Section, StateBadge},
    format,
};

#[component]
pub(crate) fn Instances(detail: Signal<ServiceDetail>) -> impl IntoView {
    let memory_limit = Memo::new(move |_| detail.with(|detail| detail.spec.resources.memory_bytes));
    let rows = move || {
        let detail = detail.get();
        if detail.view.instances.is_empty() {
            let sentence = if detail.view.replicas == 0 {
                "None: the service is scaled to zero. Start it to run it again."
            } else {
                "None yet."
            };
            return view! { <p class="faint none">{sentence}</p> }.into_any();
        }
        let current = detail.view.revision;
        let rows = detail.view.instances.into_iter().map(|one| row(one, current, memory_limit)).collect_view();
        view! {
            <table class="table instances" role="table" aria-label="Instances">
                <thead role="rowgroup">
                    <tr role="row">
                        <th role="columnheader" scope="col">"State"</th>
                        <th role="columnheader" scope="col">"Machine"</th>
                        <th role="columnheader" scope="col">"Epoch"</th>
                        <th role="columnheader" scope="col">"Revision"</th>
                        <th role="columnheader" scope="col">"Started"</th>
                        <th role="columnheader" scope="col">"Restarts"</th>
                        <th role="columnheader" scope="col">"CPU"</th>
                        <th role="columnheader" scope="col">"Memory"</th>
                    </tr>
                </thead>
                <tbody role="rowgroup">{rows}</tbody>
            </table>
        }
        .into_any()
    };
    view! {
        <Section id="instances" title="Instances">
            {rows}
        </Section>
    }
}

fn row(instance: InstanceView, current: flotilla_api::Revision, memory_limit: Memo<Option<u64>>) -> impl IntoView {
    let exit = instance.exit_code.map(|code| view! { <span class="chip">"exit code " {code}</span> });
    let outdated = (instance.revision != current).then(|| view! { <span class="faint">"being replaced"</span> });
    let started = match instance.started_at {
        Some(at) => view! { <Ago at/> }.into_any(),
        None => "–".into_any(),
    };
    let cpu = instance.cpu_cores_used.map_or_else(|| "–".to_owned(), format::cores);
    let memory = move || match (instance.memory_used_bytes, memory_limit.get()) {
        (Some(used), Some(limit)) => format!("{} of {}", format::bytes(used), format::bytes(limit)),
        (Some(used), None) => format::bytes(used),
        (None, _) => "–".to_owned(),
    };
    view! {
        <tr role="row" title=format!("Instance {}", instance.id)>
            <th role="rowheader" scope="row" class="cell-state">
                <StateBadge state=instance.state/>
                {exit}
                {instance.message.map(|message| view! { <p class="row-message"><Prose text=message/></p> })}
            </th>
            <td role="cell" data-label="Machine">{instance.machine.to_string()}</td>
            <td role="cell" data-label="Epoch" class="number">{instance.epoch}</td>
            <td role="cell" data-label="Revision">{instance.revision.to_string()} " " {outdated}</td>
            <td role="cell" data-label="Started">{started}</td>
            <td role="cell" data-label="Restarts">{instance.restarts}</td>
            <td role="cell" data-label="CPU" class="number">{cpu}</td>
            <td role="cell" data-label="Memory" class="number">{memory}</td>
        </tr>
    }
}
