//! Cuts a program into what is loaded at once and what comes when it is called: `wasm_split` in `web/` says where.

use std::{fs, path::Path};

use wasm_split_cli_support::{Options, transform};

use crate::{Result, cannot, compile::Module, inputs, remove};

/// A program in parts. Their names hold a hash of the whole, as the scripts name each other.
pub(crate) struct Parts {
    /// Of the scripts and files: `dashboard-0123456789abcdef`.
    pub(crate) stem: String,
    /// To be bound; it asks the other script for what comes later.
    pub(crate) main: Vec<u8>,
    /// Name and content: the script that loads what comes later, and that.
    pub(crate) later: Vec<(String, Vec<u8>)>,
}

/// `hash` is of all that the web app is made of, what it is cut and bound by among it. `work` is a directory of its own, which is gone afterwards.
pub(crate) fn split(module: &Module, hash: &str, work: &Path) -> Result<Parts> {
    let stem = format!("{}-{}", module.name, inputs::content_hash(&[&module.wasm, hash.as_bytes()].concat()));
    let (script, main_script) = (format!("./{stem}-later.js"), format!("./{stem}.js"));
    let main = work.join("main.wasm");
    remove(work)?;
    let mut options = Options::new(&module.wasm);
    options.output_dir = work;
    options.main_out_path = &main;
    options.link_name = &script;
    options.main_module = &main_script;
    let split =
        transform(options).map_err(|error| format!("`{}` could not be cut into parts: {error:#}", module.name))?;

    let read = |path: &Path| fs::read(path).map_err(|error| cannot("read", path, &error));
    let mut text = String::from_utf8_lossy(&read(&work.join(&script))?).into_owned();
    let mut later = Vec::new();
    for part in &split.split_modules {
        let name = part.file_name().unwrap_or_default().to_string_lossy();
        let named = format!("{stem}-{name}");
        text = text.replace(&format!("\"./{name}\""), &format!("\"./{named}\""));
        later.push((named, without_names(&read(part)?)?));
    }
    later.push((format!("{stem}-later.js"), text.into_bytes()));
    let main = read(&main)?;
    remove(work)?;
    Ok(Parts { stem, main, later })
}

/// A module without its custom sections, which hold names for people. Of the main part the bindings' tool takes them off.
fn without_names(module: &[u8]) -> Result<Vec<u8>> {
    /// `\0asm` and the version, before the first section.
    const HEADER_LEN: usize = 8;
    const CUSTOM: u8 = 0;
    let broken = || "a part of the dashboard is no WASM module".to_owned();
    let (header, mut rest) = module.split_at_checked(HEADER_LEN).ok_or_else(broken)?;
    let mut kept = header.to_vec();
    while let Some((id, after)) = rest.split_first() {
        let (len, len_bytes) = leb128(after).ok_or_else(broken)?;
        let (section, next) = rest.split_at_checked(1 + len_bytes + len).ok_or_else(broken)?;
        if *id != CUSTOM {
            kept.extend_from_slice(section);
        }
        rest = next;
    }
    Ok(kept)
}

/// A number of at most 32 bits (WebAssembly 5.2.2), and the bytes that it takes.
fn leb128(bytes: &[u8]) -> Option<(usize, usize)> {
    let mut number = 0;
    for (index, byte) in bytes.iter().take(5).enumerate() {
        number |= usize::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            return Some((number, index + 1));
        }
    }
    None
}
