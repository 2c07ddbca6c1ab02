//! What the compose editor knows of its text: lines, where an error stands, which variables it needs.
//!
//! It reads no YAML: whether a file is right, the node alone says.

use std::collections::BTreeSet;

/// A file with more lines is shown without colours, because every stroke would lay them all out again.
pub(crate) const COLOURED_LINES_MAX: usize = 1500;

/// More variables than this are not asked for one by one.
pub(crate) const VARIABLES_MAX: usize = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shade {
    Plain,
    Key,
    Comment,
    Variable,
}

/// A line in pieces that together are the line again.
pub(crate) fn shades(line: &str) -> Vec<(Shade, &str)> {
    let (code, comment) = line.split_at(comment_start(line));
    let mut pieces = Vec::new();
    let value = match key_end(code) {
        Some(end) => {
            let (key, value) = code.split_at(end);
            pieces.push((Shade::Key, key));
            value
        }
        None => code,
    };
    let mut plain = 0;
    for (start, end, _) in variables_in(value) {
        pieces.push((Shade::Plain, &value[plain..start]));
        pieces.push((Shade::Variable, &value[start..end]));
        plain = end;
    }
    pieces.push((Shade::Plain, &value[plain..]));
    pieces.push((Shade::Comment, comment));
    pieces.retain(|(_, text)| !text.is_empty());
    pieces
}

/// A `#` begins a comment at the start of a line or after a space, outside quotes.
fn comment_start(line: &str) -> usize {
    let mut quote = None;
    let mut before = ' ';
    for (index, character) in line.char_indices() {
        match (quote, character) {
            (None, '#') if before.is_whitespace() => return index,
            (None, '"' | '\'') if !before.is_alphanumeric() => quote = Some(character),
            (Some(open), _) if open == character => quote = None,
            _ => {}
        }
        before = character;
    }
    line.len()
}

/// Where the key of `  - name: value` ends, its indentation, dashes and colon included.
fn key_end(code: &str) -> Option<usize> {
    let start = code.len() - code.trim_start_matches([' ', '-']).len();
    let end = start + code[start..].find(':')?;
    let key = code[start..end].trim_matches(['"', '\'']);
    let ends_key = code[end + 1..].chars().next().is_none_or(char::is_whitespace);
    let is_word = !key.is_empty() && key.chars().all(|c| c.is_alphanumeric() || "-_.<".contains(c));
    (ends_key && is_word).then_some(end + 1)
}

/// `${NAME…}` and `$NAME` with where they stand; `$$` is a plain dollar.
fn variables_in(text: &str) -> Vec<(usize, usize, Variable<'_>)> {
    let mut found = Vec::new();
    let mut from = 0;
    while let Some(start) = text[from..].find('$').map(|at| from + at) {
        let after = &text[start + 1..];
        if after.starts_with('$') {
            from = start + 2;
            continue;
        }
        let braced = after.starts_with('{');
        let name_start = start + 1 + usize::from(braced);
        let name_len = text[name_start..].bytes().take_while(|b| b.is_ascii_alphanumeric() || *b == b'_').count();
        let name = &text[name_start..name_start + name_len];
        let mut end = name_start + name_len;
        let mut has_default = false;
        if braced {
            let Some(close) = text[end..].find('}') else { break };
            has_default = text[end..end + close].trim_start_matches(':').starts_with(['-', '+']);
            end += close + 1;
        }
        if !name.is_empty() && !name.starts_with(|c: char| c.is_ascii_digit()) {
            found.push((start, end, Variable { name, has_default }));
        }
        from = end.max(start + 1);
    }
    found
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Variable<'a> {
    name: &'a str,
    has_default: bool,
}

/// Names that the file needs a value for: those without a default of their own, outside comments.
pub(crate) fn variables(text: &str) -> BTreeSet<String> {
    text.lines()
        .flat_map(|line| variables_in(&line[..comment_start(line)]))
        .filter(|(_, _, variable)| !variable.has_default)
        .map(|(_, _, variable)| variable.name.to_owned())
        .take(VARIABLES_MAX)
        .collect()
}

/// Does the file name its stack itself?
pub(crate) fn names_its_stack(text: &str) -> bool {
    text.lines().any(|line| line.strip_prefix("name:").is_some_and(|value| !value.trim().is_empty()))
}

/// How many lines an editor shows: a trailing newline opens one more.
pub(crate) fn line_count(text: &str) -> usize {
    text.split('\n').count()
}

/// Where the caret goes for an error at `line` and `column` (from 1): an offset in UTF-16 code units, as a text area counts.
/// What lies beyond the line or the text ends at its end.
pub(crate) fn caret(text: &str, line: u32, column: Option<u32>) -> u32 {
    let mut offset = 0;
    for (number, content) in (1..).zip(text.split('\n')) {
        if number == line {
            let before = column.unwrap_or(1).saturating_sub(1) as usize;
            offset += content.chars().take(before).map(char::len_utf16).sum::<usize>();
            return offset as u32;
        }
        offset += content.encode_utf16().count() + 1;
    }
    offset.saturating_sub(1) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pieces_of_a_line_are_the_line() {
        for line in [
            "",
            "services:",
            "  - \"8080:80\"  # web",
            "image: a#b",
            "  image: \"x # y\" # z",
            "url: http://a/${B}",
            "$$ ${",
            "é: ü # ß",
            "don't: stop # here",
        ] {
            let joined: String = shades(line).into_iter().map(|(_, text)| text).collect();
            assert_eq!(joined, line);
        }
    }

    #[test]
    fn keys_comments_and_variables_have_their_shades() {
        assert_eq!(
            shades("  - image: a:${TAG} # b"),
            [
                (Shade::Key, "  - image:"),
                (Shade::Plain, " a:"),
                (Shade::Variable, "${TAG}"),
                (Shade::Plain, " "),
                (Shade::Comment, "# b"),
            ]
        );
        assert_eq!(shades("- http://x"), [(Shade::Plain, "- http://x")]);
        assert_eq!(shades("a: \"x # y\""), [(Shade::Key, "a:"), (Shade::Plain, " \"x # y\"")]);
    }

    #[test]
    fn only_variables_without_a_default_are_asked_for() {
        let text = "a: ${ONE}\nb: ${TWO:-x}${THREE-x}\nc: $FOUR $$FIVE ${SIX:?must be set}\n# ${SEVEN}\nd: $8";
        assert_eq!(variables(text).into_iter().collect::<Vec<_>>(), ["FOUR", "ONE", "SIX"]);
        assert!(variables("x: ${").is_empty());
    }

    #[test]
    fn a_caret_counts_as_a_text_area_does() {
        let text = "a: 😀b\nsecond\n";
        assert_eq!(caret(text, 1, None), 0);
        assert_eq!(caret(text, 1, Some(5)), 5);
        assert_eq!(caret(text, 2, Some(1)), 7);
        assert_eq!(caret(text, 2, Some(99)), 13);
        assert_eq!(caret(text, 3, None), 14);
        assert_eq!(caret(text, 99, Some(1)), 14);
        assert_eq!(caret("", 1, Some(1)), 0);
    }

    #[test]
    fn a_stack_is_named_at_the_top_level_alone() {
        assert!(names_its_stack("name: shop\nservices: {}"));
        assert!(!names_its_stack("services:\n  name: x"));
        assert!(!names_its_stack("name:\n"));
        assert_eq!(line_count("a\nb\n"), 3);
    }
}
