use flotilla_api::ServiceName;
use leptos::prelude::*;
use leptos_router::components::A;

/// A sentence of the API, in which names stand between backticks; that of `service` leads to its page.
#[component]
pub(crate) fn Prose(
    #[prop(into)] text: String,
    #[prop(optional_no_strip)] service: Option<ServiceName>,
) -> impl IntoView {
    parts(&sentence(&text))
        .map(|(is_name, part)| {
            let leads = service.as_ref().is_some_and(|service| service.as_str() == part);
            let part = part.to_owned();
            match (is_name, leads) {
                (true, true) => {
                    view! { <A href=format!("/services/{part}") attr:class="row-link">{part.clone()}</A> }.into_any()
                }
                (true, false) => view! { <code>{part}</code> }.into_any(),
                (false, _) => part.into_any(),
            }
        })
        .collect_view()
}

/// What a program said as a clause, for people: with a capital and a full stop.
fn sentence(clause: &str) -> String {
    let mut characters = clause.trim().chars();
    let Some(first) = characters.next() else { return String::new() };
    let mut sentence: String = first.to_uppercase().chain(characters).collect();
    if !sentence.ends_with(['.', '!', '?', '…', ':']) {
        sentence.push('.');
    }
    sentence
}

/// A backtick without a partner stays what it is.
fn parts(text: &str) -> impl Iterator<Item = (bool, &str)> {
    let mut rest = text;
    let mut name = None;
    std::iter::from_fn(move || {
        if let Some(name) = name.take() {
            return Some((true, name));
        }
        let opening = rest.find('`').filter(|opening| rest[opening + 1..].contains('`'));
        let Some(opening) = opening else {
            let last = std::mem::take(&mut rest);
            return (!last.is_empty()).then_some((false, last));
        };
        let closing = opening + 1 + rest[opening + 1..].find('`').unwrap_or(0);
        let (before, quoted) = (&rest[..opening], &rest[opening + 1..closing]);
        rest = &rest[closing + 1..];
        name = Some(quoted);
        Some((false, before))
    })
    .filter(|(_, part)| !part.is_empty())
}

#[cfg(test)]
mod tests {
    use super::{parts, sentence};

    #[test]
    fn names_between_backticks_are_told_from_the_sentence() {
        let read = |text| parts(text).collect::<Vec<_>>();
        assert_eq!(read("`a` is no b"), [(true, "a"), (false, " is no b")]);
        assert_eq!(read("x `a``b`."), [(false, "x "), (true, "a"), (true, "b"), (false, ".")]);
        assert_eq!(read("it`s"), [(false, "it`s")]);
        assert_eq!(read("`a` and `"), [(true, "a"), (false, " and `")]);
        assert!(read("").is_empty());
    }

    #[test]
    fn a_clause_becomes_a_sentence_and_a_sentence_stays_one() {
        assert_eq!(sentence("its image is missing"), "Its image is missing.");
        assert_eq!(sentence("`a` is no b "), "`a` is no b.");
        assert_eq!(sentence("Done."), "Done.");
        assert_eq!(sentence(""), "");
    }
}
