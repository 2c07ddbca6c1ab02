//! The finished web app as a Rust table of `&'static` bytes, which `assets` includes.

use std::{
    fmt::Write,
    fs,
    path::{Path, PathBuf},
};

use crate::{Result, cannot, inputs};

const SITES: &[&str] = &["app", "service"];

/// Writes `<out>/assets.rs` and copies what it includes beside it, so that it stands though `dist` is tidied away.
pub(crate) fn write(dist: &Path, out: &Path) -> Result<()> {
    let copy = out.join("web");
    crate::remove(&copy)?;
    let mut table = String::new();
    for site in SITES {
        let root = dist.join(site);
        if !root.is_dir() {
            return Err(format!("{} holds no finished web app: it has no `{site}` directory", dist.display()));
        }
        let mut files = Vec::new();
        inputs::collect(&root, &mut files)?;
        files.sort();
        let _ = writeln!(table, "pub(super) static {}: &[Asset] = &[", site.to_uppercase());
        for file in files.iter().filter(|file| !is_encoding_of_another(file)) {
            entry(&mut table, &root, file, &copy.join(site))?;
        }
        table.push_str("];\n");
    }
    let path = out.join("assets.rs");
    fs::write(&path, table).map_err(|error| cannot("write", &path, &error))
}

fn entry(table: &mut String, root: &Path, file: &Path, copies: &Path) -> Result<()> {
    let name = file.strip_prefix(root).unwrap_or(file);
    let copy = |file: &Path| -> Result<PathBuf> {
        let to = copies.join(file.strip_prefix(root).unwrap_or(file));
        let parent = to.parent().unwrap_or(copies);
        fs::create_dir_all(parent).map_err(|error| cannot("create", parent, &error))?;
        fs::copy(file, &to).map_err(|error| cannot("copy", file, &error))?;
        Ok(to)
    };
    let encoded = |suffix: &str| -> Result<String> {
        let file = file.with_added_extension(suffix);
        if !file.is_file() {
            return Ok("None".to_owned());
        }
        Ok(format!("Some(include_bytes!({:?}))", copy(&file)?))
    };
    let bytes = fs::read(file).map_err(|error| cannot("read", file, &error))?;
    let caching = if name.starts_with("assets") { "Immutable" } else { "Revalidate" };
    let _ = writeln!(
        table,
        "    Asset {{ path: \"/{}\", content_type: {:?}, hash: {:?}, caching: Caching::{caching}, identity: include_bytes!({:?}), \
         brotli: {}, gzip: {} }},",
        name.display(),
        content_type(file)?,
        inputs::content_hash(&bytes),
        copy(file)?,
        encoded("br")?,
        encoded("gz")?,
    );
    Ok(())
}

fn is_encoding_of_another(file: &Path) -> bool {
    file.extension().is_some_and(|extension| extension == "br" || extension == "gz")
}

fn content_type(file: &Path) -> Result<&'static str> {
    Ok(match file.extension().and_then(|extension| extension.to_str()) {
        Some("css") => "text/css; charset=utf-8",
        Some("html") => "text/html; charset=utf-8",
        Some("ico") => "image/x-icon",
        Some("js") => "text/javascript; charset=utf-8",
        Some("json") => "application/json",
        Some("png") => "image/png",
        Some("svg") => "image/svg+xml",
        Some("txt") => "text/plain; charset=utf-8",
        Some("wasm") => "application/wasm",
        Some("webmanifest") => "application/manifest+json",
        Some("webp") => "image/webp",
        Some("woff2") => "font/woff2",
        _ => return Err(format!("{} has an extension that the node knows no content type for", file.display())),
    })
}
