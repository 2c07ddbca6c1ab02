//! What a service keeps: named volumes, and what lives in memory.

use std::collections::BTreeSet;

use docker_compose_types as compose;
use flotilla_api::{
    ApiError, ServiceName, VolumeName,
    spec::{VolumeMount, VolumeRules},
};

use super::{
    forms, invalid_name,
    section::Section,
    service::{Reader, flag},
    tree::shown,
};

impl Reader<'_> {
    pub(super) fn mounts(
        &mut self,
        name: &ServiceName,
        section: &Section<'_>,
    ) -> Result<(Vec<VolumeMount>, Vec<String>), ApiError> {
        let mut volumes = Vec::new();
        let mut tmpfs = tmpfs(section)?;
        let items = match section.get("volumes") {
            Some(section) => section.items("a list of volumes")?,
            None => Vec::new(),
        };
        let mut targets: BTreeSet<String> =
            tmpfs.iter().map(|text| text.split(':').next().unwrap_or_default().to_owned()).collect();
        for item in items {
            let mount = read_mount(&item)?;
            if !forms::is_container_path(&mount.target) {
                return Err(item.invalid("must be mounted at an absolute path in the container, and not at `/`"));
            }
            if !targets.insert(mount.target.trim_end_matches('/').to_owned()) {
                return Err(item.invalid(&format!("mounts a second volume at `{}`; keep one", mount.target)));
            }
            match mount.source {
                Source::Tmpfs { size } => {
                    let size = size.map_or_else(String::new, |size| format!(":size={size}"));
                    tmpfs.push(format!("{}{size}", mount.target));
                }
                Source::Volume(source) => {
                    let (volume, rules) = self.own(name, &item, &source)?;
                    volumes.push(VolumeMount { volume, target: mount.target, read_only: mount.read_only, rules });
                }
            }
        }
        Ok((volumes, tmpfs))
    }

    fn own(
        &mut self,
        name: &ServiceName,
        item: &Section<'_>,
        source: &str,
    ) -> Result<(VolumeName, VolumeRules), ApiError> {
        let volume: VolumeName = source.parse().map_err(|error| invalid_name(item.mark(), &error))?;
        let Some(rules) = self.declared.get(&volume).cloned() else {
            return Err(item.invalid(&format!(
                "mounts the volume `{volume}`, which is not declared; add `{volume}:` under the top-level `volumes`"
            )));
        };
        let owner = self.owners.entry(volume.clone()).or_insert_with(|| name.clone());
        if owner != name {
            return Err(item.unsupported(&format!(
                "mounts the volume `{volume}` of `{owner}`; a volume belongs to one service, so give each its own"
            )));
        }
        Ok((volume, rules))
    }
}

struct Mount {
    source: Source,
    target: String,
    read_only: bool,
}

enum Source {
    Volume(String),
    Tmpfs { size: Option<u64> },
}

fn read_mount(item: &Section<'_>) -> Result<Mount, ApiError> {
    let bind = |item: &Section<'_>| {
        item.unsupported(
            "mounts a directory of the host, which another machine would not have; use a named volume, or bake it into the image",
        )
    };
    if item.get("tmpfs").is_some() || item.get("type").is_some() {
        return long_mount(item, &bind);
    }
    let text = match item.parse("`name:/path`, or a map with `type`, `source` and `target`")? {
        compose::Volumes::Simple(text) => text,
        compose::Volumes::Advanced(_) => return long_mount(item, &bind),
    };
    let Some(mount) = forms::mount(&text) else {
        return Err(item.invalid("must be `name:/path` or `name:/path:ro`"));
    };
    let Some(source) = mount.source else {
        return Err(item.unsupported("is a volume without a name; write `name:/path`, and the name under `volumes`"));
    };
    if forms::is_host_path(source) {
        return Err(bind(item));
    }
    let mut read_only = false;
    for mode in mount.modes {
        match mode {
            "ro" => read_only = true,
            // SELinux labels are the engine's business, and a directory of ours needs none.
            "rw" | "z" | "Z" => {}
            _ => return Err(item.unsupported(&format!("has the mode `{}`; use `ro` or `rw`", shown(mode)))),
        }
    }
    Ok(Mount { source: Source::Volume(source.to_owned()), target: mount.target.to_owned(), read_only })
}

fn long_mount(item: &Section<'_>, bind: &dyn Fn(&Section<'_>) -> ApiError) -> Result<Mount, ApiError> {
    let size = match item.get("tmpfs").and_then(|tmpfs| tmpfs.get("size")) {
        Some(size) => Some(forms::bytes(size.text()?).ok_or_else(|| size.invalid("must be a size such as `64m`"))?),
        None => None,
    };
    let part = |key: &str| item.get(key).map(|section| section.text().map(str::to_owned)).transpose();
    let target = part("target")?.ok_or_else(|| item.invalid("has no `target`; say where the container sees it"))?;
    let read_only = flag(item, "read_only")?;
    let source = match part("type")?.as_deref() {
        Some("tmpfs") => Source::Tmpfs { size },
        Some("volume") => {
            let source = part("source")?.filter(|source| !source.is_empty());
            let source = source.ok_or_else(|| item.unsupported("is a volume without a name; add `source`"))?;
            if forms::is_host_path(&source) {
                return Err(bind(item));
            }
            Source::Volume(source)
        }
        Some("bind") => return Err(bind(item)),
        Some(other) => {
            return Err(item.unsupported(&format!("has the type `{}`; use `volume` or `tmpfs`", shown(other))));
        }
        None => return Err(item.invalid("has no `type`; use `volume` or `tmpfs`")),
    };
    Ok(Mount { source, target, read_only })
}

fn tmpfs(section: &Section<'_>) -> Result<Vec<String>, ApiError> {
    let Some(section) = section.get("tmpfs") else { return Ok(Vec::new()) };
    let list = match section.parse("a path, or a list of paths")? {
        compose::Tmpfs::Simple(text) => vec![text],
        compose::Tmpfs::List(list) => list,
    };
    for text in &list {
        let path = text.split(':').next().unwrap_or_default();
        if !forms::is_container_path(path) {
            return Err(section.invalid(&format!("has `{}`; write an absolute path in the container", shown(text))));
        }
    }
    Ok(list)
}
