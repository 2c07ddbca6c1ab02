//! The page, as text.

use std::fmt::Write as _;

use flotilla_api::UnixMillis;

use super::{
    board::{NAME_MAX, NOTE_MAX, Note, Upload},
    files::percent,
    routes::{App, Visitor},
};

/// Tints that a note may have; its author decides which.
const TINTS: u32 = 6;

pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

pub(super) fn frame(title: &str, body: &str) -> String {
    format!(
        r##"<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="theme-color" content="#f6f3ec" media="(prefers-color-scheme: light)">
<meta name="theme-color" content="#15171c" media="(prefers-color-scheme: dark)">
<title>{title}</title>
<link rel="icon" href="/assets/icon.svg" type="image/svg+xml">
<link rel="stylesheet" href="/assets/style.css">
</head>
{body}
</html>
"##
    )
}

/// A page that says one thing.
pub(super) fn message(title: &str, sentence: &str) -> String {
    let (title, sentence) = (escape(title), escape(sentence));
    frame(
        &title,
        &format!(
            r#"<body><main class="alone"><h1>{title}</h1><p>{sentence}</p><p><a href="/">To the beginning</a></p></main></body>"#
        ),
    )
}

/// The whole page; `said` is why the last form was not taken, `text` what stood in it.
pub(super) fn board(app: &App, visitor: &Visitor, said: Option<&str>, text: &str) -> String {
    let alert = said.map(|said| format!(r#"<p class="alert" role="alert">{}</p>"#, escape(said))).unwrap_or_default();
    // Read before the contents: what changes in between is only fetched once more.
    let version = *app.board.version().borrow();
    let (chosen, text, contents, here) = (escape(visitor.chosen()), escape(text), contents(app), app.presence.here());
    frame(
        "Notes",
        &format!(
            r##"<body>
<a class="skip" href="#contents">To the notes</a>
<header class="top">
  <h1><img src="/assets/icon.svg" alt="" width="32" height="32"> Notes</h1>
  <p class="presence"><span class="dot" id="link" data-state="off"></span>
    <span id="here" aria-live="polite" data-count="{here}">Not connected</span></p>
</header>
<main>
  {alert}
  <section class="compose" aria-labelledby="compose-title">
    <h2 id="compose-title" class="hidden">Write a note</h2>
    <form method="post" action="/notes" id="note-form">
      <label class="hidden" for="text">Note</label>
      <textarea id="text" name="text" rows="3" maxlength="{NOTE_MAX}" required placeholder="Write something for everybody here&hellip;">{text}</textarea>
      <div class="row">
        <span class="hint">Ctrl + Enter pins it</span>
        <button type="submit" class="primary">Pin it</button>
      </div>
    </form>
    <div class="side">
      <form method="post" action="/name" class="inline">
        <label for="name">Your name</label>
        <div class="field">
          <input id="name" name="name" value="{chosen}" maxlength="{NAME_MAX}" autocomplete="nickname" placeholder="Somebody">
          <button type="submit">Save</button>
        </div>
      </form>
      <form method="post" action="/files" enctype="multipart/form-data" class="inline">
        <label for="file">A file for everybody</label>
        <div class="field">
          <input id="file" type="file" name="file" required>
          <button type="submit">Upload</button>
        </div>
      </form>
    </div>
  </section>
  <div id="contents" tabindex="-1" data-version="{version}">{contents}</div>
</main>
<footer><p>Runs in a container on one of your machines; this page reached you over a WebRTC data channel.</p></footer>
<script src="/assets/board.js" defer></script>
</body>"##
        ),
    )
}

/// What changes: notes and files.
pub(super) fn contents(app: &App) -> String {
    let (notes, files) = (app.board.notes(), app.board.files());
    let mut out = String::from(r#"<section aria-labelledby="notes-title"><h2 id="notes-title">"#);
    let _ = match notes.len() {
        0 => write!(out, "No notes yet</h2><p class=\"empty\">The board is empty. Write the first note above.</p>"),
        1 => write!(out, "1 note</h2>"),
        len => write!(out, "{len} notes</h2>"),
    };
    if !notes.is_empty() {
        out.push_str(r#"<ul class="notes">"#);
        notes.iter().for_each(|note| write_note(&mut out, note));
        out.push_str("</ul>");
    }
    out.push_str("</section>");
    if !files.is_empty() {
        out.push_str(r#"<section aria-labelledby="files"><h2 id="files">Files</h2><ul class="files">"#);
        files.iter().for_each(|file| write_file(&mut out, file));
        out.push_str("</ul></section>");
    }
    out
}

fn write_note(out: &mut String, note: &Note) {
    let (id, tint) = (note.id, tint(&note.author));
    let (author, text, time) = (escape(&note.author), escape(&note.text), time(note.at));
    let _ = write!(
        out,
        r#"<li class="note tint{tint}"><p class="text">{text}</p><div class="meta"><span class="by">{author}</span>{time}
<form method="post" action="/notes/{id}/delete"><button type="submit" class="quiet" aria-label="Take down the note of {author}">Take down</button></form></div></li>"#
    );
}

fn write_file(out: &mut String, file: &Upload) {
    let (id, href, name) = (file.id, percent(&file.name), escape(&file.name));
    let (author, size, time) = (escape(&file.author), size(file.size), time(file.at));
    let _ = write!(
        out,
        r#"<li class="file"><a href="/files/{id}/{href}" download="{name}">{name}</a><div class="meta"><span>{size}</span><span class="by">{author}</span>{time}
<form method="post" action="/files/{id}/delete"><button type="submit" class="quiet" aria-label="Delete {name}">Delete</button></form></div></li>"#
    );
}

/// Read as it stands where there is no script; the script says how long ago that is.
fn time(at: UnixMillis) -> String {
    let at = std::time::UNIX_EPOCH + std::time::Duration::from_millis(at.0);
    let stamp = humantime::format_rfc3339_seconds(at).to_string();
    let shown = stamp.replace('T', " ").replace('Z', " UTC");
    format!(r#"<time datetime="{stamp}">{shown}</time>"#)
}

fn size(bytes: u64) -> String {
    match bytes {
        0..1000 => format!("{bytes} B"),
        1000..1_000_000 => format!("{} kB", bytes / 1000),
        _ => format!("{}.{} MB", bytes / 1_000_000, bytes / 100_000 % 10),
    }
}

fn tint(author: &str) -> u32 {
    author.bytes().fold(0_u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(u32::from(byte))) % TINTS
}
