//! An image goes into the store and out of it as what it was.

use flotilla_data::{
    Store,
    store::{Generation, News},
};
use serde_json::json;

use super::*;

/// An image's parts.
struct Made {
    config: Vec<u8>,
    layers: Vec<Vec<u8>>,
}

impl Made {
    fn of(layers: &[&[u8]]) -> Self {
        let diff_ids: Vec<String> = layers.iter().map(|layer| Digest::of(layer).id()).collect();
        let config = json!({"os": "linux", "rootfs": {"type": "layers", "diff_ids": diff_ids}}).to_string();
        Self { config: config.into_bytes(), layers: layers.iter().map(|layer| layer.to_vec()).collect() }
    }

    fn id(&self) -> Digest {
        Digest::of(&self.config)
    }

    /// As engines write it since 2024.
    fn new_form(&self, name: &str) -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        let mut done = BTreeSet::new();
        for blob in self.layers.iter().chain([&self.config]) {
            if done.insert(Digest::of(blob)) {
                append(&mut tar, &blob_path(&Digest::of(blob)), blob.len() as u64, blob.as_slice()).unwrap();
            }
        }
        let layers: Vec<PathBuf> = self.layers.iter().map(|layer| blob_path(&Digest::of(layer))).collect();
        self.listed(&mut tar, &blob_path(&self.id()), &layers, name);
        tar.into_inner().unwrap()
    }

    /// As they did before: by names of their own, and the second time as a link.
    fn old_form(&self, name: &str) -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        let config = PathBuf::from(format!("{}.json", self.id()));
        append(&mut tar, &config, self.config.len() as u64, self.config.as_slice()).unwrap();
        let mut layers = Vec::new();
        for (number, layer) in self.layers.iter().enumerate() {
            let path = PathBuf::from(format!("layer-{number}/layer.tar"));
            append(&mut tar, &PathBuf::from(format!("layer-{number}/VERSION")), 3, &b"1.0"[..]).unwrap();
            match self.layers[..number].iter().position(|other| other == layer) {
                Some(first) => {
                    let mut header = tar::Header::new_gnu();
                    header.set_entry_type(tar::EntryType::Symlink);
                    header.set_size(0);
                    tar.append_link(&mut header, &path, format!("../layer-{first}/layer.tar")).unwrap();
                }
                None => append(&mut tar, &path, layer.len() as u64, layer.as_slice()).unwrap(),
            }
            layers.push(path);
        }
        self.listed(&mut tar, &config, &layers, name);
        tar.into_inner().unwrap()
    }

    fn listed(&self, tar: &mut tar::Builder<Vec<u8>>, config: &Path, layers: &[PathBuf], name: &str) {
        let listed = json!([{"Config": config, "RepoTags": [name], "Layers": layers}]).to_string();
        append(tar, Path::new("manifest.json"), listed.len() as u64, listed.as_bytes()).unwrap();
    }
}

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    std::iter::repeat_with(next).flatten().take(len).collect()
}

struct Place {
    store: Store,
    _directory: tempfile::TempDir,
}

fn place() -> Place {
    let directory = tempfile::tempdir().unwrap();
    Place { store: Store::open(&directory.path().join("objects")).unwrap(), _directory: directory }
}

impl Place {
    fn take_in(&self, archive: &[u8], id: &Digest) -> Result<(Image, Hash), Error> {
        let mut session = self.store.session();
        let image = read(archive, id, &BTreeMap::new(), &mut session)?;
        let root = image.write(&mut session)?;
        let generation = Generation { epoch: 0, sequence: 0, taken_at: 7, root };
        session.commit(&News { generation: Some((format!(":image/{id}"), generation)), sight: None })?;
        Ok((image, root))
    }
}

/// What an archive holds: the list of images, and each file by its path.
fn unpacked(archive: &[u8]) -> (serde_json::Value, BTreeMap<PathBuf, Vec<u8>>) {
    let mut files = BTreeMap::new();
    for entry in tar::Archive::new(archive).entries().unwrap() {
        let mut entry = entry.unwrap();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        files.insert(entry.path().unwrap().into_owned(), bytes);
    }
    let listed = serde_json::from_slice(&files.remove(Path::new("manifest.json")).unwrap()).unwrap();
    (listed, files)
}

#[test]
fn an_image_comes_out_of_the_store_as_it_went_in() {
    let (base, empty) = (noise(1, 700_000), vec![0; 1024]);
    let made = Made::of(&[&base, &empty, b"top", &empty]);
    let place = place();
    let (image, root) = place.take_in(&made.new_form("notes:1"), &made.id()).unwrap();
    assert_eq!(image.size(), 700_000 + 1024 + 3, "a layer that is there twice is kept once");
    image.verify(&place.store).unwrap();

    let image = Image::read(&place.store, &root).unwrap();
    let mut archive = Vec::new();
    write(&place.store, &image, &["notes:1".to_owned()], 0, &mut archive).unwrap();
    let (listed, files) = unpacked(&archive);
    let path = |bytes: &[u8]| blob_path(&Digest::of(bytes));
    assert_eq!(listed[0]["Config"], json!(path(&made.config)));
    assert_eq!(listed[0]["RepoTags"], json!(["notes:1"]));
    assert_eq!(listed[0]["Layers"], json!([path(&base), path(&empty), path(b"top"), path(&empty)]));
    let expected: BTreeMap<PathBuf, Vec<u8>> =
        [made.config.clone(), base, empty, b"top".to_vec()].into_iter().map(|blob| (path(&blob), blob)).collect();
    assert!(files == expected);
}

#[test]
fn an_image_has_one_root_whichever_engine_wrote_it_and_whatever_it_is_called() {
    let base = noise(2, 300_000);
    let made = Made::of(&[&base, b"middle", b"middle", b"top"]);
    let roots: BTreeSet<Hash> = [made.new_form("notes:1"), made.old_form("notes:1"), made.old_form("other:2")]
        .iter()
        .map(|archive| place().take_in(archive, &made.id()).unwrap().1)
        .collect();
    assert_eq!(roots.len(), 1);
}

#[test]
fn layers_that_the_engine_has_are_left_out_unless_they_come_again_above() {
    let made = Made::of(&[b"base", b"empty", b"top", b"empty"]);
    let place = place();
    let (image, _) = place.take_in(&made.new_form("notes:1"), &made.id()).unwrap();
    let files = |left_out| {
        let mut archive = Vec::new();
        write(&place.store, &image, &[], left_out, &mut archive).unwrap();
        let (listed, files) = unpacked(&archive);
        assert_eq!(listed[0]["Layers"].as_array().unwrap().len(), 4, "the list names all of them");
        files.into_values().filter(|bytes| *bytes != made.config).collect::<Vec<_>>()
    };
    assert_eq!(files(0).len(), 3);
    assert_eq!(files(1).len(), 2);
    assert!(!files(1).contains(&b"base".to_vec()));
    assert_eq!(files(2).len(), 2, "its second place is above");
    assert_eq!(files(4).len(), 0);
}

#[test]
fn what_two_images_share_is_kept_once_and_so_is_most_of_a_layer_that_changed_in_one_place() {
    let base = noise(3, 3_000_000);
    let mut changed = base.clone();
    changed[1_500_000] ^= 1;
    let place = place();
    place.take_in(&Made::of(&[&base, b"one"]).new_form("notes:1"), &Made::of(&[&base, b"one"]).id()).unwrap();
    let first = place.store.size().unwrap();
    let second = Made::of(&[&base, b"two"]);
    place.take_in(&second.new_form("notes:2"), &second.id()).unwrap();
    assert!(place.store.size().unwrap() - first < 20_000);
    let before = place.store.size().unwrap();
    let third = Made::of(&[&changed, b"two"]);
    place.take_in(&third.new_form("notes:3"), &third.id()).unwrap();
    assert!(place.store.size().unwrap() - before < 600_000);
}

#[test]
fn blobs_that_are_known_are_read_past() {
    let base = noise(4, 500_000);
    let place = place();
    let first = Made::of(&[&base, b"one"]);
    let (image, _) = place.take_in(&first.new_form("notes:1"), &first.id()).unwrap();
    let second = Made::of(&[&base, b"two"]);
    let mut archive = second.new_form("notes:2");
    // What is not read can't matter.
    let at = archive.windows(64).position(|window| *window == base[1000..1064]).unwrap();
    archive[at] ^= 1;
    let mut session = place.store.session();
    let image = read(archive.as_slice(), &second.id(), &image.blobs, &mut session).unwrap();
    image.verify(&session).unwrap();
}

#[test]
fn what_another_image_had_stays_though_that_one_goes_before_the_new_one_is_kept() {
    let base = noise(6, 500_000);
    let place = place();
    let (first, second) = (Made::of(&[&base, b"one"]), Made::of(&[&base, b"two"]));
    let (known, _) = place.take_in(&first.new_form("notes:1"), &first.id()).unwrap();
    let mut session = place.store.session();
    let archive = second.new_form("notes:2");
    let image = read(archive.as_slice(), &second.id(), &known.blobs, &mut session).unwrap();
    place.store.forget_volume(&format!(":image/{}", first.id())).unwrap();
    place.store.collect().unwrap();
    let root = image.write(&mut session).unwrap();
    let generation = Generation { epoch: 0, sequence: 0, taken_at: 7, root };
    session.commit(&News { generation: Some((":image/second".to_owned(), generation)), sight: None }).unwrap();
    drop(session);
    place.store.collect().unwrap();
    Image::read(&place.store, &root).unwrap().verify(&place.store).unwrap();
}

#[test]
fn a_known_blob_that_is_not_whole_any_more_is_read_and_not_named() {
    let base = noise(7, 500_000);
    let place = place();
    let (first, second) = (Made::of(&[&base, b"one"]), Made::of(&[&base, b"two"]));
    let (known, _) = place.take_in(&first.new_form("notes:1"), &first.id()).unwrap();
    place.store.forget_volume(&format!(":image/{}", first.id())).unwrap();
    place.store.collect().unwrap();
    let mut session = place.store.session();
    let missing = known.write(&mut session).unwrap_err();
    assert!(matches!(missing, Error::Store(store::Error::Missing { .. })), "{missing:?}");
    let missing = write_layer(&Digest::of(&base), known.blobs[&Digest::of(&base)].clone(), &mut session).unwrap_err();
    assert!(matches!(missing, Error::Store(store::Error::Missing { .. })), "{missing:?}");
    let archive = second.new_form("notes:2");
    let image = read(archive.as_slice(), &second.id(), &known.blobs, &mut session).unwrap();
    image.verify(&session).unwrap();
}

/// An image as an engine has it that calls it by its manifest.
struct ByManifest {
    made: Made,
    manifest: String,
    index: serde_json::Value,
}

impl ByManifest {
    fn of(layers: &[&[u8]]) -> Self {
        let made = Made::of(layers);
        let named: Vec<_> = layers.iter().map(|layer| json!({ "digest": Digest::of(layer).id() })).collect();
        let manifest = json!({ "config": { "digest": made.id().id() }, "layers": named }).to_string();
        let index = json!({ "manifests": [{ "digest": Digest::of(manifest.as_bytes()).id() }] });
        Self { made, manifest, index }
    }

    fn id(&self) -> Digest {
        Digest::of(self.manifest.as_bytes())
    }

    fn archive(&self) -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        let blobs = self.made.layers.iter().chain([&self.made.config]).map(Vec::as_slice);
        for blob in blobs.chain([self.manifest.as_bytes()]) {
            append(&mut tar, &blob_path(&Digest::of(blob)), blob.len() as u64, blob).unwrap();
        }
        let index = self.index.to_string();
        append(&mut tar, Path::new("index.json"), index.len() as u64, index.as_bytes()).unwrap();
        let layers: Vec<PathBuf> = self.made.layers.iter().map(|layer| blob_path(&Digest::of(layer))).collect();
        self.made.listed(&mut tar, &blob_path(&self.made.id()), &layers, "notes:1");
        tar.into_inner().unwrap()
    }
}

#[test]
fn an_image_of_an_engine_that_names_it_by_its_manifest_comes_with_that() {
    let image = ByManifest::of(&[b"base"]);
    let (id, index) = (image.id(), image.index.to_string());
    let place = place();
    let (taken, root) = place.take_in(&image.archive(), &id).unwrap();
    taken.verify(&place.store).unwrap();
    taken.check_is(&id, &place.store).unwrap();
    assert!(taken.check_is(&image.made.id(), &place.store).is_err(), "it has one id");
    assert_eq!(Image::read(&place.store, &root).unwrap().description, taken.description);
    let mut archive = Vec::new();
    write(&place.store, &taken, &[], 0, &mut archive).unwrap();
    let (_, files) = unpacked(&archive);
    assert_eq!(files[Path::new("index.json")], index.as_bytes());
    assert_eq!(files[&blob_path(&id)], image.manifest.as_bytes());
}

#[test]
fn the_names_in_an_index_are_not_the_images() {
    let mut image = ByManifest::of(&[b"base"]);
    let plain = place().take_in(&image.archive(), &image.id()).unwrap().1;
    image.index["manifests"][0]["annotations"] = json!({ "io.containerd.image.name": "docker.io/library/postgres:17" });
    let place = place();
    let (mut taken, root) = place.take_in(&image.archive(), &image.id()).unwrap();
    assert_eq!(root, plain, "it has one root whatever it is called");
    // As another machine may have made it.
    taken.description.index = Some(image.index.to_string());
    let mut archive = Vec::new();
    write(&place.store, &taken, &[], 0, &mut archive).unwrap();
    assert!(!String::from_utf8_lossy(&archive).contains("postgres"));
}

#[test]
fn a_tree_is_the_image_of_an_id_only_if_all_of_it_follows_from_the_id() {
    let (good, evil) = (Made::of(&[b"base", b"top"]), Made::of(&[b"base", b"evil"]));
    let place = place();
    let (image, _) = place.take_in(&good.new_form("notes:1"), &good.id()).unwrap();
    let (other, _) = place.take_in(&evil.new_form("notes:1"), &evil.id()).unwrap();
    image.check_is(&good.id(), &place.store).unwrap();
    let refused = |image: &Image| {
        image.verify(&place.store).unwrap();
        let error = image.check_is(&good.id(), &place.store).unwrap_err();
        assert!(matches!(error, Error::Other(_) | Error::Format(_)), "{error:?}");
    };
    refused(&other);

    // The image that was asked for is there, and another is described.
    let mut decoy = other.clone();
    decoy.blobs.extend(image.blobs.clone());
    refused(&decoy);
    decoy.description.index = Some(json!({ "manifests": [{ "digest": evil.id().id() }] }).to_string());
    refused(&decoy);
    decoy.description.index = Some(json!({ "manifests": [{ "digest": good.id().id() }] }).to_string());
    refused(&decoy);

    // What belongs to nothing would be written out, too.
    let mut more = image.clone();
    more.blobs.extend(other.blobs);
    refused(&more);

    let mut fewer = image;
    fewer.description.layers.pop();
    fewer.blobs.remove(&Digest::of(b"top"));
    refused(&fewer);
}

#[test]
fn an_index_has_the_engine_load_nothing_but_the_image() {
    let (good, evil) = (ByManifest::of(&[b"base", b"top"]), ByManifest::of(&[b"base", b"evil"]));
    let place = place();
    let (image, _) = place.take_in(&good.archive(), &good.id()).unwrap();
    let (other, _) = place.take_in(&evil.archive(), &evil.id()).unwrap();
    let refused = |image: &Image| {
        image.verify(&place.store).unwrap();
        assert!(matches!(image.check_is(&good.id(), &place.store), Err(Error::Other(_))));
    };
    let mut both = image.clone();
    both.blobs.extend(other.blobs.clone());
    refused(&both);
    let mut index = good.index.clone();
    index["manifests"].as_array_mut().unwrap().push(evil.index["manifests"][0].clone());
    refused(&Image {
        description: Description { index: Some(index.to_string()), ..both.description },
        blobs: both.blobs,
    });

    let mut described = other;
    described.blobs.extend(image.blobs.clone());
    described.description.index = image.description.index.clone();
    refused(&described);

    // By way of an index of its own, as of several platforms of which one is here.
    let absent = Digest::of(b"of another platform").id();
    let below = json!({ "manifests": [{ "digest": absent }, { "digest": good.id().id() }] }).to_string();
    let id = Digest::of(below.as_bytes());
    let mut session = place.store.session();
    let mut image = image;
    image.blobs.insert(id.clone(), take_layer(below.as_bytes(), &id, &mut session).unwrap());
    image.description.index = Some(json!({ "manifests": [{ "digest": id.id() }] }).to_string());
    image.check_is(&id, &session).unwrap();
}

#[test]
fn a_blob_has_as_many_bytes_as_it_says() {
    let made = Made::of(&[b"base", b"top"]);
    let place = place();
    let (image, _) = place.take_in(&made.new_form("notes:1"), &made.id()).unwrap();
    let base = Digest::of(b"base");
    let damaged = |change: &dyn Fn(&mut File)| {
        let mut image = image.clone();
        change(image.blobs.get_mut(&base).unwrap());
        for error in
            [image.verify(&place.store).unwrap_err(), write(&place.store, &image, &[], 0, io::sink()).unwrap_err()]
        {
            assert!(matches!(&error, Error::Damaged { digest } if *digest == base), "{error:?}");
        }
    };
    // What is behind its end would be taken for the next file of the archive.
    damaged(&|file| file.len = 0);
    damaged(&|file| (file.len, file.content.len) = (0, 0));
    damaged(&|file| (file.len, file.content.len) = (3, 3));
    damaged(&|file| (file.len, file.content.len) = (5, 5));
    damaged(&|file| file.holes = vec![tree::Hole { at: 0, len: 0 }]);
}

#[test]
fn what_is_no_such_image_is_refused_in_words() {
    let made = Made::of(&[b"base", b"top"]);
    let place = place();
    let refused = |archive: &[u8], id: &Digest| place.take_in(archive, id).unwrap_err().to_string();
    let other = Digest::of(b"something else");
    assert_eq!(refused(&made.new_form("notes:1"), &other), format!("it is not the image `{}`", other.id()));
    assert!(refused(b"no archive at all", &made.id()).contains("archive"));
    let empty = tar::Builder::new(Vec::new()).into_inner().unwrap();
    assert!(refused(&empty, &made.id()).contains("manifest.json"));

    let mut without = tar::Builder::new(Vec::new());
    append(&mut without, &blob_path(&made.id()), made.config.len() as u64, made.config.as_slice()).unwrap();
    made.listed(&mut without, &blob_path(&made.id()), &[blob_path(&Digest::of(b"base"))], "notes:1");
    assert!(refused(&without.into_inner().unwrap(), &made.id()).contains("it lacks `blobs/sha256/"));

    let fewer = Made { layers: vec![b"base".to_vec()], config: made.config.clone() };
    assert!(refused(&fewer.new_form("notes:1"), &made.id()).contains("other layers"));
}

#[test]
fn a_layer_is_taken_only_as_what_it_is_said_to_be() {
    let place = place();
    let bytes = noise(5, 200_000);
    let digest = Digest::of(&bytes);
    let mut session = place.store.session();
    let file = take_layer(bytes.as_slice(), &digest, &mut session).unwrap();
    assert_eq!(file.len, 200_000);
    let root = write_layer(&digest, file.clone(), &mut session).unwrap();
    assert_eq!(read_layer(&session, &root).unwrap(), Some((digest.clone(), file)));
    for wrong in [&bytes[..199_999], b"short", b""] {
        let error = take_layer(wrong, &digest, &mut session).unwrap_err();
        assert!(matches!(error, Error::Damaged { .. }), "{error:?}");
    }
}

#[test]
fn a_damaged_blob_is_found_before_anybody_loads_it() {
    let made = Made::of(&[b"base", b"top"]);
    let place = place();
    let (mut image, _) = place.take_in(&made.new_form("notes:1"), &made.id()).unwrap();
    let top = image.blobs[&Digest::of(b"top")].clone();
    image.blobs.insert(Digest::of(b"base"), top);
    let error = image.verify(&place.store).unwrap_err();
    assert!(matches!(&error, Error::Damaged { digest } if *digest == Digest::of(b"base")), "{error:?}");
    let error = write(&place.store, &image, &[], 0, io::sink()).unwrap_err();
    assert!(matches!(error, Error::Damaged { .. }), "{error:?}");
}

#[test]
fn a_text_that_is_longer_than_it_says_is_not_read_to_its_end() {
    let made = Made::of(&[b"base"]);
    let place = place();
    let (image, _) = place.take_in(&made.new_form("notes:1"), &made.id()).unwrap();
    let mut session = place.store.session();
    let named = image.blobs.iter().map(|(digest, file)| plain(digest.hex(), file.clone()));
    let (blobs, totals) = directory(named, &mut session).unwrap();
    let blobs = entry(BLOBS, 0o755, Node::Directory(Directory { entries: blobs, totals }));
    let mut root_with = |description: File| {
        let (entries, totals) = directory([blobs.clone(), plain(DESCRIPTION, description)], &mut session).unwrap();
        let root = Root::new(Meta::default(), Directory { entries, totals }).write(&mut session).unwrap();
        Image::read(&session, &root)
    };
    let mut text = serde_json::to_vec(&image.description).unwrap();
    let keep = |text: &[u8]| {
        let mut session = place.store.session();
        let kept = File { len: 10, ..file(text, &mut session).unwrap() };
        session.commit(&News::default()).unwrap();
        kept
    };
    assert!(root_with(keep(&text)).is_ok(), "a length is no more than a word");
    text.resize(usize::try_from(TEXT_MAX).unwrap() + 1, b' ');
    let error = root_with(keep(&text)).unwrap_err();
    assert!(matches!(&error, Error::Format(why) if why.contains("longer")), "{error:?}");
}

#[test]
fn an_image_has_a_limited_number_of_parts() {
    let place = place();
    let mut session = place.store.session();
    let mut digests: Vec<Digest> = (0..=BLOBS_MAX).map(|number| Digest::of(&number.to_be_bytes())).collect();
    digests.sort();
    let named = digests.iter().map(|digest| plain(digest.hex(), File::default()));
    let (entries, _) = directory(named, &mut session).unwrap();
    assert!(matches!(files(&session, &entries), Err(Error::Format(_))));
}

#[test]
fn digests_are_written_with_and_without_what_they_are() {
    let hex = "ab".repeat(32);
    assert_eq!(hex.parse::<Digest>().unwrap(), format!("sha256:{hex}").parse().unwrap());
    for bad in ["", "sha256:", "sha256:ab", &hex.to_uppercase(), &format!("sha512:{hex}"), "../../etc/passwd"] {
        assert!(bad.parse::<Digest>().is_err(), "{bad}");
    }
}

#[test]
fn paths_in_archives_lead_nowhere_else() {
    for (path, plain) in [("./a/b", "a/b"), ("a/../b", "b"), ("../../etc", "etc"), ("/a", "a"), ("a/./b", "a/b")] {
        assert_eq!(plain_path(Path::new(path)), Path::new(plain), "{path}");
    }
    assert!(blob_of(Path::new("blobs/sha256/zz")).is_none());
}
