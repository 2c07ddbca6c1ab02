//! From WASM modules and static files to what is served: bindings, names with content hashes, compressed copies.
//!
//! The finished directory has two sites. `app/` is the dashboard's and connector's origin: its pages at the top, everything
//! else in `assets/` under a name that holds its hash. `service/` is every service's origin: the bootstrap page and what it
//! loads. Beside a file lie `<file>.br` and `<file>.gz`, where they are smaller.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
};

use wasm_bindgen_cli_support::{Bindgen, Output};

use crate::{
    Outer, Profile, Result, cannot,
    compile::Module,
    inputs,
    pages::Pages,
    split::{Parts, split},
};

/// Of what the dashboard's page loads before it shows anything, compressed. Bytes.
const FIRST_DOWNLOAD_MAX: u64 = 400_000;

/// `hash`: of all that the web app is made of.
pub(crate) fn write(outer: &Outer, modules: &[Module], hash: &str, dist: &Path) -> Result<()> {
    let sources = outer.workspace.join("web/static");
    let mut site = Site { dist, profile: outer.profile, renamed: Vec::new() };

    let (pages, assets) = app_files(&sources.join("app"))?;
    let (stylesheets, leaves): (Vec<_>, Vec<_>) = assets.into_iter().partition(|asset| has_extension(asset, "css"));
    // What is referred to comes before what refers to it.
    for file in leaves.iter().chain(&stylesheets) {
        site.add_asset(&name_of(file), &read(file)?)?;
    }
    for module in modules {
        if module.in_parts {
            bind_parts(module.name, &split(module, hash, &dist.join("parts"))?, &mut site)?;
        } else {
            bind(module, &mut site)?;
        }
    }
    for file in &pages {
        let bytes = site.with_hashed_names(&read(file)?);
        site.add(&format!("app/{}", name_of(file)), &bytes)?;
    }

    let pages = Pages::read(&sources)?;
    for (name, text) in pages.composed()? {
        let bytes = site.with_hashed_names(text.as_bytes());
        site.add(&name, &bytes)?;
    }
    if outer.profile == Profile::Release { small_enough(dist) } else { Ok(()) }
}

/// What `index.html` names, and the script that loads what comes later.
fn small_enough(dist: &Path) -> Result<()> {
    let app = dist.join("app");
    let index = app.join("index.html");
    let text = String::from_utf8_lossy(&read(&index)?).into_owned();
    let mut files = Vec::new();
    inputs::collect(&app.join("assets"), &mut files)?;
    let loaded = files.into_iter().filter(|file| {
        let name = name_of(file);
        text.contains(&name) || (name.starts_with("dashboard-") && name.ends_with("-later.js"))
    });
    let mut sum = 0;
    for file in loaded.chain([index.clone()]) {
        let compressed = file.with_added_extension("br");
        let sent = if compressed.is_file() { compressed } else { file };
        sum += fs::metadata(&sent).map_err(|error| cannot("read", &sent, &error))?.len();
    }
    if sum > FIRST_DOWNLOAD_MAX {
        return Err(format!(
            "the dashboard loads {sum} bytes before it shows anything, and may load {FIRST_DOWNLOAD_MAX}; let a page's code come later (web/src/dashboard/later.rs)"
        ));
    }
    Ok(())
}

/// The JavaScript that loads one module, and the module. The script starts the program by itself, so that a page needs
/// one `<script type="module">` and its content security policy no exception.
fn bind(module: &Module, site: &mut Site<'_>) -> Result<()> {
    let (script, wasm) = bound(module.name, &module.wasm, false, site)?;
    let wasm = site.add_asset(&format!("{}.wasm", module.name), &wasm)?;
    site.add_asset(&format!("{}.js", module.name), (script + &start(&wasm)).as_bytes())?;
    Ok(())
}

/// The same of a program in parts.
fn bind_parts(name: &str, parts: &Parts, site: &mut Site<'_>) -> Result<()> {
    let (script, wasm) = bound(name, &parts.main, true, site)?;
    let hashed = |extension: &str| format!("assets/{}.{extension}", parts.stem);
    site.add_named(name, "wasm", hashed("wasm"), &wasm)?;
    site.add_named(name, "js", hashed("js"), (script + &start(&hashed("wasm"))).as_bytes())?;
    for (name, bytes) in &parts.later {
        site.add(&format!("app/assets/{name}"), bytes)?;
    }
    Ok(())
}

fn start(wasm: &str) -> String {
    format!("\n__wbg_init({{ module_or_path: new URL(\"/{wasm}\", import.meta.url) }});\n")
}

/// A module's script and what it loads. `shares` its memory and its table with parts that come later.
fn bound(name: &str, wasm: &[u8], shares: bool, site: &mut Site<'_>) -> Result<(String, Vec<u8>)> {
    let failed = |error| format!("the bindings of `{name}` could not be made: {error:#}");
    let mut output = Bindgen::new()
        .input_bytes(name, wasm.to_vec())
        .web(true)
        .and_then(|bindgen| {
            bindgen
                .typescript(false)
                .remove_name_section(true)
                .remove_producers_section(true)
                .omit_default_module_path(true)
                .keep_lld_exports(shares)
                .generate_output()
        })
        .map_err(failed)?;
    let wasm = output.wasm_mut().emit_wasm();
    let mut script = output.js().to_owned();
    for (index, (path, text)) in snippets(&output).into_iter().enumerate() {
        let snippet = site.add_asset(&format!("{name}-snippet-{index}.js"), text.as_bytes())?;
        script = script.replace(&format!("./snippets/{path}"), &format!("/{snippet}"));
    }
    Ok((script, wasm))
}

/// JavaScript that crates bring along, by the path at which the bindings import it. A build without link-time optimisation
/// imports some that nothing calls.
fn snippets(output: &Output) -> Vec<(String, String)> {
    let inline = output.snippets().iter().flat_map(|(crate_id, texts)| {
        texts.iter().enumerate().map(move |(index, text)| (format!("{crate_id}/inline{index}.js"), text.clone()))
    });
    let mut found: Vec<_> =
        inline.chain(output.local_modules().iter().map(|(path, text)| (path.clone(), text.clone()))).collect();
    found.sort();
    found
}

struct Site<'a> {
    dist: &'a Path,
    profile: Profile,
    /// `assets/logo.svg` and `assets/logo-0123456789abcdef.svg`.
    renamed: Vec<(String, String)>,
}

impl Site<'_> {
    /// Adds a file whose name changes with its content, and returns that name.
    fn add_asset(&mut self, name: &str, bytes: &[u8]) -> Result<String> {
        let bytes = if is_text(name) { self.with_hashed_names(bytes) } else { bytes.to_vec() };
        let (stem, extension) = name.rsplit_once('.').ok_or(format!("the asset `{name}` needs an extension"))?;
        let hashed = format!("assets/{stem}-{}.{extension}", inputs::content_hash(&bytes));
        self.add(&format!("app/{hashed}"), &bytes)?;
        self.renamed.push((format!("assets/{name}"), hashed.clone()));
        Ok(hashed)
    }

    /// Adds what a page calls `/assets/<name>.<extension>`, under the name that it has got already.
    fn add_named(&mut self, name: &str, extension: &str, hashed: String, bytes: &[u8]) -> Result<()> {
        self.add(&format!("app/{hashed}"), bytes)?;
        self.renamed.push((format!("assets/{name}.{extension}"), hashed));
        Ok(())
    }

    /// A page or stylesheet says `/assets/logo.svg`; the finished one says the name with the hash.
    fn with_hashed_names(&self, bytes: &[u8]) -> Vec<u8> {
        let Ok(text) = std::str::from_utf8(bytes) else { return bytes.to_vec() };
        let mut text = text.to_owned();
        for (name, hashed) in &self.renamed {
            text = text.replace(&format!("/{name}"), &format!("/{hashed}"));
        }
        text.into_bytes()
    }

    fn add(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.dist.join(name);
        let store = |path: &Path, bytes: &[u8]| fs::write(path, bytes).map_err(|error| cannot("write", path, &error));
        let parent = path.parent().unwrap_or(self.dist);
        fs::create_dir_all(parent).map_err(|error| cannot("create", parent, &error))?;
        store(&path, bytes)?;
        for (suffix, compressed) in [("br", brotli(bytes, self.profile)), ("gz", gzip(bytes, self.profile))] {
            let compressed = compressed.map_err(|error| cannot("compress", &path, &error))?;
            if compressed.len() < bytes.len() {
                store(&path.with_added_extension(suffix), &compressed)?;
            }
        }
        Ok(())
    }
}

fn brotli(bytes: &[u8], profile: Profile) -> std::io::Result<Vec<u8>> {
    let quality = if profile == Profile::Release { 11 } else { 4 };
    let mut writer = brotli::CompressorWriter::new(Vec::new(), 1 << 16, quality, 22);
    writer.write_all(bytes)?;
    writer.flush()?;
    Ok(writer.into_inner())
}

fn gzip(bytes: &[u8], profile: Profile) -> std::io::Result<Vec<u8>> {
    let level = if profile == Profile::Release { 9 } else { 4 };
    let mut writer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(level));
    writer.write_all(bytes)?;
    writer.finish()
}

/// Files of the dashboard: those that keep their names because browsers and people know them, and all others.
fn app_files(dir: &Path) -> Result<(Vec<PathBuf>, Vec<PathBuf>)> {
    let mut files = Vec::new();
    inputs::collect(dir, &mut files)?;
    files.sort();
    Ok(files
        .into_iter()
        .partition(|file| ["html", "webmanifest", "ico", "txt"].iter().any(|extension| has_extension(file, extension))))
}

fn has_extension(path: &Path, extension: &str) -> bool {
    path.extension().is_some_and(|found| found == extension)
}

fn is_text(name: &str) -> bool {
    [".css", ".js", ".svg"].iter().any(|extension| name.ends_with(extension))
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(|error| cannot("read", path, &error))
}
