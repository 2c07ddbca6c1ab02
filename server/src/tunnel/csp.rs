//! Content-Security-Policy of a service's page: what would keep it out of the wrapper's frame is taken out, and the shim is let in.

/// Directives that speak of frames around the page. The page is in a frame of its own origin that it does not know of.
const ABOUT_FRAMES: &[&str] = &["frame-ancestors", "sandbox"];

/// Sent back with [`rewrite`] where the shim's script tag needs it.
pub(super) struct Policy {
    /// The header's new value; empty if nothing is left of it.
    pub(super) value: String,
    /// True if the policy ignores addresses (`'strict-dynamic'`), so that the nonce was added.
    pub(super) uses_nonce: bool,
}

/// Rewrites one header value, which may hold several policies with commas between them.
pub(super) fn rewrite(value: &str, shim_url: &str, nonce: &str) -> Policy {
    let mut uses_nonce = false;
    let policies: Vec<_> = value
        .split(',')
        .map(|policy| rewrite_one(policy, shim_url, nonce, &mut uses_nonce))
        .filter(|policy| !policy.is_empty())
        .collect();
    Policy { value: policies.join(", "), uses_nonce }
}

fn rewrite_one(policy: &str, shim_url: &str, nonce: &str, uses_nonce: &mut bool) -> String {
    let mut directives: Vec<(String, Vec<String>)> = Vec::new();
    for directive in policy.split(';') {
        let mut words = directive.split_ascii_whitespace();
        let Some(name) = words.next() else { continue };
        let name = name.to_ascii_lowercase();
        // The first of a name counts (CSP 3, 2.2.1).
        if !ABOUT_FRAMES.contains(&name.as_str()) && !directives.iter().any(|(known, _)| *known == name) {
            directives.push((name, words.map(str::to_owned).collect()));
        }
    }
    let governs = ["script-src-elem", "script-src", "default-src"]
        .into_iter()
        .find_map(|wanted| directives.iter().position(|(name, _)| name == wanted));
    if let Some(index) = governs {
        let (name, mut sources) = directives[index].clone();
        sources.retain(|source| !source.eq_ignore_ascii_case("'none'"));
        if sources.iter().any(|source| source.eq_ignore_ascii_case("'strict-dynamic'")) {
            *uses_nonce = true;
            sources.push(format!("'nonce-{nonce}'"));
        } else if !sources.iter().any(|source| source == "*") {
            // An address and not a nonce: a nonce would switch `'unsafe-inline'` off.
            sources.push(shim_url.to_owned());
        }
        if name == "default-src" {
            // Only scripts get the exception.
            directives.push(("script-src".to_owned(), sources));
        } else {
            directives[index].1 = sources;
        }
    }
    let written: Vec<_> =
        directives.into_iter().map(|(name, sources)| [vec![name], sources].concat().join(" ")).collect();
    written.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHIM: &str = "http://notes.home.localhost:7070/__flotilla/shim.js";

    fn rewritten(value: &str) -> (String, bool) {
        let policy = rewrite(value, SHIM, "N0nce");
        (policy.value, policy.uses_nonce)
    }

    #[test]
    fn what_speaks_of_frames_goes() {
        assert_eq!(rewritten("frame-ancestors 'none'"), (String::new(), false));
        assert_eq!(
            rewritten("Frame-Ancestors 'self'; img-src *; sandbox allow-scripts"),
            ("img-src *".to_owned(), false)
        );
    }

    #[test]
    fn the_shim_is_let_in_by_its_address() {
        assert_eq!(rewritten("script-src 'self'"), (format!("script-src 'self' {SHIM}"), false));
        assert_eq!(
            rewritten("script-src 'unsafe-inline' 'unsafe-eval'"),
            (format!("script-src 'unsafe-inline' 'unsafe-eval' {SHIM}"), false)
        );
        assert_eq!(rewritten("script-src 'none'"), (format!("script-src {SHIM}"), false));
        assert_eq!(
            rewritten("default-src 'none'; img-src *"),
            (format!("default-src 'none'; img-src *; script-src {SHIM}"), false)
        );
        assert_eq!(
            rewritten("script-src 'none'; script-src-elem 'nonce-a'"),
            (format!("script-src 'none'; script-src-elem 'nonce-a' {SHIM}"), false)
        );
        assert_eq!(rewritten("default-src *"), ("default-src *; script-src *".to_owned(), false));
    }

    #[test]
    fn a_policy_that_ignores_addresses_gets_a_nonce() {
        assert_eq!(
            rewritten("script-src 'strict-dynamic' 'sha256-x'"),
            ("script-src 'strict-dynamic' 'sha256-x' 'nonce-N0nce'".to_owned(), true)
        );
    }

    #[test]
    fn every_policy_of_a_header_is_rewritten() {
        assert_eq!(
            rewritten("script-src 'self', frame-ancestors *, script-src a.example"),
            (format!("script-src 'self' {SHIM}, script-src a.example {SHIM}"), false)
        );
    }

    #[test]
    fn a_policy_without_a_word_on_scripts_stays() {
        assert_eq!(
            rewritten("img-src 'self'; ;upgrade-insecure-requests"),
            ("img-src 'self'; upgrade-insecure-requests".to_owned(), false)
        );
    }
}
