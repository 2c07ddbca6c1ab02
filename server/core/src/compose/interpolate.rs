//! `${NAME}` and its kin in values, as the Compose specification has them; keys are left alone.

use std::collections::BTreeMap;

use flotilla_api::{ApiError, ErrorCode};

use super::tree::{Mark, Node, TEXT_MAX, Value, shown};

/// Variables in the defaults of variables: `${A:-${B:-c}}`.
const NESTED_MAX: usize = 8;

pub(super) struct Interpolation<'a> {
    variables: &'a BTreeMap<String, String>,
    /// Bytes that may still be put in.
    budget: usize,
}

impl<'a> Interpolation<'a> {
    pub(super) fn new(variables: &'a BTreeMap<String, String>) -> Self {
        Self { variables, budget: TEXT_MAX }
    }

    /// Puts variables into all values of the file. Extensions at its top are left as they are: nobody reads them, and what
    /// is aliased from there was copied to where it is read.
    pub(super) fn apply(&mut self, root: &mut Node) -> Result<(), ApiError> {
        let Value::Map(entries) = &mut root.value else { return Ok(()) };
        entries.iter_mut().filter(|(key, _)| !key.text.starts_with("x-")).try_for_each(|(_, value)| self.below(value))
    }

    fn below(&mut self, node: &mut Node) -> Result<(), ApiError> {
        match &mut node.value {
            Value::Scalar(scalar) if scalar.text.contains('$') => {
                scalar.text = self.text(&scalar.text, node.mark)?;
                Ok(())
            }
            Value::Scalar(_) => Ok(()),
            Value::List(items) => items.iter_mut().try_for_each(|item| self.below(item)),
            Value::Map(entries) => entries.iter_mut().try_for_each(|(_, value)| self.below(value)),
        }
    }

    fn text(&mut self, text: &str, mark: Mark) -> Result<String, ApiError> {
        let mut out = String::with_capacity(text.len());
        let rest = self.until(text, None, mark, 0, &mut out)?;
        debug_assert!(rest.is_empty(), "only a closing brace ends the text early");
        Ok(out)
    }

    /// Reads up to `end`, or all; gives what is left behind it.
    fn until<'t>(
        &mut self,
        mut text: &'t str,
        end: Option<char>,
        mark: Mark,
        depth: usize,
        out: &mut String,
    ) -> Result<&'t str, ApiError> {
        if depth > NESTED_MAX {
            return Err(mark.invalid(format!("variables stand more than {NESTED_MAX} deep in each other's defaults")));
        }
        while let Some(next) = text.chars().next() {
            if Some(next) == end {
                return Ok(&text[1..]);
            }
            if next != '$' {
                self.push(&text[..next.len_utf8()], mark, out)?;
                text = &text[next.len_utf8()..];
                continue;
            }
            text = match text[1..].chars().next() {
                Some('$') => {
                    self.push("$", mark, out)?;
                    &text[2..]
                }
                Some('{') => self.braced(&text[2..], mark, depth, out)?,
                Some(first) if is_name_start(first) => {
                    let (name, rest) = name(&text[1..]);
                    let value = self.variables.get(name).ok_or_else(|| unset(name, mark))?;
                    self.push(value, mark, out)?;
                    rest
                }
                _ => return Err(mark.invalid("a `$` stands alone; write `$$` for a dollar sign, or `${NAME}`")),
            };
        }
        match end {
            None => Ok(text),
            Some(_) => Err(mark.invalid("a `${` is never closed; add the `}`")),
        }
    }

    /// What stands behind `${`.
    fn braced<'t>(&mut self, text: &'t str, mark: Mark, depth: usize, out: &mut String) -> Result<&'t str, ApiError> {
        let (name, rest) = name(text);
        if name.is_empty() {
            return Err(
                mark.invalid("a name of letters, digits and `_` must follow `${`; write `$$` for a dollar sign")
            );
        }
        let set = self.variables.get(name);
        if let Some(rest) = rest.strip_prefix('}') {
            self.push(set.ok_or_else(|| unset(name, mark))?, mark, out)?;
            return Ok(rest);
        }
        // With the colon, an empty value counts as none.
        let (colon, rest) = rest.strip_prefix(':').map_or((false, rest), |rest| (true, rest));
        let set = set.filter(|value| !(colon && value.is_empty()));
        let Some(operator @ ('-' | '?' | '+')) = rest.chars().next() else {
            let name = shown(name);
            return Err(mark.invalid(format!(
                "`${{{name}` goes on as nothing that is known; use `${{{name}}}`, `${{{name}:-default}}` or `${{{name}:?message}}`"
            )));
        };
        let mut word = String::new();
        // The word is read even where it is not used, to find its end; what is missing in it then matters to nobody.
        let uses_word = match operator {
            '+' => set.is_some(),
            _ => set.is_none(),
        };
        let rest = if uses_word {
            self.until(&rest[1..], Some('}'), mark, depth + 1, &mut word)?
        } else {
            skip(&rest[1..], mark)?
        };
        match (operator, set) {
            ('?', None) => {
                let why = if word.is_empty() { "it must be given".to_owned() } else { shown(&word) };
                let name = shown(name);
                return Err(mark.invalid(format!("the variable `{name}` is not set: {why}")));
            }
            ('+', _) | (_, None) => out.push_str(&word),
            (_, Some(value)) => self.push(value, mark, out)?,
        }
        Ok(rest)
    }

    fn push(&mut self, text: &str, mark: Mark, out: &mut String) -> Result<(), ApiError> {
        self.budget = self.budget.checked_sub(text.len()).ok_or_else(|| {
            mark.error(
                ErrorCode::ComposeTooLarge,
                format!("with its variables put in the file has more than {} KiB; use shorter values", TEXT_MAX / 1024),
            )
        })?;
        if text.contains('\0') {
            return Err(mark.invalid("a variable holds a NUL character, which nothing in a container can take"));
        }
        out.push_str(text);
        Ok(())
    }
}

fn is_name_start(first: char) -> bool {
    first.is_ascii_alphabetic() || first == '_'
}

fn name(text: &str) -> (&str, &str) {
    if !text.starts_with(is_name_start) {
        return ("", text);
    }
    let end = text.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(text.len());
    text.split_at(end)
}

fn unset(name: &str, mark: Mark) -> ApiError {
    let name = shown(name);
    mark.invalid(format!("the variable `{name}` is not set; set it, or write `${{{name}:-default}}`"))
}

/// To behind the brace that closes a word nobody needs.
fn skip(text: &str, mark: Mark) -> Result<&str, ApiError> {
    let mut depth = 0_usize;
    let mut before = ' ';
    for (index, c) in text.char_indices() {
        match c {
            '{' if before == '$' => depth += 1,
            '}' if depth == 0 => return Ok(&text[index + 1..]),
            '}' => depth -= 1,
            _ => {}
        }
        before = c;
    }
    Err(mark.invalid("a `${` is never closed; add the `}`"))
}
