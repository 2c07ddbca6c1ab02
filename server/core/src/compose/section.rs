//! A part of a compose file with its place in it, and the way from there into the types of the Compose library.

use flotilla_api::{ApiError, ErrorCode};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value as Json};

use super::{
    support::{self, Kind, join},
    tree::{Key, Mark, Node, Value, shown},
};

#[derive(Clone)]
pub(super) struct Section<'a> {
    pub(super) node: &'a Node,
    /// As people know it: `services.web.ports[1]`.
    pub(super) path: String,
    /// As the table of supported keys has it: `services.*.ports[]`.
    pattern: String,
}

impl<'a> Section<'a> {
    pub(super) fn root(node: &'a Node) -> Self {
        Self { node, path: String::new(), pattern: String::new() }
    }

    pub(super) fn mark(&self) -> Mark {
        self.node.mark
    }

    /// What stands at `key`; an empty value is as good as none.
    pub(super) fn get(&self, key: &str) -> Option<Self> {
        let Value::Map(entries) = &self.node.value else { return None };
        let (_, node) = entries.iter().find(|(present, node)| present.text == key && !node.is_null())?;
        Some(Self { node, path: join(&self.path, key), pattern: join(&self.pattern, key) })
    }

    /// The entries of a map whose keys are names of the user's.
    pub(super) fn named(&self, what: &str) -> Result<Vec<(&'a Key, Self)>, ApiError> {
        match &self.node.value {
            Value::Map(entries) => Ok(entries
                .iter()
                .map(|(key, node)| {
                    (key, Self { node, path: join(&self.path, &key.text), pattern: join(&self.pattern, "*") })
                })
                .collect()),
            _ => Err(self.wrong(what)),
        }
    }

    pub(super) fn items(&self, what: &str) -> Result<Vec<Self>, ApiError> {
        match &self.node.value {
            Value::List(items) => Ok(items
                .iter()
                .enumerate()
                .map(|(index, node)| Self {
                    node,
                    path: format!("{}[{index}]", self.path),
                    pattern: format!("{}[]", self.pattern),
                })
                .collect()),
            _ => Err(self.wrong(what)),
        }
    }

    /// A single value as text.
    pub(super) fn text(&self) -> Result<&'a str, ApiError> {
        match &self.node.value {
            Value::Scalar(scalar) if !scalar.is_null() => Ok(&scalar.text),
            _ => Err(self.wrong("a single value")),
        }
    }

    /// Reads it as the Compose library's type for this key.
    pub(super) fn parse<T: DeserializeOwned>(&self, what: &str) -> Result<T, ApiError> {
        let json = json(self.node, &self.pattern, &self.path)?;
        serde_json::from_value(json).map_err(|_| self.wrong(what))
    }

    pub(super) fn wrong(&self, what: &str) -> ApiError {
        self.invalid(&format!("must be {what}, but is {}", self.node.kind()))
    }

    /// `reason` goes on from the path: "must be …".
    pub(super) fn invalid(&self, reason: &str) -> ApiError {
        self.error(ErrorCode::ComposeInvalid, reason)
    }

    pub(super) fn unsupported(&self, reason: &str) -> ApiError {
        self.error(ErrorCode::ComposeUnsupported, reason)
    }

    pub(super) fn error(&self, code: ErrorCode, reason: &str) -> ApiError {
        self.mark().error(code, format!("`{}` {reason}", shown(&self.path)))
    }
}

/// The tree as JSON, with single values typed by the table rather than by how they look.
fn json(node: &Node, pattern: &str, path: &str) -> Result<Json, ApiError> {
    let wrong = |what: &str| node.mark.invalid(format!("`{}` must be {what}", shown(path)));
    Ok(match &node.value {
        Value::Scalar(scalar) if scalar.is_null() => Json::Null,
        Value::Scalar(scalar) => match support::kind(pattern) {
            Kind::Text => Json::String(scalar.text.clone()),
            Kind::Flag => Json::Bool(scalar.flag().ok_or_else(|| wrong("`true` or `false`"))?),
            Kind::Integer => Json::Number(scalar.integer().ok_or_else(|| wrong("a whole number"))?.into()),
        },
        Value::List(items) => Json::Array(
            items
                .iter()
                .enumerate()
                .map(|(index, item)| json(item, &format!("{pattern}[]"), &format!("{path}[{index}]")))
                .collect::<Result<_, _>>()?,
        ),
        Value::Map(entries) => {
            let mut map = Map::new();
            for (key, value) in entries {
                let value = json(value, &join(pattern, &key.text), &join(path, &key.text))?;
                // An empty value is as good as none, except in maps of the user's own, where it has a meaning.
                if !(value.is_null() && support::is_known(&join(pattern, &key.text))) {
                    map.insert(key.text.clone(), value);
                }
            }
            Json::Object(map)
        }
    })
}
