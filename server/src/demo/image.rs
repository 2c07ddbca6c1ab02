//! The sample's image, made without a registry: this very program, the libraries that it is linked with, and nothing else.
//!
//! The archive has the format of `docker save`. It is the same to the byte for the same program, so that an engine which has
//! the image is sent nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{self, Read, Seek as _, SeekFrom, Write},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use serde_json::json;
use sha2::{Digest as _, Sha256};

/// The user that the sample runs as: nobody in particular.
const USER: u64 = 65532;

const PASSWD: &str = "root:x:0:0:root:/:/flotilla\nsample:x:65532:65532:sample:/data:/flotilla\n";
const GROUP: &str = "root:x:0:\nsample:x:65532:\n";

/// The longest path of a dynamic loader. Bytes.
const LOADER_MAX: u64 = 4096;

#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("could not {action} `{}` for the sample's image: {source}", .path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("no image can be made of this program: {0}")]
    Program(&'static str),
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io { action, path, source }
}

/// An archive that was written, and what an engine will call what is in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SampleImage {
    /// The image's id: `sha256:` and the digest of its configuration.
    pub(super) id: String,
    /// Names the id too: another program is another image.
    pub(super) reference: String,
}

/// Writes the archive of an image with the running program in it. Blocking: tens of megabytes are read and digested.
///
/// # Errors
/// A file of the program can't be read, or the archive can't be written.
pub(super) fn write(archive: &Path) -> Result<SampleImage, Error> {
    let program = Path::new("/proc/self/exe");
    let maps = fs::read_to_string("/proc/self/maps").map_err(failed("read", Path::new("/proc/self/maps")))?;
    let files = Files::of(program, &maps)?;

    let layer = archive.with_extension("layer");
    let digest = write_layer(&layer, &files);
    let written = digest.and_then(|digest| {
        let config = configuration(&digest, &files.library_path());
        let id = hex(&Sha256::digest(&config));
        let reference = format!("flotilla-sample:{}", &id[..12]);
        write_archive(archive, &layer, &digest, &config, &id, &reference)?;
        Ok(SampleImage { id: format!("sha256:{id}"), reference })
    });
    // Gone already if it could not be made.
    let _ = fs::remove_file(&layer);
    written
}

/// Where things are in the image, and where they come from.
#[derive(Debug, Default)]
struct Files {
    /// By path in the image, without the slash at its beginning.
    copied: BTreeMap<String, PathBuf>,
    /// A library's other names in its directory, as `libc.so.6` for `libc-2.31.so`.
    links: BTreeMap<String, PathBuf>,
    library_directories: BTreeSet<String>,
}

impl Files {
    fn of(program: &Path, maps: &str) -> Result<Self, Error> {
        let mut files = Self::default();
        files.copied.insert("flotilla".into(), program.to_owned());
        for library in libraries(maps) {
            files.add_library(&library)?;
        }
        if let Some(loader) = loader(program)? {
            // Usually a link to a library that is mapped; the kernel looks for it under this very name.
            let file = fs::canonicalize(&loader).map_err(failed("find", &loader))?;
            files.copied.insert(in_image(&loader), file);
        }
        Ok(files)
    }

    fn add_library(&mut self, library: &Path) -> Result<(), Error> {
        self.copied.insert(in_image(library), library.to_owned());
        let Some(directory) = library.parent() else { return Ok(()) };
        self.library_directories.insert(directory.display().to_string());
        for entry in fs::read_dir(directory).map_err(failed("read", directory))? {
            let path = entry.map_err(failed("read", directory))?.path();
            // The program asks for a library by the name of a link, where the file's own has its whole version.
            if path.is_symlink()
                && path.to_string_lossy().contains(".so")
                && fs::canonicalize(&path).is_ok_and(|file| file == library)
                && let Some(name) = library.file_name()
            {
                self.links.insert(in_image(&path), name.into());
            }
        }
        Ok(())
    }

    fn library_path(&self) -> String {
        self.library_directories.iter().map(String::as_str).collect::<Vec<_>>().join(":")
    }

    /// All directories above all files.
    fn directories(&self) -> BTreeSet<String> {
        let paths = self.copied.keys().chain(self.links.keys());
        let parents = paths.flat_map(|path| Path::new(path).ancestors().skip(1));
        parents.map(|path| path.display().to_string()).filter(|path| !path.is_empty()).collect()
    }
}

fn in_image(path: &Path) -> String {
    path.to_string_lossy().trim_start_matches('/').to_owned()
}

/// The shared libraries among the files that are mapped into a process (proc_pid_maps(5)).
fn libraries(maps: &str) -> BTreeSet<PathBuf> {
    let paths = maps.lines().filter_map(|line| line.split_whitespace().nth(5));
    let is_library = |path: &&str| {
        let name = path.rsplit('/').next().unwrap_or_default();
        path.starts_with('/') && (name.ends_with(".so") || name.contains(".so."))
    };
    paths.filter(is_library).map(PathBuf::from).collect()
}

/// The dynamic loader that a program names in its header (elf(5), `PT_INTERP`); none for one that is linked statically.
fn loader(program: &Path) -> Result<Option<PathBuf>, Error> {
    const PT_INTERP: u32 = 3;
    let file = File::open(program).map_err(failed("read", program))?;
    let read = |offset: u64, len: usize| -> Result<Vec<u8>, Error> {
        let mut bytes = vec![0; len];
        file.read_exact_at(&mut bytes, offset).map_err(failed("read", program))?;
        Ok(bytes)
    };
    let header = read(0, 64)?;
    if header[..4] != *b"\x7fELF" || header[4] != 2 || header[5] != 1 {
        return Err(Error::Program("it is not in the format ELF with 64 bits, little endian"));
    }
    let (table, size, count) = (u64_at(&header, 32), u16_at(&header, 54), u16_at(&header, 56));
    for index in 0..u64::from(count) {
        let entry = read(table + index * u64::from(size), 56)?;
        if u32_at(&entry, 0) != PT_INTERP {
            continue;
        }
        let len = u64_at(&entry, 32).min(LOADER_MAX);
        let name = read(u64_at(&entry, 8), usize::try_from(len).unwrap_or_default())?;
        let name = String::from_utf8_lossy(&name).trim_end_matches('\0').to_owned();
        return Ok(Some(PathBuf::from(name)));
    }
    Ok(None)
}

fn array_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(&bytes[at..at + N]);
    array
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(array_at(bytes, at))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array_at(bytes, at))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array_at(bytes, at))
}

/// Writes the file system, and returns its digest.
fn write_layer(path: &Path, files: &Files) -> Result<String, Error> {
    let file = File::create(path).map_err(failed("write", path))?;
    let mut tar = tar::Builder::new(Digesting { inner: io::BufWriter::new(file), sha: Sha256::new() });
    let mut directories: BTreeMap<String, (u32, u64)> =
        files.directories().into_iter().map(|path| (path, (0o755, 0))).collect();
    directories.insert("data".into(), (0o755, USER));
    directories.insert("etc".into(), (0o755, 0));
    directories.insert("tmp".into(), (0o1777, 0));
    for (path, (mode, owner)) in &directories {
        let mut header = header(tar::EntryType::Directory, *mode, *owner, 0);
        tar.append_data(&mut header, format!("{path}/"), io::empty()).map_err(failed("write", Path::new(path)))?;
    }
    for (name, text) in [("etc/group", GROUP), ("etc/passwd", PASSWD)] {
        let mut header = header(tar::EntryType::Regular, 0o644, 0, text.len() as u64);
        tar.append_data(&mut header, name, text.as_bytes()).map_err(failed("write", Path::new(name)))?;
    }
    for (name, source) in &files.copied {
        let mut copy = || -> io::Result<()> {
            let file = File::open(source)?;
            let len = file.metadata()?.len();
            let mut header = header(tar::EntryType::Regular, 0o755, 0, len);
            tar.append_data(&mut header, name, file.take(len))
        };
        copy().map_err(failed("copy", source))?;
    }
    for (name, target) in files.links.iter().filter(|(name, _)| !files.copied.contains_key(*name)) {
        let mut header = header(tar::EntryType::Symlink, 0o777, 0, 0);
        tar.append_link(&mut header, name, target).map_err(failed("write", Path::new(name)))?;
    }
    let mut out = tar.into_inner().map_err(failed("write", path))?;
    out.flush().map_err(failed("write", path))?;
    Ok(hex(&out.sha.finalize()))
}

fn header(kind: tar::EntryType, mode: u32, owner: u64, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(owner);
    header.set_gid(owner);
    // Whatever varies from machine to machine would vary the digest.
    header.set_mtime(0);
    header.set_size(size);
    header
}

/// The image's configuration (OCI image specification, `application/vnd.oci.image.config.v1+json`).
fn configuration(layer: &str, library_path: &str) -> Vec<u8> {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "riscv64" => "riscv64",
        other => other,
    };
    json!({
        "architecture": architecture,
        "os": "linux",
        "created": "1970-01-01T00:00:00Z",
        "config": {
            "User": format!("{USER}:{USER}"),
            "Env": ["PATH=/", format!("LD_LIBRARY_PATH={library_path}")],
            "Entrypoint": ["/flotilla"],
            "Cmd": ["sample", "notes"],
            "WorkingDir": "/data",
            "ExposedPorts": { "8080/tcp": {} },
            "Labels": { "org.opencontainers.image.title": "Flotilla's sample: a notes board" },
        },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{layer}")] },
        "history": [{ "created": "1970-01-01T00:00:00Z", "created_by": "flotilla demo" }],
    })
    .to_string()
    .into_bytes()
}

fn write_archive(
    path: &Path,
    layer: &Path,
    layer_digest: &str,
    config: &[u8],
    id: &str,
    reference: &str,
) -> Result<(), Error> {
    let manifest = json!([{
        "Config": format!("{id}.json"),
        "RepoTags": [reference],
        "Layers": [format!("{layer_digest}/layer.tar")],
    }])
    .to_string();
    let write = || -> io::Result<()> {
        let mut tar = tar::Builder::new(io::BufWriter::new(File::create(path)?));
        let mut append = |name: String, len: u64, data: &mut dyn Read| {
            tar.append_data(&mut header(tar::EntryType::Regular, 0o644, 0, len), name, data)
        };
        append(format!("{id}.json"), config.len() as u64, &mut &config[..])?;
        let mut layer = File::open(layer)?;
        let len = layer.seek(SeekFrom::End(0))?;
        layer.rewind()?;
        append(format!("{layer_digest}/layer.tar"), len, &mut layer)?;
        append("manifest.json".into(), manifest.len() as u64, &mut manifest.as_bytes())?;
        tar.into_inner()?.flush()
    };
    write().map_err(failed("write", path))
}

/// Digests what goes through.
struct Digesting<W> {
    inner: W,
    sha: Sha256,
}

impl<W: Write> Write for Digesting<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.sha.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn libraries_are_found_among_what_is_mapped() {
        let maps = "\
55d0-55d1 r-xp 00000000 fe:01 123    /usr/bin/flotilla
7f00-7f01 r-xp 00000000 fe:01 456    /usr/lib/x86_64-linux-gnu/libc.so.6
7f02-7f03 r--p 00000000 fe:01 456    /usr/lib/x86_64-linux-gnu/libc.so.6
7f04-7f05 r-xp 00000000 fe:01 789    /usr/lib64/ld-2.31.so
7f06-7f07 rw-p 00000000 00:00 0
7f08-7f09 r--s 00000000 fe:01 790    /usr/share/locale/some.sock
7ffd-7ffe rw-p 00000000 00:00 0      [stack]
";
        let found: Vec<_> = libraries(maps).into_iter().map(|path| path.display().to_string()).collect();
        assert_eq!(found, ["/usr/lib/x86_64-linux-gnu/libc.so.6", "/usr/lib64/ld-2.31.so"]);
    }

    #[test]
    fn what_is_no_program_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), [b'#'; 100]).unwrap();
        assert!(matches!(loader(file.path()), Err(Error::Program(_))));
    }

    /// Here the program is this test, which can list itself: so the loader and all libraries are in the image.
    #[test]
    fn the_image_is_the_same_each_time_and_the_engine_loads_and_runs_it() {
        let directory = tempfile::tempdir().unwrap();
        let archive = directory.path().join("sample.tar");
        let image = write(&archive).unwrap();
        let again = directory.path().join("again.tar");
        assert_eq!(write(&again).unwrap(), image);
        let digest = |path: &Path| Sha256::digest(fs::read(path).unwrap());
        assert_eq!(digest(&archive), digest(&again));
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2, "nothing but the archives is left");

        let docker = |arguments: &[&str]| {
            let output = Command::new("docker").args(arguments).output().unwrap();
            assert!(output.status.success(), "docker {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8(output.stdout).unwrap()
        };
        docker(&["load", "--quiet", "--input", archive.to_str().unwrap()]);
        let reference = image.reference.as_str();
        assert_eq!(docker(&["image", "inspect", "--format", "{{.Id}}", reference]).trim(), image.id);
        let listed = docker(&["run", "--rm", "--network", "none", "--read-only", reference, "--list"]);
        assert!(listed.contains("the_engine_loads_and_runs_it"), "{listed}");
        docker(&["image", "rm", reference]);
    }
}
