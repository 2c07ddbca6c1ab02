//! The patterns of a `.dockerignore` file, as Docker reads them: a path is left out if it, or a directory above it, matches
//! a pattern, unless a later pattern with `!` takes it back in.

/// The patterns of one file, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Patterns(Vec<Pattern>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Pattern {
    takes_back: bool,
    segments: Vec<String>,
}

impl Patterns {
    pub(super) fn parse(text: &str) -> Self {
        let lines = text.strip_prefix('\u{feff}').unwrap_or(text).lines();
        Self(lines.filter(|line| !line.starts_with('#')).filter_map(|line| Pattern::parse(line.trim())).collect())
    }

    /// Is the path (relative, with slashes) left out?
    pub(super) fn leaves_out(&self, path: &str) -> bool {
        let path: Vec<&str> = path.split('/').collect();
        self.0.iter().fold(false, |left_out, pattern| {
            // A pattern that would change nothing need not be looked at.
            if pattern.takes_back == left_out && pattern.matches_it_or_a_parent(&path) { !left_out } else { left_out }
        })
    }

    /// May something below a directory that is left out be taken back in?
    pub(super) fn may_take_back(&self) -> bool {
        self.0.iter().any(|pattern| pattern.takes_back)
    }
}

impl Pattern {
    fn parse(line: &str) -> Option<Self> {
        let (takes_back, line) = match line.strip_prefix('!') {
            Some(rest) => (true, rest.trim()),
            None => (false, line),
        };
        let mut segments: Vec<String> = Vec::new();
        for segment in line.split('/') {
            match segment {
                "" | "." => {}
                ".." => drop(segments.pop()),
                _ => segments.push(segment.to_owned()),
            }
        }
        // What is left of `.` or an empty line says nothing: a whole context that is left out is a mistake.
        (!segments.is_empty()).then_some(Self { takes_back, segments })
    }

    fn matches_it_or_a_parent(&self, path: &[&str]) -> bool {
        (1..=path.len()).any(|len| segments_match(&self.segments, &path[..len]))
    }
}

fn segments_match(pattern: &[String], path: &[&str]) -> bool {
    match pattern.split_first() {
        None => path.is_empty(),
        Some((first, rest)) if first == "**" => {
            // At the end, `**` stands for at least one segment: `dir/**` is what is in it, not the directory.
            let least = usize::from(rest.is_empty());
            (least..=path.len()).any(|skip| segments_match(rest, &path[skip..]))
        }
        Some((first, rest)) => match path.split_first() {
            Some((segment, below)) => {
                let pattern: Vec<char> = first.chars().collect();
                let segment: Vec<char> = segment.chars().collect();
                glob_matches(&pattern, &segment) && segments_match(rest, below)
            }
            None => false,
        },
    }
}

/// `*`, `?`, `[a-z]`, `[^a-z]` and `\x` within one segment, as Go's `filepath.Match`.
fn glob_matches(pattern: &[char], text: &[char]) -> bool {
    match pattern.split_first() {
        None => text.is_empty(),
        Some(('*', rest)) => (0..=text.len()).any(|skip| glob_matches(rest, &text[skip..])),
        Some(('?', rest)) => text.split_first().is_some_and(|(_, text)| glob_matches(rest, text)),
        Some(('[', rest)) => match (text.split_first(), class(rest)) {
            (Some((c, text)), Some((class, rest))) => class.holds(*c) && glob_matches(rest, text),
            // An open bracket without its end is itself.
            (Some(('[', text)), None) => glob_matches(rest, text),
            _ => false,
        },
        Some(('\\', rest)) if !rest.is_empty() => text.first() == rest.first() && glob_matches(&rest[1..], &text[1..]),
        Some((c, rest)) => text.first() == Some(c) && glob_matches(rest, &text[1..]),
    }
}

struct Class {
    negated: bool,
    ranges: Vec<(char, char)>,
}

impl Class {
    fn holds(&self, c: char) -> bool {
        self.ranges.iter().any(|(low, high)| (*low..=*high).contains(&c)) != self.negated
    }
}

/// What is between `[` and `]`, and what follows.
fn class(pattern: &[char]) -> Option<(Class, &[char])> {
    let (negated, body) = match pattern.first() {
        Some('^' | '!') => (true, &pattern[1..]),
        _ => (false, pattern),
    };
    let end = body.iter().position(|c| *c == ']').filter(|end| *end > 0)?;
    let mut ranges = Vec::new();
    let mut chars = &body[..end];
    while let Some((low, rest)) = chars.split_first() {
        if let ['-', high, rest @ ..] = rest {
            ranges.push((*low, *high));
            chars = rest;
        } else {
            ranges.push((*low, *low));
            chars = rest;
        }
    }
    Some((Class { negated, ranges }, &body[end + 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_mean_what_they_mean_to_docker() {
        for (patterns, path, left_out) in [
            ("target", "target", true),
            ("target", "target/debug/x", true),
            ("target", "src/target", false),
            ("/target/", "target/x", true),
            ("*.md", "README.md", true),
            ("*.md", "docs/README.md", false),
            ("**/*.md", "docs/deep/README.md", true),
            ("**/*.md", "README.md", true),
            ("docs/**", "docs", false),
            ("docs/**", "docs/a", true),
            ("a/**/b", "a/b", true),
            ("a/**/b", "a/x/y/b", true),
            ("*.md\n!README.md", "README.md", false),
            ("!README.md\n*.md", "README.md", true),
            ("node_modules\n!node_modules/keep", "node_modules/keep/x", false),
            ("temp?", "tempa", true),
            ("temp?", "temp", false),
            ("[a-c].txt", "b.txt", true),
            ("[^a-c].txt", "b.txt", false),
            ("# a comment\n\n  spaced  ", "spaced", true),
            ("\\*", "*", true),
            ("\\*", "x", false),
            (".", "anything", false),
            ("*", "anything/at/all", true),
        ] {
            assert_eq!(Patterns::parse(patterns).leaves_out(path), left_out, "{patterns:?} on {path:?}");
        }
    }
}
