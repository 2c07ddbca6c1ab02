//! YAML as a tree that remembers where each part stood, built from the parser's events within limits.
//!
//! The parser's own loader recurses once per level and expands aliases before anyone counts; a file of a few hundred bytes
//! could so exhaust stack or memory. Its events are safe to read, whatever the file says.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
};

use flotilla_api::{ApiError, ErrorCode};
use saphyr::{Scalar as Core, ScalarStyle, Tag};
use saphyr_parser::{Event, Marker, Parser};

/// Levels of maps and lists in each other. The Compose specification needs eight.
pub(super) const DEPTH_MAX: usize = 32;
/// Maps, lists and values, aliases and merged maps expanded: some hundred services' worth.
pub(super) const NODES_MAX: usize = 20_000;
/// Bytes of all keys and values, aliases and merged maps expanded.
pub(super) const TEXT_MAX: usize = 1024 * 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) line: u32,
    pub(super) column: u32,
}

#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) mark: Mark,
    pub(super) value: Value,
}

#[derive(Clone, Debug)]
pub(super) enum Value {
    Scalar(Scalar),
    List(Vec<Node>),
    Map(Vec<(Key, Node)>),
}

#[derive(Clone, Debug)]
pub(super) struct Key {
    pub(super) text: String,
    pub(super) mark: Mark,
}

/// A value as it was written. What type it is, is decided when it is read: a variable may have been put in until then.
#[derive(Clone, Debug)]
pub(super) struct Scalar {
    pub(super) text: String,
    /// Without quotes, so that it may be a number, a truth value or null (YAML 1.2, 10.3.2).
    pub(super) plain: bool,
}

impl Mark {
    fn of(marker: Marker) -> Self {
        let number = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
        Self { line: number(marker.line()), column: number(marker.col()).saturating_add(1) }
    }

    pub(super) fn error(self, code: ErrorCode, message: impl Into<String>) -> ApiError {
        ApiError::new(code, message).at(self.line, self.column)
    }

    pub(super) fn invalid(self, message: impl Into<String>) -> ApiError {
        self.error(ErrorCode::ComposeInvalid, message)
    }
}

impl Scalar {
    pub(super) fn is_null(&self) -> bool {
        self.plain && (self.text.is_empty() || matches!(Core::parse_from_cow(Cow::Borrowed(&self.text)), Core::Null))
    }

    pub(super) fn flag(&self) -> Option<bool> {
        match Core::parse_from_cow(Cow::Borrowed(&self.text)) {
            Core::Boolean(flag) => Some(flag),
            _ => None,
        }
    }

    pub(super) fn integer(&self) -> Option<i64> {
        match Core::parse_from_cow(Cow::Borrowed(&self.text)) {
            Core::Integer(number) => Some(number),
            _ => None,
        }
    }
}

impl Node {
    pub(super) fn is_null(&self) -> bool {
        matches!(&self.value, Value::Scalar(scalar) if scalar.is_null())
    }

    pub(super) fn kind(&self) -> &'static str {
        match &self.value {
            Value::Scalar(_) if self.is_null() => "nothing",
            Value::Scalar(_) => "a single value",
            Value::List(_) => "a list",
            Value::Map(_) => "a map",
        }
    }

    /// Nodes and bytes of text, itself included.
    fn weight(&self) -> (usize, usize) {
        let sum = |weights: &mut dyn Iterator<Item = (usize, usize)>| {
            weights.fold((1, 0), |(nodes, text), (more_nodes, more_text)| (nodes + more_nodes, text + more_text))
        };
        match &self.value {
            Value::Scalar(scalar) => (1, scalar.text.len()),
            Value::List(items) => sum(&mut items.iter().map(Self::weight)),
            Value::Map(entries) => sum(&mut entries.iter().map(|(key, node)| {
                let (nodes, text) = node.weight();
                (nodes, text + key.text.len())
            })),
        }
    }
}

/// What a person wrote, for a sentence: not too long, and without what can't be seen.
pub(super) fn shown(text: &str) -> String {
    const SHOWN_MAX: usize = 120;
    let mut shown: String = text.chars().take(SHOWN_MAX).collect::<String>().escape_debug().to_string();
    if text.chars().nth(SHOWN_MAX).is_some() {
        shown.push('…');
    }
    shown
}

/// # Errors
/// The text is no YAML, not one document, or beyond a limit.
pub(super) fn parse(text: &str) -> Result<Node, ApiError> {
    let mut parser = Parser::new_from_str(text);
    let mut builder = Builder::default();
    loop {
        match parser.next_event() {
            None | Some(Ok((Event::StreamEnd, _))) => break,
            Some(Ok((event, span))) => builder.event(event, Mark::of(span.start))?,
            Some(Err(error)) => {
                let message = format!("this is no valid YAML: {}", error.info());
                return Err(Mark::of(*error.marker()).invalid(message));
            }
        }
    }
    builder.root.ok_or_else(|| {
        Mark { line: 1, column: 1 }.invalid("the file is empty; it needs at least one service under `services`")
    })
}

#[derive(Default)]
struct Builder {
    root: Option<Node>,
    open: Vec<Open>,
    anchors: BTreeMap<usize, Node>,
    nodes: usize,
    text: usize,
}

/// A map or list whose end has not come yet.
struct Open {
    mark: Mark,
    anchor: usize,
    content: Content,
}

enum Content {
    List(Vec<Node>),
    Map { entries: Vec<(Key, Node)>, seen: BTreeSet<String>, merged: Vec<(Key, Node)>, key: Option<Key> },
}

impl Builder {
    fn event(&mut self, event: Event<'_>, mark: Mark) -> Result<(), ApiError> {
        match event {
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => Ok(()),
            Event::DocumentStart(_) if self.root.is_some() => {
                Err(mark.invalid("the file holds more than one YAML document; keep one, without a second `---`"))
            }
            Event::DocumentStart(_) => Ok(()),
            Event::Scalar(text, style, anchor, tag) => {
                let scalar = scalar(text, style, tag.as_deref(), mark)?;
                self.spend(1, scalar.text.len(), mark)?;
                self.place(Node { mark, value: Value::Scalar(scalar) }, anchor)
            }
            Event::SequenceStart(anchor, tag) => {
                check_tag(tag.as_deref(), "seq", mark)?;
                self.open(mark, anchor, Content::List(Vec::new()))
            }
            Event::MappingStart(anchor, tag) => {
                check_tag(tag.as_deref(), "map", mark)?;
                self.open(
                    mark,
                    anchor,
                    Content::Map { entries: Vec::new(), seen: BTreeSet::new(), merged: Vec::new(), key: None },
                )
            }
            Event::SequenceEnd | Event::MappingEnd => self.close(mark),
            Event::Alias(anchor) => {
                let Some(node) = self.anchors.get(&anchor) else {
                    return Err(mark.invalid("an alias stands inside of what it names; that would never end"));
                };
                let (nodes, text) = node.weight();
                let mut node = node.clone();
                node.mark = mark;
                self.spend(nodes, text, mark)?;
                self.place(node, 0)
            }
        }
    }

    fn open(&mut self, mark: Mark, anchor: usize, content: Content) -> Result<(), ApiError> {
        self.spend(1, 0, mark)?;
        if self.open.len() >= DEPTH_MAX {
            return Err(mark
                .invalid(format!("maps and lists stand more than {DEPTH_MAX} deep in each other; flatten the file")));
        }
        self.open.push(Open { mark, anchor, content });
        Ok(())
    }

    fn close(&mut self, mark: Mark) -> Result<(), ApiError> {
        let Some(Open { mark, anchor, content }) = self.open.pop() else {
            return Err(mark.invalid("this is no valid YAML: something ends that never began"));
        };
        let value = match content {
            Content::List(items) => Value::List(items),
            Content::Map { mut entries, mut seen, merged, .. } => {
                for (key, node) in merged {
                    // What the map says itself comes before what it merges, and the first merged before the next.
                    if seen.insert(key.text.clone()) {
                        entries.push((key, node));
                    }
                }
                Value::Map(entries)
            }
        };
        self.place(Node { mark, value }, anchor)
    }

    /// Puts a finished node where it belongs.
    fn place(&mut self, node: Node, anchor: usize) -> Result<(), ApiError> {
        if anchor > 0 {
            let (nodes, text) = node.weight();
            self.spend(nodes, text, node.mark)?;
            self.anchors.insert(anchor, node.clone());
        }
        let Some(Open { content, .. }) = self.open.last_mut() else {
            // The parser gives one node per document, and `event` refuses the second document.
            self.root = Some(node);
            return Ok(());
        };
        match content {
            Content::List(items) => items.push(node),
            Content::Map { entries, seen, merged, key } => match key.take() {
                None => *key = Some(as_key(node, seen)?),
                Some(key) if key.text == "<<" => merge(node, merged)?,
                Some(key) => entries.push((key, node)),
            },
        }
        Ok(())
    }

    fn spend(&mut self, nodes: usize, text: usize, mark: Mark) -> Result<(), ApiError> {
        self.nodes = self.nodes.saturating_add(nodes);
        self.text = self.text.saturating_add(text);
        if self.nodes > NODES_MAX || self.text > TEXT_MAX {
            return Err(mark.error(
                ErrorCode::ComposeTooLarge,
                format!(
                    "with its anchors expanded the file has more than {NODES_MAX} values or {} KiB of text; make it smaller",
                    TEXT_MAX / 1024
                ),
            ));
        }
        Ok(())
    }
}

fn scalar(text: Cow<'_, str>, style: ScalarStyle, tag: Option<&Tag>, mark: Mark) -> Result<Scalar, ApiError> {
    if text.contains('\0') {
        return Err(mark.invalid("a value holds a NUL character, which nothing in a container can take; remove it"));
    }
    let plain = match tag.map(|tag| (tag.is_yaml_core_schema(), tag.suffix.as_str())) {
        None => style == ScalarStyle::Plain,
        Some((true, "str")) => false,
        Some((true, "int" | "float" | "bool" | "null")) => true,
        // `!` alone: whatever it looks like, it is text (YAML 1.2, 6.9.1).
        Some((false, "")) => false,
        Some(_) => return Err(bad_tag(tag, mark)),
    };
    Ok(Scalar { text: text.into_owned(), plain })
}

fn check_tag(tag: Option<&Tag>, expected: &str, mark: Mark) -> Result<(), ApiError> {
    match tag {
        Some(tag) if !(tag.is_yaml_core_schema() && tag.suffix == expected) => Err(bad_tag(Some(tag), mark)),
        _ => Ok(()),
    }
}

fn bad_tag(tag: Option<&Tag>, mark: Mark) -> ApiError {
    let tag = tag.map_or_else(String::new, ToString::to_string);
    mark.error(
        ErrorCode::ComposeUnsupported,
        format!("the YAML tag `{}` is not supported; write the value without it", shown(&tag)),
    )
}

fn as_key(node: Node, seen: &mut BTreeSet<String>) -> Result<Key, ApiError> {
    let Value::Scalar(scalar) = node.value else {
        return Err(node.mark.invalid("a key must be a single value, not a list or a map"));
    };
    if !seen.insert(scalar.text.clone()) {
        return Err(node.mark.invalid(format!("the key `{}` stands here twice; keep one", shown(&scalar.text))));
    }
    Ok(Key { text: scalar.text, mark: node.mark })
}

/// `<<: *map` or `<<: [*first, *second]` (the merge key of YAML 1.1, which the Compose specification keeps).
fn merge(node: Node, merged: &mut Vec<(Key, Node)>) -> Result<(), ApiError> {
    let maps = match node.value {
        Value::List(items) => items,
        value => vec![Node { mark: node.mark, value }],
    };
    for map in maps {
        let Value::Map(entries) = map.value else {
            return Err(map.mark.invalid("`<<` merges maps; give it an alias of a map, or a list of them"));
        };
        merged.extend(entries);
    }
    Ok(())
}
