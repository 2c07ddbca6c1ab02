//! Which node and which token: flags, environment, saved contexts, in this order.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use comfy_table::Cell;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{Failure, Global, Output, args::Context as Verb};
use crate::client::Client;

/// Where a node is looked for if nothing says where.
const DEFAULT_API: &str = "http://127.0.0.1:7070";

/// The largest contexts file that is read: thousands of contexts. Bytes.
const FILE_MAX: u64 = 4 * 1024 * 1024;

/// The version of the file's meaning.
const VERSION: u32 = 1;

/// `~/.config/flotilla/contexts.toml`. It holds tokens: only its owner may read it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Contexts {
    version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    current: Option<String>,
    #[serde(default)]
    contexts: BTreeMap<String, Context>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Context {
    api: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    token: Option<String>,
}

/// A client of the node that the flags, the environment or a context name.
pub(super) fn client(global: &Global) -> Result<Client, Failure> {
    // A file that can't be read must not stop whoever says everything that stands in it.
    let contexts = match (&global.api, &global.token, &global.context) {
        (Some(_), Some(_), None) => Contexts::default(),
        _ => Contexts::load(&file()?)?,
    };
    let Context { api, token } = resolve(global, &contexts)?;
    Ok(Client::new(&api, token)?)
}

fn resolve(global: &Global, saved: &Contexts) -> Result<Context, Failure> {
    let context = match &global.context {
        Some(name) => Some(saved.contexts.get(name).ok_or_else(|| no_such(name))?),
        None => saved.current.as_ref().and_then(|name| saved.contexts.get(name)),
    };
    let api = match (&global.api, context) {
        (Some(api), _) => api.clone(),
        (None, Some(context)) => context.api.clone(),
        (None, None) => DEFAULT_API.to_owned(),
    };
    // A saved token goes to the node that it was saved for and to no other.
    let same_node = |context: &&Context| context.api.trim_end_matches('/') == api.trim_end_matches('/');
    let of_context = context.filter(same_node).or_else(|| match global.context {
        Some(_) => None,
        None => saved.contexts.values().find(same_node),
    });
    let token = global.token.clone().or_else(|| of_context?.token.clone());
    Ok(Context { api, token })
}

fn no_such(name: &str) -> Failure {
    Failure::NotFound(format!("there is no context `{name}`; `flotilla context list` shows all"))
}

pub(super) async fn run(verb: Verb, global: &Global, output: Output) -> Result<(), Failure> {
    let path = file()?;
    let mut saved = Contexts::load(&path)?;
    match verb {
        Verb::Save { name } => {
            check_name(&name)?;
            let context = resolve(global, &saved)?;
            if context.token.is_none() {
                let sentence = "there is no token to save; give it with --token or FLOTILLA_TOKEN";
                return Err(Failure::Usage(sentence.into()));
            }
            // A context that does not work would only be noticed much later.
            let cluster = Client::new(&context.api, context.token.clone())?.cluster().await?;
            save_to(&path, saved, name.clone(), context.clone())?;
            let sentence = format!("Saved `{name}`: cluster {} at {}, in use now.", cluster.name, context.api);
            output.done(&sentence, &json!({ "name": name, "api": context.api, "cluster": cluster.name }))
        }
        Verb::Use { name } => {
            let context = saved.contexts.get(&name).ok_or_else(|| no_such(&name))?;
            let (sentence, value) =
                (format!("Using `{name}`: {}.", context.api), json!({ "name": name, "api": context.api }));
            saved.current = Some(name);
            saved.store(&path)?;
            output.done(&sentence, &value)
        }
        Verb::List => {
            let current = |name: &String| saved.current.as_ref() == Some(name);
            if output.json {
                let list: Vec<_> = saved
                    .contexts
                    .iter()
                    .map(|(name, context)| json!({ "name": name, "api": context.api, "current": current(name) }))
                    .collect();
                return output.value(&list);
            }
            let rows = saved
                .contexts
                .iter()
                .map(|(name, context)| {
                    vec![Cell::new(if current(name) { "*" } else { "" }), Cell::new(name), Cell::new(&context.api)]
                })
                .collect();
            output.table(&["CURRENT", "NAME", "API"], rows, "No context is saved; `flotilla context save` saves one.")
        }
        Verb::Rm { name } => {
            saved.contexts.remove(&name).ok_or_else(|| no_such(&name))?;
            saved.current = saved.current.filter(|current| *current != name);
            saved.store(&path)?;
            output.done(&format!("Forgot `{name}`."), &json!({ "name": name }))
        }
    }
}

/// Saves a node and its token under `name` and uses it from now on; returns where.
pub(super) fn save(name: &str, api: &str, token: &str) -> Result<PathBuf, Failure> {
    let path = file()?;
    let context = Context { api: api.to_owned(), token: Some(token.to_owned()) };
    save_to(&path, Contexts::load(&path)?, name.to_owned(), context)?;
    Ok(path)
}

fn save_to(path: &Path, mut saved: Contexts, name: String, context: Context) -> Result<(), Failure> {
    saved.contexts.insert(name.clone(), context);
    saved.current = Some(name);
    saved.store(path)
}

fn check_name(name: &str) -> Result<(), Failure> {
    let fits = (1..=64).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'));
    if fits {
        return Ok(());
    }
    Err(Failure::Usage("a context's name has 1 to 64 letters, digits, hyphens, dots and underscores".into()))
}

fn file() -> Result<PathBuf, Failure> {
    let base = std::env::var_os("XDG_CONFIG_HOME")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
        .or_else(|| std::env::home_dir().map(|home| home.join(".config")));
    match base {
        Some(base) => Ok(base.join("flotilla").join("contexts.toml")),
        None => Err(Failure::Usage("there is no home directory for contexts; set XDG_CONFIG_HOME".into())),
    }
}

impl Contexts {
    fn load(path: &Path) -> Result<Self, Failure> {
        let text = match fs::metadata(path).and_then(|metadata| match metadata.len() {
            len if len > FILE_MAX => Err(io::Error::other(format!("it has more than {FILE_MAX} bytes"))),
            _ => fs::read_to_string(path),
        }) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(Failure::io("read", path)(error)),
        };
        let saved: Self = toml::from_str(&text).map_err(|error| {
            Failure::Usage(format!("`{}` is damaged ({}); mend or delete it", path.display(), error.message()))
        })?;
        if saved.version > VERSION {
            let sentence = format!("`{}` was written by a newer flotilla; use that one", path.display());
            return Err(Failure::Usage(sentence));
        }
        Ok(saved)
    }

    /// Replaces the file in one step: who reads it at this moment sees the old one or the new one.
    fn store(&self, path: &Path) -> Result<(), Failure> {
        let directory = path.parent().unwrap_or(Path::new("."));
        let write = || -> io::Result<()> {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
            // Made with mode 0600, so that the tokens are never to be read by others, not even for a moment.
            let mut file = tempfile::NamedTempFile::new_in(directory)?;
            file.as_file().set_permissions(fs::Permissions::from_mode(0o600))?;
            let text = toml::to_string(&Self { version: VERSION, ..self.clone() }).map_err(io::Error::other)?;
            file.write_all(text.as_bytes())?;
            file.as_file().sync_all()?;
            file.persist(path)?;
            Ok(())
        };
        write().map_err(Failure::io("write", path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn saved() -> Contexts {
        let context = |api: &str, token: &str| Context { api: api.into(), token: Some(token.into()) };
        Contexts {
            version: VERSION,
            current: Some("home".into()),
            contexts: BTreeMap::from([
                ("home".into(), context("http://home:7070", "of-home")),
                ("office".into(), context("http://office:7070", "of-office")),
            ]),
        }
    }

    fn global(api: Option<&str>, token: Option<&str>, context: Option<&str>) -> Global {
        Global { api: api.map(Into::into), token: token.map(Into::into), context: context.map(Into::into), json: false }
    }

    #[test]
    fn flags_go_before_the_context_and_the_context_before_the_default() {
        for (global, saved, api, token) in [
            (global(None, None, None), Contexts::default(), DEFAULT_API, None),
            (global(None, None, None), saved(), "http://home:7070", Some("of-home")),
            (global(None, None, Some("office")), saved(), "http://office:7070", Some("of-office")),
            (global(None, Some("mine"), None), saved(), "http://home:7070", Some("mine")),
            (global(Some("http://x:1"), Some("mine"), None), saved(), "http://x:1", Some("mine")),
            (global(Some("http://office:7070/"), None, None), saved(), "http://office:7070/", Some("of-office")),
        ] {
            let resolved = resolve(&global, &saved).unwrap();
            assert_eq!((resolved.api.as_str(), resolved.token.as_deref()), (api, token), "{global:?}");
        }
    }

    #[test]
    fn a_saved_token_is_not_sent_to_another_node() {
        for context in [None, Some("home")] {
            let resolved = resolve(&global(Some("http://elsewhere:7070"), None, context), &saved()).unwrap();
            assert_eq!(resolved.token, None);
        }
    }

    #[test]
    fn a_context_that_is_not_there_is_told() {
        let failure = resolve(&global(None, None, Some("nope")), &saved()).unwrap_err();
        assert_eq!(failure.exit_code(), 5);
        assert!(failure.to_string().contains("`nope`"));
    }

    #[test]
    fn the_file_is_for_its_owner_alone_and_is_read_back() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("flotilla/contexts.toml");
        assert_eq!(Contexts::load(&path).unwrap(), Contexts::default());
        saved().store(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(Contexts::load(&path).unwrap(), saved());
    }

    #[test]
    fn a_damaged_or_newer_file_is_refused_and_left_as_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("contexts.toml");
        for text in ["version = ", "version = 9"] {
            fs::write(&path, text).unwrap();
            assert!(matches!(Contexts::load(&path), Err(Failure::Usage(_))));
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
    }
}
