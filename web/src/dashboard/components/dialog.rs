use std::sync::atomic::{AtomicU32, Ordering};

use leptos::{ev, html, prelude::*};
use wasm_bindgen::JsCast;

use super::{Glyph, Icon};

static NEXT: AtomicU32 = AtomicU32::new(1);

/// A modal `<dialog>`: the browser keeps the focus inside, closes it on Escape and gives the focus back. Its content is
/// made anew each time it opens.
#[component]
pub(crate) fn Dialog(
    open: RwSignal<bool>,
    #[prop(into)] title: Signal<String>,
    #[prop(optional)] wide: bool,
    children: ChildrenFn,
) -> impl IntoView {
    let dialog = NodeRef::<html::Dialog>::new();
    let heading = StoredValue::new(format!("dialog-{}", NEXT.fetch_add(1, Ordering::Relaxed)));
    Effect::new(move || {
        let Some(dialog) = dialog.get() else { return };
        match (open.get(), dialog.open()) {
            (true, false) => drop(dialog.show_modal()),
            (false, true) => dialog.close(),
            _ => {}
        }
    });
    let close_on_backdrop = move |event: ev::MouseEvent| {
        let on_backdrop = event.target().is_some_and(|target| target.dyn_ref::<web_sys::HtmlDialogElement>().is_some());
        if on_backdrop {
            open.set(false);
        }
    };
    view! {
        <dialog
            class="dialog"
            class:wide=wide
            node_ref=dialog
            aria-labelledby=heading.get_value()
            on:close=move |_| open.set(false)
            on:click=close_on_backdrop
        >
            {move || {
                let children = children.clone();
                open.get()
                    .then(move || {
                        view! {
                            <div class="dialog-body">
                                <header class="dialog-head">
                                    <h2 id=heading.get_value()>{title}</h2>
                                    <button
                                        class="button quiet square"
                                        aria-label="Close"
                                        on:click=move |_| open.set(false)
                                    >
                                        <Glyph icon=Icon::Cross/>
                                    </button>
                                </header>
                                {children()}
                            </div>
                        }
                    })
            }}
        </dialog>
    }
}
