use leptos::prelude::*;

/// A sentence of the API, in which names stand between backticks.
#[component]
pub(crate) fn Prose(#[prop(into)] text: String) -> impl IntoView {
    parts(&text)
        .map(|(is_name, part)| {
            let part = part.to_owned();
            if is_name { view! { <code>{part}</code> }.into_any() } else { part.into_any() }
        })
        .collect_view()
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
    use super::parts;

    #[test]
    fn names_between_backticks_are_told_from_the_sentence() {
        let read = |text| parts(text).collect::<Vec<_>>();
        assert_eq!(read("`a` is no b"), [(true, "a"), (false, " is no b")]);
        assert_eq!(read("x `a``b`."), [(false, "x "), (true, "a"), (true, "b"), (false, ".")]);
        assert_eq!(read("it`s"), [(false, "it`s")]);
        assert_eq!(read("`a` and `"), [(true, "a"), (false, " and `")]);
        assert!(read("").is_empty());
    }
}
