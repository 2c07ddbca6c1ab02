//! Images as `docker save` writes them, into the store and out of it again.
//!
//! In the store an image is a tree, as a generation of a volume is: a description and its *blobs* (the configuration and the layers),
//! each under its SHA-256 digest. Nothing in it depends on the machine that made it, on names or on times, so that one image has one
//! root everywhere, and what two images share is kept once.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    io::{self, Read, Write},
    path::{Component, Path, PathBuf},
    str::FromStr,
};

use flotilla_data::{
    Hash, Session,
    store::{self, Objects},
    stream::{self, Grain, Piece, Stream},
    tree::{self, Directory, Entry, File, Meta, Name, Node, Root, Totals},
};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

mod checked;
mod manifest;

use checked::{Checked, Hashed, cause, failed};

/// Of [`Description`].
const VERSION: u8 = 1;

const DESCRIPTION: &str = "image.json";
const BLOBS: &str = "blobs";

/// Layers of one image; the engine itself has a limit of 127.
pub(super) const LAYERS_MAX: usize = 512;

/// Files of an archive: some for each layer.
const FILES_MAX: usize = 8 * LAYERS_MAX;

/// Blobs of one image: its layers, and what an engine has besides that names it by its manifest.
const BLOBS_MAX: usize = 2 * LAYERS_MAX;

/// A configuration, or the list of what is in an archive. Bytes.
pub(super) const TEXT_MAX: u64 = 4 * 1024 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the archive can't be read: {0}")]
    Read(#[source] io::Error),
    #[error("it is no image as `docker save` writes it: {0}")]
    Format(String),
    #[error("it is not the image `{0}`")]
    Other(String),
    #[error("its part {digest} is damaged")]
    Damaged { digest: Digest },
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error(transparent)]
    Tree(#[from] tree::Error),
    #[error(transparent)]
    Stream(#[from] stream::Error),
    #[error("this image was stored by a newer version of Flotilla ({0}); update this machine")]
    Newer(u8),
}

/// SHA-256 of a blob. An image's is that of its configuration, as the engine has it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(String);

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no SHA-256 digest; it has 64 hexadecimal digits in lower case")]
pub struct InvalidDigest(String);

impl Digest {
    pub fn of(bytes: &[u8]) -> Self {
        Self::finish(Sha256::new().chain_update(bytes))
    }

    fn finish(sha: Sha256) -> Self {
        Self(sha.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }

    pub fn hex(&self) -> &str {
        &self.0
    }

    /// As the engine calls an image.
    pub fn id(&self) -> String {
        format!("sha256:{}", self.0)
    }
}

impl FromStr for Digest {
    type Err = InvalidDigest;

    /// With or without `sha256:`.
    fn from_str(text: &str) -> Result<Self, InvalidDigest> {
        let hex = text.strip_prefix("sha256:").unwrap_or(text);
        if hex.len() == 64 && hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
            Ok(Self(hex.to_owned()))
        } else {
            Err(InvalidDigest(text.chars().take(80).collect::<String>().escape_debug().to_string()))
        }
    }
}

impl TryFrom<String> for Digest {
    type Error = InvalidDigest;

    fn try_from(text: String) -> Result<Self, InvalidDigest> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What an image is made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Description {
    version: u8,
    pub(super) config: Digest,
    /// From the bottom up. One may be there several times.
    pub(super) layers: Vec<Digest>,
    /// Of an engine that calls images by the digest of their manifest: `index.json`, and with it the other blobs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) index: Option<String>,
}

/// An image in the store.
#[derive(Clone, Debug)]
pub(super) struct Image {
    pub(super) description: Description,
    pub(super) blobs: BTreeMap<Digest, File>,
}

impl Image {
    /// Of blobs that are in the store.
    ///
    /// # Errors
    /// One is missing.
    pub(super) fn of(config: Digest, layers: Vec<Digest>, all: &BTreeMap<Digest, File>) -> Result<Self, Error> {
        let found = std::iter::once(&config).chain(&layers).map(|digest| match all.get(digest) {
            Some(file) => Ok((digest.clone(), file.clone())),
            None => Err(Error::Format(format!("it lacks the part {digest}"))),
        });
        let blobs = found.collect::<Result<_, _>>()?;
        Ok(Self { description: Description { version: VERSION, config, layers, index: None }, blobs })
    }

    pub(super) fn read(objects: &dyn Objects, root: &Hash) -> Result<Self, Error> {
        let (mut description, mut blobs) = (None, BTreeMap::new());
        for entry in tree::entries(&Root::read(objects, root)?.entries, objects) {
            let entry = entry?;
            match (entry.name.as_bytes(), entry.node) {
                (name, Node::File(file)) if name == DESCRIPTION.as_bytes() => {
                    description = Some(text(objects, &file)?);
                }
                (name, Node::Directory(below)) if name == BLOBS.as_bytes() => blobs = files(objects, &below.entries)?,
                _ => {}
            }
        }
        let damaged = || Error::Tree(tree::Error::Damaged);
        let description = description.ok_or_else(damaged)?;
        #[derive(Deserialize)]
        struct Version {
            version: u8,
        }
        let Version { version } = serde_json::from_str(&description).map_err(|_| damaged())?;
        if version > VERSION {
            return Err(Error::Newer(version));
        }
        let description: Description = serde_json::from_str(&description).map_err(|_| damaged())?;
        if description.layers.len() > LAYERS_MAX {
            return Err(Error::Format(format!("it has more than {LAYERS_MAX} layers")));
        }
        if !std::iter::once(&description.config).chain(&description.layers).all(|digest| blobs.contains_key(digest)) {
            return Err(damaged());
        }
        Ok(Self { description, blobs })
    }

    /// Its root. Blobs that were in the store before are held there.
    ///
    /// # Errors
    /// Something of a blob is not there.
    pub(super) fn write(&self, session: &mut Session) -> Result<Hash, Error> {
        self.blobs.values().try_for_each(|file| claim(file, session))?;
        let named = self.blobs.iter().map(|(digest, file)| plain(digest.hex(), file.clone()));
        let (blobs, totals) = directory(named, session)?;
        let description = serde_json::to_vec(&self.description).map_err(|error| Error::Read(error.into()))?;
        let description = file(description.as_slice(), session)?;
        let blobs = entry(BLOBS, 0o755, Node::Directory(Directory { entries: blobs, totals }));
        let (entries, totals) = directory([blobs, plain(DESCRIPTION, description)], session)?;
        Ok(Root::new(Meta { mode: 0o755, ..Meta::default() }, Directory { entries, totals }).write(session)?)
    }

    pub(super) fn config(&self, objects: &dyn Objects) -> Result<String, Error> {
        let missing = || Error::Format("it has no configuration".to_owned());
        text(objects, self.blobs.get(&self.description.config).ok_or_else(missing)?)
    }

    /// As the engine knows its layers, from the bottom up, each by the digest of what is in it unpacked.
    pub(super) fn diff_ids(&self, objects: &dyn Objects) -> Result<Vec<String>, Error> {
        diff_ids(&self.config(objects)?)
    }

    /// Bytes of its layers.
    pub(super) fn size(&self) -> u64 {
        let layers: BTreeSet<&Digest> = self.description.layers.iter().collect();
        layers.into_iter().filter_map(|digest| self.blobs.get(digest)).map(|file| file.len).sum()
    }

    /// Reads all blobs and compares them with their digests.
    ///
    /// # Errors
    /// [`Error::Damaged`] names the first that is something else.
    pub(super) fn verify(&self, objects: &dyn Objects) -> Result<(), Error> {
        self.blobs.iter().try_for_each(|(digest, file)| verify_blob(digest, file, objects))
    }

    /// It is the image of this id, by what its blobs say, and has nothing that does not belong to it. Their digests are not looked at.
    ///
    /// # Errors
    /// [`Error::Other`] where the id stands for something else.
    pub(super) fn check_is(&self, id: &Digest, objects: &dyn Objects) -> Result<(), Error> {
        let Description { config, layers, index, .. } = &self.description;
        let other = || Error::Other(id.id());
        match index {
            None => {
                let is_described = |blob: &Digest| blob == config || layers.contains(blob);
                if config != id || !self.blobs.keys().all(is_described) {
                    return Err(other());
                }
            }
            Some(index) => {
                let named = manifest::named(index)?;
                let blob = |digest: &Digest| self.blobs.get(digest).map(|file| text(objects, file)).transpose();
                let reached = manifest::reach(id, blob)?;
                let is_named = !named.is_empty() && named.iter().all(|it| it == id);
                if !is_named || !reached.has(config, layers) || !self.blobs.keys().all(|it| reached.blobs.contains(it))
                {
                    return Err(other());
                }
            }
        }
        if self.diff_ids(objects)?.len() != layers.len() {
            return Err(Error::Format(OTHER_LAYERS.to_owned()));
        }
        Ok(())
    }
}

const OTHER_LAYERS: &str = "its configuration names other layers than it has";

fn verify_blob(digest: &Digest, file: &File, objects: &dyn Objects) -> Result<(), Error> {
    let mut checked = Checked::blob(file, digest, objects)?;
    io::copy(&mut checked, &mut io::sink()).map_err(|error| cause(error, digest))?;
    Ok(())
}

/// The list of layers in an image's configuration.
pub(super) fn diff_ids(config: &str) -> Result<Vec<String>, Error> {
    #[derive(Deserialize)]
    struct Config {
        rootfs: RootFs,
    }
    #[derive(Deserialize)]
    struct RootFs {
        #[serde(default)]
        diff_ids: Vec<String>,
    }
    let config: Config = serde_json::from_str(config)
        .map_err(|error| Error::Format(format!("its configuration can't be read ({error})")))?;
    Ok(config.rootfs.diff_ids)
}

/// All that a blob is made of is here, and nobody frees it while the session lasts: whatever named it until now may go meanwhile.
///
/// # Errors
/// [`store::Error::Missing`] names what is not.
pub(super) fn claim(file: &File, session: &Session) -> Result<(), Error> {
    for piece in file.content.pieces(session) {
        let (Piece::List(part) | Piece::Chunk(part)) = piece?;
        if !session.contains(&part.hash)? {
            return Err(store::Error::Missing { name: part.hash }.into());
        }
    }
    Ok(())
}

/// One layer that belongs to no image yet, in the store under its own name; its root.
pub(super) fn write_layer(digest: &Digest, file: File, session: &mut Session) -> Result<Hash, Error> {
    claim(&file, session)?;
    let (entries, totals) = directory([plain(digest.hex(), file)], session)?;
    Ok(Root::new(Meta { mode: 0o755, ..Meta::default() }, Directory { entries, totals }).write(session)?)
}

pub(super) fn read_layer(objects: &dyn Objects, root: &Hash) -> Result<Option<(Digest, File)>, Error> {
    Ok(files(objects, &Root::read(objects, root)?.entries)?.pop_first())
}

/// A layer that came from another machine under its own name, if it is what it is said to be.
pub(super) fn verified_layer(digest: &Digest, root: &Hash, objects: &dyn Objects) -> Result<File, Error> {
    match read_layer(objects, root)? {
        Some((found, file)) if found == *digest => {
            verify_blob(digest, &file, objects)?;
            Ok(file)
        }
        _ => Err(Error::Other(digest.id())),
    }
}

/// Bytes become a file of the store, if they are what they are said to be.
pub(super) fn take_layer(bytes: impl Read, digest: &Digest, session: &mut Session) -> Result<File, Error> {
    let mut checked = Checked::new(bytes, digest);
    let content = Stream::write(&mut checked, Grain::Content, session);
    content.map(|content| File { len: content.len, content, ..File::default() }).map_err(|error| match error {
        stream::Error::Read(error) => cause(error, digest),
        other => other.into(),
    })
}

/// Reads what `docker save` writes of one image. Blobs that are `known`, and whole in the store, are read past, by their name.
///
/// # Errors
/// What is no such archive, holds another image, or can't be kept.
pub(super) fn read(
    archive: impl Read,
    id: &Digest,
    known: &BTreeMap<Digest, File>,
    session: &mut Session,
) -> Result<Image, Error> {
    let contents = Contents::read(archive, known, session)?;
    contents.image(id, session)
}

/// What is in an archive.
#[derive(Debug, Default)]
struct Contents {
    files: BTreeMap<PathBuf, (Digest, File)>,
    /// A layer that is there twice is a link the second time.
    links: BTreeMap<PathBuf, PathBuf>,
}

/// An entry of an archive's `manifest.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Listed {
    pub(crate) config: PathBuf,
    #[serde(default)]
    pub(crate) repo_tags: Option<Vec<String>>,
    pub(crate) layers: Vec<PathBuf>,
}

impl Contents {
    fn read(archive: impl Read, known: &BTreeMap<Digest, File>, session: &mut Session) -> Result<Self, Error> {
        let mut contents = Self::default();
        let mut archive = tar::Archive::new(archive);
        for entry in archive.entries().map_err(Error::Read)? {
            let mut entry = entry.map_err(Error::Read)?;
            let path = plain_path(&entry.path().map_err(Error::Read)?);
            if contents.files.len() + contents.links.len() >= FILES_MAX {
                return Err(Error::Format(format!("it has more than {FILES_MAX} files")));
            }
            match entry.header().entry_type() {
                tar::EntryType::Regular | tar::EntryType::Continuous => {
                    if let Some(digest) = blob_of(&path)
                        && let Some(file) = known.get(&digest).filter(|file| claim(file, session).is_ok())
                    {
                        contents.files.insert(path, (digest, file.clone()));
                        continue;
                    }
                    let mut hashed = Hashed::new(&mut entry);
                    let content = Stream::write(&mut hashed, Grain::Content, session)?;
                    let digest = Digest::finish(hashed.sha);
                    contents.files.insert(path, (digest, File { len: content.len, content, ..File::default() }));
                }
                tar::EntryType::Symlink | tar::EntryType::Link => {
                    let target = entry.link_name().map_err(Error::Read)?.unwrap_or_default();
                    let is_hard = entry.header().entry_type() == tar::EntryType::Link;
                    let from = if is_hard { Path::new("") } else { path.parent().unwrap_or(Path::new("")) };
                    contents.links.insert(path.clone(), plain_path(&from.join(target)));
                }
                _ => {}
            }
        }
        Ok(contents)
    }

    fn find(&self, path: &Path) -> Result<&(Digest, File), Error> {
        let path = plain_path(path);
        let target = self.links.get(&path).unwrap_or(&path);
        self.files.get(target).ok_or_else(|| Error::Format(format!("it lacks `{}`", path.display())))
    }

    /// Files whose name is their digest.
    fn blobs(&self) -> impl Iterator<Item = (&Digest, &File)> {
        let all = self.files.iter().filter(|(path, (digest, _))| blob_of(path).as_ref() == Some(digest));
        all.map(|(_, (digest, file))| (digest, file))
    }

    fn image(&self, id: &Digest, session: &Session) -> Result<Image, Error> {
        let listed = text(session, &self.find(Path::new("manifest.json"))?.1)?;
        let listed: Vec<Listed> = serde_json::from_str(&listed)
            .map_err(|error| Error::Format(format!("its list of images can't be read ({error})")))?;
        let mut found = None;
        for listed in &listed {
            let config = self.find(&listed.config)?;
            if config.0 == *id || found.is_none() {
                found = Some((listed, config));
            }
        }
        let (listed, config) = found.ok_or_else(|| Error::Format("it holds no image".to_owned()))?;
        if listed.layers.len() > LAYERS_MAX {
            return Err(Error::Format(format!("it has more than {LAYERS_MAX} layers")));
        }
        let mut blobs = BTreeMap::from([config.clone()]);
        let mut layers = Vec::new();
        for path in &listed.layers {
            let (digest, file) = self.find(path)?;
            blobs.insert(digest.clone(), file.clone());
            layers.push(digest.clone());
        }
        if diff_ids(&text(session, &config.1)?)?.len() != layers.len() {
            return Err(Error::Format(OTHER_LAYERS.to_owned()));
        }
        let mut description = Description { version: VERSION, config: config.0.clone(), layers, index: None };
        if config.0 != *id {
            // By its manifest then, which has to come along: nothing else has this name.
            let (digest, _) = self.find(&blob_path(id)).map_err(|_| Error::Other(id.id()))?;
            if digest != id {
                return Err(Error::Damaged { digest: id.clone() });
            }
            description.index = Some(manifest::unnamed(&text(session, &self.find(Path::new("index.json"))?.1)?)?);
            let all: BTreeMap<&Digest, &File> = self.blobs().collect();
            let blob = |digest: &Digest| all.get(digest).map(|file| text(session, file)).transpose();
            let reached = manifest::reach(id, blob)?.blobs;
            let its = all.into_iter().filter(|(digest, _)| reached.contains(*digest));
            blobs.extend(its.map(|(digest, file)| (digest.clone(), file.clone())));
        }
        if blobs.len() > BLOBS_MAX {
            return Err(Error::Format(format!("it has more than {BLOBS_MAX} parts")));
        }
        Ok(Image { description, blobs })
    }
}

/// Writes what the engine loads, with names for it. The lowest layers are left out where the engine has them.
///
/// # Errors
/// [`Error::Damaged`] where a blob is not what it is said to be.
pub(super) fn write(
    objects: &dyn Objects,
    image: &Image,
    references: &[String],
    left_out: usize,
    to: impl Write,
) -> Result<(), Error> {
    let Description { config, layers, index, .. } = &image.description;
    let (below, above) = layers.split_at(left_out.min(layers.len()));
    let needed: BTreeSet<&Digest> = above.iter().collect();
    let left_out: BTreeSet<&Digest> = below.iter().filter(|digest| !needed.contains(digest)).collect();
    let mut archive = tar::Builder::new(to);
    let listed = Listed {
        config: blob_path(config),
        repo_tags: Some(references.to_vec()),
        layers: layers.iter().map(blob_path).collect(),
    };
    let listed = serde_json::to_vec(&[listed]).map_err(|error| Error::Read(error.into()))?;
    append(&mut archive, Path::new("manifest.json"), listed.len() as u64, listed.as_slice()).map_err(Error::Read)?;
    if let Some(index) = index {
        let index = manifest::unnamed(index)?;
        let layout = br#"{"imageLayoutVersion":"1.0.0"}"#;
        append(&mut archive, Path::new("index.json"), index.len() as u64, index.as_bytes()).map_err(Error::Read)?;
        append(&mut archive, Path::new("oci-layout"), layout.len() as u64, &layout[..]).map_err(Error::Read)?;
    }
    for (digest, file) in image.blobs.iter().filter(|(digest, _)| !left_out.contains(digest)) {
        let content = Checked::blob(file, digest, objects)?;
        append(&mut archive, &blob_path(digest), file.len, content).map_err(|error| cause(error, digest))?;
    }
    archive.into_inner().and_then(|mut to| to.flush()).map_err(Error::Read)
}

fn append(archive: &mut tar::Builder<impl Write>, path: &Path, len: u64, content: impl Read) -> io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o644);
    header.set_size(len);
    archive.append_data(&mut header, path, content)
}

fn blob_path(digest: &Digest) -> PathBuf {
    Path::new("blobs/sha256").join(digest.hex())
}

/// The digest that a path of an archive names.
pub(crate) fn blob_of(path: &Path) -> Option<Digest> {
    path.strip_prefix("blobs/sha256").ok()?.to_str()?.parse().ok()
}

/// Without `.` and `..`, as far as these lead anywhere.
pub(crate) fn plain_path(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => plain.push(name),
            Component::ParentDir => drop(plain.pop()),
            _ => {}
        }
    }
    plain
}

fn plain(name: &str, file: File) -> Entry {
    entry(name, 0o644, Node::File(file))
}

fn entry(name: &str, mode: u32, node: Node) -> Entry {
    // Digests and names of our own are names.
    let name = Name::try_from(name.as_bytes().to_vec()).unwrap_or_else(|error| unreachable!("{error}"));
    Entry { name, meta: Meta { mode, ..Meta::default() }, node }
}

/// Entries come in the order of their names.
fn directory(entries: impl IntoIterator<Item = Entry>, session: &mut Session) -> Result<(Stream, Totals), Error> {
    let mut totals = Totals::default();
    let entries = entries.into_iter().map(|entry| {
        totals = totals.plus(&entry);
        Ok(entry)
    });
    let written = tree::write(entries, session)?;
    Ok((written, totals))
}

fn file(bytes: &[u8], session: &mut Session) -> Result<File, Error> {
    let content = Stream::write(bytes, Grain::Content, session)?;
    Ok(File { len: content.len, content, ..File::default() })
}

/// Files of a directory whose names are digests.
fn files(objects: &dyn Objects, entries: &Stream) -> Result<BTreeMap<Digest, File>, Error> {
    let mut files = BTreeMap::new();
    for entry in tree::entries(entries, objects) {
        let entry = entry?;
        let digest = std::str::from_utf8(entry.name.as_bytes()).ok().and_then(|name| name.parse().ok());
        if let (Some(digest), Node::File(file)) = (digest, entry.node) {
            files.insert(digest, file);
        }
        if files.len() > BLOBS_MAX {
            return Err(Error::Format(format!("it has more than {BLOBS_MAX} parts")));
        }
    }
    Ok(files)
}

/// How long it is only its end tells: whoever made it may have said anything.
fn text(objects: &dyn Objects, file: &File) -> Result<String, Error> {
    let mut bytes = Vec::new();
    file.content.read(objects).take(TEXT_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > TEXT_MAX {
        return Err(Error::Format(format!("its configuration is longer than {TEXT_MAX} bytes")));
    }
    String::from_utf8(bytes).map_err(|_| Error::Format("its configuration is no text".to_owned()))
}

#[cfg(test)]
mod tests;
