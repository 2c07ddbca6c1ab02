//! Images that are pushed by their layers: only those travel that no machine of the cluster has.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{self, Read, Seek as _, SeekFrom, Write as _},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use flotilla_api::rest::{AskLayers, LackingLayers, PushImage, PushedImage};
use reqwest::Method;
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use super::{Archive, Client, ENGINE_TIMEOUT, Error, upload::hex};
use crate::images::archive::{Listed, blob_of, plain_path};

/// A configuration, or the list of images. Bytes.
const TEXT_MAX: u64 = 4 * 1024 * 1024;

/// Files of an archive.
const FILES_MAX: usize = 4096;

/// Where layers wait that an engine has saved: on a disk. What is for temporary files is in memory on many machines, and an image may be
/// larger than that.
const SPOOL: &str = "/var/tmp";

const BUFFER: usize = 256 * 1024;

/// An image on this machine's disk, by its layers.
#[derive(Debug)]
pub struct Layers {
    config: String,
    references: Vec<String>,
    /// From the bottom up, each by its digest.
    layers: Vec<String>,
    /// Those that are at hand.
    parts: BTreeMap<String, Archive>,
}

/// What a push did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Pushed {
    pub id: String,
    pub images: Vec<String>,
    pub layers: usize,
    pub sent_layers: usize,
    pub sent_bytes: u64,
}

impl Layers {
    /// Reads an archive of `docker save`; `None` for what is none, is compressed or holds several images: the node's engine is the judge
    /// of those. `progress` is told the bytes read so far. Blocking.
    ///
    /// # Errors
    /// The file can't be read.
    pub fn in_archive(path: &Path, progress: impl FnMut(u64)) -> Result<Option<Self>, Error> {
        let failed = |source| Error::File { path: path.to_owned(), source };
        let file = Arc::new(File::open(path).map_err(failed)?);
        let bytes = io::BufReader::with_capacity(BUFFER, Told { bytes: &*file, read: 0, told: progress });
        let Ok(contents) = Contents::read(bytes, None, &BTreeSet::new()) else { return Ok(None) };
        contents.image(&file, path).map_err(failed)
    }

    /// Reads what an engine saves of one image, and keeps the layers that are not `unneeded` on this machine's disk. Blocking.
    ///
    /// # Errors
    /// It can't be read or kept.
    pub fn spooled(
        saved: impl Read,
        unneeded: &BTreeSet<String>,
        progress: impl FnMut(u64),
    ) -> Result<Option<Self>, Error> {
        let (spool, directory) = spool()?;
        let failed = |source| Error::Written { path: directory.clone(), source };
        let saved = Told { bytes: saved, read: 0, told: progress };
        let contents = Contents::read(saved, Some(&spool), unneeded).map_err(failed)?;
        contents.image(&Arc::new(spool), &directory).map_err(failed)
    }

    pub fn references(&self) -> &[String] {
        &self.references
    }

    /// The engine's id of the image.
    pub fn id(&self) -> String {
        format!("sha256:{}", hex(&Sha256::digest(&self.config)))
    }
}

/// A file without a name, which goes with its last handle; and where it is.
fn spool() -> Result<(File, PathBuf), Error> {
    let directory = PathBuf::from(SPOOL);
    match tempfile::tempfile_in(&directory) {
        Ok(file) => Ok((file, directory)),
        Err(_) => {
            let directory = std::env::temp_dir();
            let file = tempfile::tempfile_in(&directory);
            file.map(|file| (file, directory.clone())).map_err(|source| Error::Written { path: directory, source })
        }
    }
}

impl Client {
    /// Which of these layers no machine of the cluster has.
    ///
    /// # Errors
    /// As any call.
    pub async fn lacking(&self, layers: Vec<String>) -> Result<LackingLayers, Error> {
        self.post("images/lacking", &AskLayers { layers }).await
    }

    /// Sends what the cluster lacks of an image, and has the node put it together. What an earlier push has sent is not sent again.
    /// `progress` is told the bytes that the node has, of those that it lacks, and how many these are.
    ///
    /// # Errors
    /// As any call; or a layer is not at hand.
    pub async fn push(&self, image: &Layers, mut progress: impl FnMut(u64, u64)) -> Result<Pushed, Error> {
        let lacking = self.lacking(image.layers.clone()).await?.layers;
        let parts: Vec<&Archive> = lacking
            .keys()
            .map(|digest| {
                let why = || "the cluster lost a layer of it meanwhile; push again".to_owned();
                image.parts.get(digest).ok_or_else(|| Error::Answer { why: why() })
            })
            .collect::<Result<_, _>>()?;
        let all = parts.iter().map(|part| part.size()).sum();
        let (mut done, mut sent_bytes) = (0, 0);
        for part in &parts {
            self.upload_layer(part, |sent| progress(done + sent, all)).await?;
            done += part.size();
            sent_bytes += part.size() - lacking.get(part.digest()).copied().unwrap_or(0).min(part.size());
        }
        let pushed = PushImage {
            config: image.config.clone(),
            layers: image.layers.clone(),
            references: image.references.clone(),
        };
        let request = self.request(Method::POST, "images").json(&pushed).timeout(ENGINE_TIMEOUT);
        let PushedImage { id, references } = self.json(request).await?;
        let (layers, sent_layers) = (image.layers.len(), parts.len());
        Ok(Pushed { id, images: references, layers, sent_layers, sent_bytes })
    }
}

/// Where a file of an archive is.
#[derive(Clone, Debug)]
struct Part {
    digest: String,
    size: u64,
    /// Absent where it was read past.
    start: Option<u64>,
}

#[derive(Debug, Default)]
struct Contents {
    files: BTreeMap<PathBuf, Part>,
    links: BTreeMap<PathBuf, PathBuf>,
}

impl Contents {
    fn read(archive: impl Read, mut spool: Option<&File>, unneeded: &BTreeSet<String>) -> io::Result<Self> {
        let mut contents = Self::default();
        let mut spooled = 0;
        let mut buffer = vec![0; BUFFER];
        let mut archive = tar::Archive::new(archive);
        for entry in archive.entries()? {
            let mut entry = entry?;
            let path = plain_path(&entry.path()?);
            if contents.files.len() + contents.links.len() >= FILES_MAX {
                return Err(io::Error::other("it has too many files"));
            }
            let kind = entry.header().entry_type();
            if let tar::EntryType::Symlink | tar::EntryType::Link = kind {
                let target = entry.link_name()?.unwrap_or_default();
                let from = if kind == tar::EntryType::Link { None } else { path.parent() };
                contents.links.insert(path.clone(), plain_path(&from.unwrap_or(Path::new("")).join(target)));
                continue;
            }
            if kind != tar::EntryType::Regular {
                continue;
            }
            if let Some(digest) = blob_of(&path).filter(|digest| unneeded.contains(digest.hex())) {
                let part = Part { digest: digest.hex().to_owned(), size: entry.size(), start: None };
                contents.files.insert(path, part);
                continue;
            }
            let start = if spool.is_some() { spooled } else { entry.raw_file_position() };
            let mut sha = Sha256::new();
            let mut size = 0;
            loop {
                let len = entry.read(&mut buffer)?;
                if len == 0 {
                    break;
                }
                sha.update(&buffer[..len]);
                if let Some(spool) = &mut spool {
                    spool.write_all(&buffer[..len])?;
                }
                size += len as u64;
            }
            let digest = hex(&sha.finalize());
            // An engine that names its layers otherwise has told only now which this is.
            if let Some(spool) = spool.filter(|_| unneeded.contains(&digest)) {
                let mut spool = spool;
                spool.set_len(spooled)?;
                spool.seek(SeekFrom::Start(spooled))?;
                contents.files.insert(path, Part { digest, size, start: None });
                continue;
            }
            spooled += size;
            contents.files.insert(path, Part { digest, size, start: Some(start) });
        }
        Ok(contents)
    }

    fn find(&self, path: &Path) -> Option<&Part> {
        let path = plain_path(path);
        self.files.get(self.links.get(&path).unwrap_or(&path))
    }

    /// The one image that is there, if that is so.
    fn image(&self, file: &Arc<File>, path: &Path) -> io::Result<Option<Layers>> {
        let text = |part: Option<&Part>| -> io::Result<Option<String>> {
            let Some(Part { size, start: Some(start), .. }) = part else { return Ok(None) };
            if *size > TEXT_MAX {
                return Ok(None);
            }
            let mut bytes = vec![0; usize::try_from(*size).unwrap_or(usize::MAX)];
            file.read_exact_at(&mut bytes, *start)?;
            String::from_utf8(bytes).map(Some).map_err(io::Error::other)
        };
        let Some(listed) = text(self.find(Path::new("manifest.json")))? else { return Ok(None) };
        let Ok(listed) = serde_json::from_str::<Vec<Listed>>(&listed) else { return Ok(None) };
        let [listed] = listed.as_slice() else { return Ok(None) };
        let Some(config) = text(self.find(&listed.config))? else { return Ok(None) };
        let Some(found) = listed.layers.iter().map(|path| self.find(path)).collect::<Option<Vec<&Part>>>() else {
            return Ok(None);
        };
        let part = |part: &&Part| {
            let archive = Archive::within(Arc::clone(file), path, part.start?, part.size, part.digest.clone());
            Some((part.digest.clone(), archive))
        };
        Ok(Some(Layers {
            config,
            references: listed.repo_tags.clone().unwrap_or_default(),
            layers: found.iter().map(|part| part.digest.clone()).collect(),
            parts: found.iter().filter_map(part).collect(),
        }))
    }
}

struct Told<R, F> {
    bytes: R,
    read: u64,
    told: F,
}

impl<R: Read, F: FnMut(u64)> Read for Told<R, F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = self.bytes.read(buffer)?;
        self.read += len as u64;
        (self.told)(self.read);
        Ok(len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As an engine of before 2024 writes it: the list last, and a layer that is there twice is a link the second time.
    fn old_archive(layers: &[&[u8]]) -> Vec<u8> {
        let mut archive = tar::Builder::new(Vec::new());
        let append = |archive: &mut tar::Builder<Vec<u8>>, path: &str, bytes: &[u8]| {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            archive.append_data(&mut header, path, bytes).unwrap();
        };
        append(&mut archive, "config.json", br#"{"rootfs":{"diff_ids":[]}}"#);
        let mut paths = Vec::new();
        for (number, layer) in layers.iter().enumerate() {
            let path = format!("{number}/layer.tar");
            match layers[..number].iter().position(|other| other == layer) {
                Some(first) => {
                    let mut header = tar::Header::new_gnu();
                    header.set_entry_type(tar::EntryType::Symlink);
                    header.set_size(0);
                    archive.append_link(&mut header, &path, format!("../{first}/layer.tar")).unwrap();
                }
                None => append(&mut archive, &path, layer),
            }
            paths.push(path);
        }
        let listed = serde_json::json!([{"Config": "config.json", "RepoTags": ["notes:1"], "Layers": paths}]);
        append(&mut archive, "manifest.json", listed.to_string().as_bytes());
        archive.into_inner().unwrap()
    }

    fn digest(bytes: &[u8]) -> String {
        hex(&Sha256::digest(bytes))
    }

    #[test]
    fn an_archive_is_known_by_its_layers_without_being_copied() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), old_archive(&[b"one", b"two", b"one"])).unwrap();
        let image = Layers::in_archive(file.path(), |_| {}).unwrap().unwrap();
        assert_eq!(image.layers, [digest(b"one"), digest(b"two"), digest(b"one")]);
        assert_eq!(image.references(), ["notes:1"]);
        assert_eq!(image.parts.len(), 2);
        assert_eq!(image.id(), format!("sha256:{}", digest(br#"{"rootfs":{"diff_ids":[]}}"#)));
    }

    #[tokio::test]
    async fn layers_that_the_cluster_has_are_not_kept() {
        let saved = old_archive(&[&[1; 100_000], &[2; 50_000], &[3; 10]]);
        let unneeded = BTreeSet::from([digest(&[1; 100_000])]);
        let image = Layers::spooled(saved.as_slice(), &unneeded, |_| {}).unwrap().unwrap();
        assert_eq!(image.layers.len(), 3);
        assert_eq!(
            image.parts.keys().collect::<BTreeSet<_>>(),
            [digest(&[2; 50_000]), digest(&[3; 10])].iter().collect()
        );
        assert_eq!(image.parts[&digest(&[3; 10])].piece(0).await.unwrap(), [3; 10].as_slice());

        let spool = tempfile::tempfile().unwrap();
        Contents::read(saved.as_slice(), Some(&spool), &unneeded).unwrap();
        assert!(spool.metadata().unwrap().len() < 60_000, "no more than what is to be sent");
    }

    #[test]
    fn an_engines_layers_wait_on_a_disk_and_leave_no_file_behind() {
        use std::os::unix::fs::MetadataExt as _;

        let (file, directory) = spool().unwrap();
        assert_eq!(directory, Path::new(SPOOL));
        assert_eq!(file.metadata().unwrap().nlink(), 0);
    }

    #[test]
    fn what_is_no_archive_is_left_to_the_node() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for bytes in [&b"no archive at all"[..], &[0; 10_240], b"\x1f\x8b\x08compressed"] {
            std::fs::write(file.path(), bytes).unwrap();
            assert!(Layers::in_archive(file.path(), |_| {}).unwrap().is_none());
        }
    }
}
