//! Light, dark, or as the system has it. The choice is kept in this browser; `theme.js` applies it before the first paint.

use leptos::prelude::*;

use super::browser;

/// Also in `web/static/app/theme.js`.
const STORED_AS: &str = "flotilla-theme";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Choice {
    System,
    Light,
    Dark,
}

impl Choice {
    pub(crate) const ALL: [Self; 3] = [Self::System, Self::Light, Self::Dark];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::System => "System",
            Self::Light => "Light",
            Self::Dark => "Dark",
        }
    }

    /// What is stored and stands at the document's root; nothing for the system's.
    fn attribute(self) -> Option<&'static str> {
        match self {
            Self::System => None,
            Self::Light => Some("light"),
            Self::Dark => Some("dark"),
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Theme(pub(crate) RwSignal<Choice>);

impl Theme {
    pub(crate) fn start() -> Self {
        let stored = browser::stored(STORED_AS);
        let choice = Choice::ALL.into_iter().find(|choice| choice.attribute() == stored.as_deref());
        let theme = RwSignal::new(choice.unwrap_or(Choice::System));
        Effect::new(move || {
            let attribute = theme.get().attribute();
            browser::store(STORED_AS, attribute);
            if let Some(root) = browser::document().document_element() {
                let _ = match attribute {
                    Some(value) => root.set_attribute("data-theme", value),
                    None => root.remove_attribute("data-theme"),
                };
            }
        });
        Self(theme)
    }
}
