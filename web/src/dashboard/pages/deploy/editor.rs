use flotilla_api::rest::COMPOSE_MAX;
use leptos::{ev, html, prelude::*};
use wasm_bindgen_futures::{JsFuture, spawn_local};
use web_sys::File;

use super::{Draft, check::Check};
use crate::dashboard::{
    components::{Glyph, Icon, Prose, Toasts},
    compose_text::{self, COLOURED_LINES_MAX, Shade},
};

/// A plain text area, laid over the same text with line numbers, colours and the marked line. Both grow with the text and
/// scroll as one, so that nothing has to be kept in step.
#[component]
pub(crate) fn Editor(draft: Draft, check: Check) -> impl IntoView {
    let toasts = expect_context::<Toasts>();
    let area = NodeRef::<html::Textarea>::new();
    let picker = NodeRef::<html::Input>::new();
    let dragging = RwSignal::new(false);
    let marked = Memo::new(move |_| check.line());

    let open_file = move |file: File| {
        if file.size() > COMPOSE_MAX as f64 {
            toasts.warn(format!("`{}` is larger than {} KiB and was not read.", file.name(), COMPOSE_MAX / 1024));
            return;
        }
        spawn_local(async move {
            match JsFuture::from(file.text()).await {
                Ok(text) => drop(draft.text.try_set(text.as_string().unwrap_or_default())),
                Err(_) => toasts.warn(format!("`{}` could not be read.", file.name())),
            }
        });
    };
    let drop_file = move |event: ev::DragEvent| {
        event.prevent_default();
        dragging.set(false);
        let Some(data) = event.data_transfer() else { return };
        match data.files().and_then(|files| files.get(0)) {
            Some(file) => open_file(file),
            None => {
                if let Ok(text) = data.get_data("text/plain") {
                    draft.text.set(text);
                }
            }
        }
    };
    let pick = move |_| {
        let Some(input) = picker.get_untracked() else { return };
        if let Some(file) = input.files().and_then(|files| files.get(0)) {
            open_file(file);
        }
        // So that the same file can be picked again after it was changed.
        input.set_value("");
    };
    let go_to_error = move |_| {
        let (Some(area), Some(error)) = (area.get_untracked(), check.error()) else { return };
        let Some(line) = error.line else { return };
        let caret = compose_text::caret(&area.value(), line, error.column);
        let _ = area.focus();
        let _ = area.set_selection_range(caret, caret);
    };
    let lines = move || {
        let text = draft.text.read();
        let coloured = compose_text::line_count(&text) <= COLOURED_LINES_MAX;
        text.split('\n').zip(1_u32..).map(|(line, number)| self::line(line, number, coloured, marked)).collect_view()
    };
    let error_bar = move || {
        let error = check.error()?;
        error.line.map(|line| {
            view! {
                <div class="editor-error" id="editor-error">
                    <Glyph icon=Icon::Warning/>
                    <p>
                        <strong>"Line " {line} ". "</strong>
                        <Prose text=error.message/>
                    </p>
                    <button class="button small" on:click=go_to_error>"Go to line"</button>
                </div>
            }
        })
    };
    view! {
        <div class="editor" class:dragging=dragging class:faulty=move || check.error().is_some()>
            <div class="editor-bar">
                <label for="compose">"Compose file"</label>
                <label class="button small file-button">
                    <Glyph icon=Icon::File/>
                    "Choose a file"
                    <input
                        class="unseen"
                        type="file"
                        accept=".yaml,.yml,application/yaml,text/yaml"
                        node_ref=picker
                        on:change=pick
                    />
                </label>
            </div>
            <div
                class="editor-scroll"
                on:dragover=move |event: ev::DragEvent| {
                    event.prevent_default();
                    dragging.set(true);
                }
                on:dragleave=move |_| dragging.set(false)
                on:drop=drop_file
            >
                <div class="editor-sheet">
                    <div class="editor-lines" aria-hidden="true">{lines}</div>
                    <textarea
                        id="compose"
                        class="editor-text"
                        node_ref=area
                        wrap="off"
                        spellcheck="false"
                        autocomplete="off"
                        autocapitalize="off"
                        placeholder="services:\n  …"
                        aria-invalid=move || check.error().is_some().then_some("true")
                        aria-describedby="editor-error"
                        prop:value=draft.text
                        on:input=move |event| draft.text.set(event_target_value(&event))
                    ></textarea>
                </div>
            </div>
            {error_bar}
        </div>
    }
}

fn line(text: &str, number: u32, coloured: bool, marked: Memo<Option<u32>>) -> impl IntoView + use<> {
    let pieces = if coloured { compose_text::shades(text) } else { vec![(Shade::Plain, text)] };
    let pieces = pieces
        .into_iter()
        .map(|(shade, text)| {
            let class = match shade {
                Shade::Plain => "",
                Shade::Key => "shade-key",
                Shade::Comment => "shade-comment",
                Shade::Variable => "shade-variable",
            };
            view! { <span class=class>{text.to_owned()}</span> }
        })
        .collect_view();
    view! {
        <div class="editor-line" class:marked=move || marked.get() == Some(number)>
            {pieces}
            // Keeps the height of a line without text.
            "\u{200b}"
        </div>
    }
}
