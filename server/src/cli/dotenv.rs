//! The file `.env` beside a compose file, read as Docker Compose reads it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{self, Read as _},
    path::Path,
};

use super::Failure;

/// More than any such file needs; a larger one is some other file by mistake. Bytes.
const DOTENV_MAX: u64 = 256 * 1024;

/// The values of the variables that the compose file names: from the process's environment, then from `.env`. No others, so
/// that nothing is sent to a node that it has no use for.
///
/// # Errors
/// If there is a `.env` that is not right; says in which line.
pub(super) fn variables(
    compose: &str,
    directory: &Path,
    environment: impl Fn(&str) -> Option<String>,
) -> Result<BTreeMap<String, String>, Failure> {
    let file = load(directory, &environment)?;
    let value = |name: &String| environment(name).or_else(|| file.get(name).cloned());
    Ok(named(compose)
        .into_iter()
        .filter_map(|name| Some((value(&name)?, name)))
        .map(|(value, name)| (name, value))
        .collect())
}

/// One variable, found in the same places.
///
/// # Errors
/// As [`variables`].
pub(super) fn variable(
    name: &str,
    directory: &Path,
    environment: impl Fn(&str) -> Option<String>,
) -> Result<Option<String>, Failure> {
    match environment(name) {
        Some(value) => Ok(Some(value)),
        None => Ok(load(directory, &environment)?.remove(name)),
    }
}

fn load(directory: &Path, environment: &impl Fn(&str) -> Option<String>) -> Result<BTreeMap<String, String>, Failure> {
    let path = directory.join(".env");
    let text = match read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(Failure::io("read", path)(error)),
    };
    let wrong = |(line, why)| Failure::Usage(format!("`{}`, line {line}: {why}", path.display()));
    parse(&text, environment).map_err(wrong)
}

fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    if File::open(path)?.take(DOTENV_MAX + 1).read_to_string(&mut text)? as u64 > DOTENV_MAX {
        return Err(io::Error::other(format!("it has more than {DOTENV_MAX} bytes")));
    }
    Ok(text)
}

/// Names after `$` or `${`, and those that stand alone in `environment:`, as an item (`- NAME`), in brackets or as a key. Which of the
/// latter are meant says the node, which reads the file; a line that only looks so costs nothing. `$$` is a dollar sign.
fn named(text: &str) -> BTreeSet<String> {
    let alone = text.lines().flat_map(|line| line.split(['[', ']', '{', '}', ','])).filter_map(|part| {
        let part = part.trim().trim_start_matches("- ").trim().trim_end_matches(':').trim_matches(['"', '\'']);
        (!part.is_empty() && leading_name(part) == part).then(|| part.to_owned())
    });
    let mut names: BTreeSet<String> = alone.collect();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            rest = after;
            continue;
        }
        let candidate = rest.strip_prefix('{').unwrap_or(rest);
        let name = leading_name(candidate);
        if !name.is_empty() {
            names.insert(name.to_owned());
        }
    }
    names
}

fn leading_name(text: &str) -> &str {
    let len = text.bytes().take_while(|byte| byte.is_ascii_alphanumeric() || *byte == b'_').count();
    if text.starts_with(|c: char| c.is_ascii_digit()) { "" } else { &text[..len] }
}

type Wrong = (usize, String);

fn parse(text: &str, environment: &impl Fn(&str) -> Option<String>) -> Result<BTreeMap<String, String>, Wrong> {
    let mut values: BTreeMap<String, String> = BTreeMap::new();
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut rest = text;
    let mut line = 0;
    while !rest.is_empty() {
        line += 1;
        let (this, following) = rest.split_once('\n').unwrap_or((rest, ""));
        rest = following;
        let statement = this.trim_start();
        let statement = statement.strip_prefix("export ").unwrap_or(statement).trim_start();
        if statement.trim().is_empty() || statement.starts_with('#') {
            continue;
        }
        let name = leading_name(statement);
        if name.is_empty() {
            return Err((line, "write NAME=VALUE, a name of letters, digits and underscores".into()));
        }
        let after = statement[name.len()..].trim_start();
        let Some(value) = after.strip_prefix(['=', ':']) else {
            if after.trim().is_empty() {
                // A name alone passes on the process's own value.
                values.extend(environment(name).map(|value| (name.to_owned(), value)));
                continue;
            }
            return Err((line, format!("`{name}` is not followed by `=`")));
        };
        let value = value.trim_start();
        let read = match value.chars().next() {
            Some(quote @ ('"' | '\'')) => {
                // A quoted value may go on over lines: look for its end in all that follows.
                let begin = offset(text, value) + 1;
                let end = closing(&text[begin..], quote)
                    .ok_or_else(|| (line, format!("the quote {quote} is never closed")))?;
                let body = &text[begin..begin + end];
                let after = &text[begin + end + 1..];
                let (tail, following) = after.split_once('\n').unwrap_or((after, ""));
                let tail = tail.trim();
                if !(tail.is_empty() || tail.starts_with('#')) {
                    return Err((line, format!("`{tail}` follows the closing quote")));
                }
                line += body.matches('\n').count();
                rest = following;
                if quote == '\'' { body.to_owned() } else { expand(&unescape(body), &values, environment) }
            }
            _ => {
                let value = value.split_once(" #").map_or(value, |(value, _)| value);
                let value = if value.starts_with('#') { "" } else { value };
                expand(value.trim_end(), &values, environment)
            }
        };
        values.insert(name.to_owned(), read);
    }
    Ok(values)
}

/// Where `part`, a slice of `whole`, begins in it.
fn offset(whole: &str, part: &str) -> usize {
    part.as_ptr() as usize - whole.as_ptr() as usize
}

fn closing(text: &str, quote: char) -> Option<usize> {
    let mut escaped = false;
    text.char_indices().find_map(|(at, c)| {
        if escaped {
            escaped = false;
        } else if c == '\\' && quote == '"' {
            escaped = true;
        } else if c == quote {
            return Some(at);
        }
        None
    })
}

fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (c, if c == '\\' { chars.next() } else { None }) {
            ('\\', Some('n')) => out.push('\n'),
            ('\\', Some('r')) => out.push('\r'),
            ('\\', Some('t')) => out.push('\t'),
            // A dollar that was escaped must not be expanded afterwards.
            ('\\', Some('$')) => out.push_str("$$"),
            ('\\', Some(other)) => out.push(other),
            (c, _) => out.push(c),
        }
    }
    out
}

/// `$NAME`, `${NAME}`, `${NAME:-default}` and `${NAME-default}`, from the environment or the lines above.
fn expand(text: &str, above: &BTreeMap<String, String>, environment: &impl Fn(&str) -> Option<String>) -> String {
    let lookup = |name: &str| environment(name).or_else(|| above.get(name).cloned());
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((inside, after)) = rest.strip_prefix('{').and_then(|rest| rest.split_once('}')) {
            let name = leading_name(inside);
            let value = lookup(name);
            match &inside[name.len()..] {
                "" => out.push_str(&value.unwrap_or_default()),
                other => {
                    if let Some(default) = other.strip_prefix(":-") {
                        out.push_str(value.as_deref().filter(|value| !value.is_empty()).unwrap_or(default));
                    } else if let Some(default) = other.strip_prefix('-') {
                        out.push_str(value.as_deref().unwrap_or(default));
                    } else {
                        out.push_str(&format!("${{{inside}}}"));
                    }
                }
            }
            rest = after;
        } else {
            let name = leading_name(rest);
            if name.is_empty() {
                out.push('$');
            } else {
                out.push_str(&lookup(name).unwrap_or_default());
                rest = &rest[name.len()..];
            }
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<BTreeMap<String, String>, Wrong> {
        parse(text, &|name| (name == "HOME").then(|| "/home/ana".to_owned()))
    }

    #[test]
    fn values_are_read_as_compose_reads_them() {
        for (text, value) in [
            ("A=1", "1"),
            ("  export A = 1  ", "1"),
            ("A=one two # a comment", "one two"),
            ("A=one#two", "one#two"),
            ("A=", ""),
            ("A=# nothing", ""),
            ("A='$HOME \\n'", "$HOME \\n"),
            ("A=\"$HOME\\n\"", "/home/ana\n"),
            ("A=\"a\\$b\"", "a$b"),
            ("A=${HOME}/x", "/home/ana/x"),
            ("A=${NOPE:-d}", "d"),
            ("A=${NOPE-d}$$", "d$"),
            ("B=2\nA=${B}${B}", "22"),
            ("A=\"first\nsecond\" # over lines", "first\nsecond"),
            ("\u{feff}A=1\r\n", "1"),
            ("A: yaml", "yaml"),
        ] {
            assert_eq!(read(text).unwrap()["A"], value, "{text:?}");
        }
    }

    #[test]
    fn a_name_alone_takes_the_value_of_the_process() {
        assert_eq!(read("HOME\nNOPE").unwrap(), BTreeMap::from([("HOME".to_owned(), "/home/ana".to_owned())]));
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line() {
        assert_eq!(read("A=1\n=2").unwrap_err().0, 2);
        assert_eq!(read("A='1\n2'\nB=\"3").unwrap_err().0, 3);
        assert!(read("A='1' 2").unwrap_err().1.contains("follows"));
        assert!(read("A B").unwrap_err().1.contains('='));
    }

    #[test]
    fn only_what_the_compose_file_names_is_sent_and_the_environment_goes_first() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join(".env"), "TAG=1\nPORT=80\nSECRET=x").unwrap();
        let compose = "image: a:${TAG:-2}\nport: $PORT\ncommand: $$SECRET ${GONE}";
        let environment = |name: &str| (name == "PORT").then(|| "8080".to_owned());
        let sent = variables(compose, directory.path(), environment).unwrap();
        assert_eq!(sent, BTreeMap::from([("TAG".into(), "1".into()), ("PORT".into(), "8080".into())]));
    }

    #[test]
    fn variables_that_a_compose_file_names_are_found() {
        let text = "environment: [MODE, \"LEVEL\"]\nother:\n  - COLOUR\n  SIZE:\n  image: ${IMAGE:-x}:$$NOT\n";
        let names = named(text);
        for name in ["MODE", "LEVEL", "COLOUR", "SIZE", "IMAGE"] {
            assert!(names.contains(name), "{name} in {names:?}");
        }
        assert!(!names.contains("NOT"));
    }

    #[test]
    fn a_missing_file_is_no_error_and_an_oversized_one_is() {
        let directory = tempfile::tempdir().unwrap();
        assert!(variables("$A", directory.path(), |_| None).unwrap().is_empty());
        std::fs::write(directory.path().join(".env"), vec![b'#'; DOTENV_MAX as usize + 1]).unwrap();
        assert!(variables("$A", directory.path(), |_| None).unwrap_err().to_string().contains("bytes"));
    }
}
