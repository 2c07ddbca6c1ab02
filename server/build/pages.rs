//! The few files of a service's origin, composed from `web/static/service`. Each is whole in itself: the bootstrap page costs
//! one request and the service worker one more, and no two of them can be of different versions.
//!
//! - A line `@include NAME` in a comment is replaced by that file, which is composed likewise.
//! - `INCLUDE_TEXT("NAME")` becomes a JavaScript string with that file's composed text.
//! - A line `@constants` in a comment becomes the frame protocol's numbers, from `flotilla-api`.
//! - `@script-hash` and `@style-hash` become what a content security policy names the page's inline script and style by.

use std::{collections::BTreeMap, fs, path::Path};

use base64::{Engine, engine::general_purpose::STANDARD};
use flotilla_api::{
    ErrorCode,
    frame::{self, Kind},
};
use sha2::{Digest, Sha256};

use crate::{Result, cannot, inputs};

/// What is served, and what it is composed from.
const SERVED: &[&str] = &["wrapper.html", "sw.js", "shim.js"];

/// Files include files; more than this is a circle.
const DEPTH_MAX: usize = 8;

pub(crate) struct Pages {
    sources: BTreeMap<String, String>,
}

impl Pages {
    pub(crate) fn read(dir: &Path) -> Result<Self> {
        let dir = dir.join("service");
        let mut files = Vec::new();
        inputs::collect(&dir, &mut files)?;
        let mut sources = BTreeMap::new();
        for file in files {
            let text = fs::read_to_string(&file).map_err(|error| cannot("read", &file, &error))?;
            let name = file.strip_prefix(&dir).unwrap_or(&file).to_string_lossy().into_owned();
            sources.insert(name, text);
        }
        Ok(Self { sources })
    }

    /// Name in the finished directory, and text.
    pub(crate) fn composed(&self) -> Result<Vec<(String, String)>> {
        SERVED.iter().map(|name| Ok((format!("service/{name}"), self.compose(name, 0)?))).collect()
    }

    fn compose(&self, name: &str, depth: usize) -> Result<String> {
        if depth > DEPTH_MAX {
            return Err(format!("web/static/service/{name} includes itself"));
        }
        let source = self.sources.get(name).ok_or(format!("web/static/service/{name} is included but missing"))?;
        let mut text = String::with_capacity(source.len());
        for line in source.lines() {
            match directive(line) {
                Some(Directive::Include(name)) => text.push_str(&self.compose(name, depth + 1)?),
                Some(Directive::Constants) => text.push_str(&constants()),
                // Comments are for those who read the source; each service's cold start need not carry them.
                None if line.trim_start().starts_with("//") => {}
                None => {
                    text.push_str(&self.with_texts(line.trim_start(), depth)?);
                    text.push('\n');
                }
            }
        }
        if text.contains("@script-hash") {
            text = text.replace("@script-hash", &inline_hash(&text, "script")?);
            text = text.replace("@style-hash", &inline_hash(&text, "style")?);
        }
        Ok(text)
    }

    fn with_texts(&self, line: &str, depth: usize) -> Result<String> {
        const MARK: &str = "INCLUDE_TEXT(\"";
        let Some((before, rest)) = line.split_once(MARK) else { return Ok(line.to_owned()) };
        let (name, after) = rest.split_once("\")").ok_or(format!("`{line}` does not end its INCLUDE_TEXT"))?;
        let text = javascript_string(&self.compose(name, depth + 1)?);
        Ok([before, &text, after].concat())
    }
}

enum Directive<'a> {
    Include(&'a str),
    Constants,
}

fn directive(line: &str) -> Option<Directive<'_>> {
    let comment = line.trim();
    let body = comment
        .strip_prefix("//")
        .or_else(|| comment.strip_prefix("/*")?.strip_suffix("*/"))
        .or_else(|| comment.strip_prefix("<!--")?.strip_suffix("-->"))?
        .trim();
    match body.split_once(' ') {
        Some(("@include", name)) => Some(Directive::Include(name.trim())),
        None if body == "@constants" => Some(Directive::Constants),
        _ => None,
    }
}

/// The numbers that the page side must share with `flotilla_api::frame`.
fn constants() -> String {
    let kinds = [
        ("HELLO", Kind::Hello),
        ("OPEN", Kind::Open),
        ("HEAD", Kind::Head),
        ("DATA", Kind::Data),
        ("END", Kind::End),
        ("RESET", Kind::Reset),
        ("CREDIT", Kind::Credit),
        ("COOKIE", Kind::Cookie),
        ("PING", Kind::Ping),
        ("GOAWAY", Kind::GoAway),
    ];
    let flags = [
        ("TEXT", frame::flags::TEXT),
        ("MORE", frame::flags::MORE),
        ("REPLY", frame::flags::REPLY),
        ("BODY", frame::flags::BODY),
        ("LARGE", frame::flags::LARGE),
        ("TAKES_WHOLE", frame::flags::TAKES_WHOLE),
        ("WHOLE", frame::flags::WHOLE),
    ];
    let object = |entries: Vec<String>| format!("Object.freeze({{{}}})", entries.join(","));
    let kinds = object(kinds.iter().map(|(name, kind)| format!("{name}:{}", *kind as u8)).collect());
    let statuses = ErrorCode::ALL.iter().map(|code| format!("\"{}\":{}", code.as_str(), code.status())).collect();
    let statuses = object(statuses);
    let flags = object(flags.iter().map(|(name, flag)| format!("{name}:{flag}")).collect());
    format!(
        "const KIND={kinds};\nconst FLAG={flags};\nconst STATUS={statuses};\nconst FRAME_VERSION={};\nconst HEADER_LEN={};\nconst DATA_MAX={};\n\
         const INITIAL_CREDIT={};\nconst CREDIT_STEP={};\nconst STREAMS_MAX={};\n",
        frame::FRAME_VERSION,
        frame::HEADER_LEN,
        frame::DATA_MAX,
        frame::INITIAL_CREDIT,
        frame::CREDIT_STEP,
        frame::STREAMS_MAX,
    )
}

/// CSP Level 3, 2.3.1: a hash of what stands between the tags.
fn inline_hash(page: &str, tag: &str) -> Result<String> {
    let open = format!("<{tag}>");
    let inner = page.split_once(&open).and_then(|(_, rest)| rest.split_once(&format!("</{tag}>")));
    let (inner, _) = inner.ok_or(format!("the page has no inline <{tag}>"))?;
    Ok(format!("'sha256-{}'", STANDARD.encode(Sha256::digest(inner.as_bytes()))))
}

fn javascript_string(text: &str) -> String {
    let mut literal = String::with_capacity(text.len() + text.len() / 8);
    literal.push('"');
    for character in text.chars() {
        match character {
            '"' => literal.push_str("\\\""),
            '\\' => literal.push_str("\\\\"),
            '\n' => literal.push_str("\\n"),
            '\r' => literal.push_str("\\r"),
            // A script that holds a page must not end in the middle of it.
            '<' => literal.push_str("\\x3c"),
            '\u{2028}' => literal.push_str("\\u2028"),
            '\u{2029}' => literal.push_str("\\u2029"),
            other => literal.push(other),
        }
    }
    literal.push('"');
    literal
}
