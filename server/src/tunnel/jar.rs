//! The cookies of services, one jar for each person's device and service, because a browser drops `Set-Cookie` on the answers of
//! a service worker. `HttpOnly` cookies never leave the node.
//!
//! Jars are kept in files, so that a restart of the node signs nobody out of their applications.

use std::{
    collections::HashMap,
    convert::Infallible,
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use cookie_store::{Cookie, CookieStore};
use flotilla_api::{ServiceName, TokenId};
use sha2::{Digest, Sha256};
use url::Url;

use super::Site;

/// Browsers keep about 180 for a site.
const COOKIES_MAX: usize = 180;
/// Name, value and attributes (RFC 6265, 6.1). Bytes.
const COOKIE_MAX: usize = 4096;
/// Jars in memory. Those that no session uses are dropped beyond it, and read again from their files.
const JARS_MAX: usize = 512;
/// A jar's file: [`COOKIES_MAX`] cookies, as JSON. Bytes.
const FILE_MAX: u64 = 4 * 1024 * 1024;
/// A device that stayed away for longer signs in again.
const KEPT: Duration = Duration::from_secs(90 * 24 * 3600);
/// Cookies that are set in one go are written in one go.
const WRITE_AFTER: Duration = Duration::from_millis(250);

pub(super) struct Jars {
    directory: PathBuf,
    open: Mutex<HashMap<(TokenId, ServiceName), Arc<Jar>>>,
}

impl Jars {
    /// Jars in files of this directory, which is made when the first cookie is kept.
    pub(super) fn new(directory: PathBuf) -> Self {
        forget_old(&directory);
        Self { directory, open: Mutex::default() }
    }

    /// The jar of this token's holder. Renewing a token keeps its jar; another device has another.
    pub(super) fn jar(&self, token: &TokenId, service: &ServiceName, site: &Site) -> Arc<Jar> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (token.clone(), service.clone());
        if let Some(jar) = open.get(&key) {
            return Arc::clone(jar);
        }
        if open.len() >= JARS_MAX {
            open.retain(|_, jar| Arc::strong_count(jar) > 1);
        }
        // Ids are opaque, and a file name is not the place to find out what is in them.
        let digest = Sha256::digest(format!("{token}\n{service}"));
        let name: String = digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        let jar = Arc::new(Jar::read(self.directory.join(name), site.host(service)));
        open.insert(key, Arc::clone(&jar));
        jar
    }
}

/// The cookies of one service in one person's browser.
pub(super) struct Jar {
    host: String,
    file: PathBuf,
    store: Mutex<CookieStore>,
    write_waits: AtomicBool,
}

impl Jar {
    fn read(file: PathBuf, host: String) -> Self {
        let store = read_store(&file).unwrap_or_else(|error| {
            if error.kind() != io::ErrorKind::NotFound {
                tracing::warn!(%error, file = %file.display(), "kept cookies can't be read; the person signs in again");
            }
            CookieStore::default()
        });
        Self { host, file, store: Mutex::new(store), write_waits: AtomicBool::new(false) }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, CookieStore> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Browsers treat `localhost` as secure, and everything else is reached by HTTPS: `Secure` cookies always match.
    fn url(&self, path: &str) -> Option<Url> {
        Url::parse(&format!("https://{}{path}", self.host)).ok()
    }

    /// The `Cookie` header of a request for this path. Another site's form gets only what is meant for that (RFC 6265bis, 5.6.7.1;
    /// a cookie that says nothing is taken for `Lax`, as browsers do).
    pub(super) fn header(&self, path: &str, other_sites_form: bool) -> Option<String> {
        let url = self.url(path)?;
        let meant = |cookie: &Cookie<'_>| !other_sites_form || cookie.same_site().is_some_and(|site| site.is_none());
        Some(join(&self.lock(), &url, meant)).filter(|header| !header.is_empty())
    }

    /// What `document.cookie` shows at this path.
    pub(super) fn visible(&self, path: &str) -> String {
        let Some(url) = self.url(path) else { return String::new() };
        join(&self.lock(), &url, |cookie| cookie.http_only() != Some(true))
    }

    /// Takes the `Set-Cookie` headers of an answer. Tells whether there were any.
    pub(super) fn answered<'a>(self: &Arc<Self>, path: &str, set_cookies: impl Iterator<Item = &'a str>) -> bool {
        let Some(url) = self.url(path) else { return false };
        let mut changed = false;
        for text in set_cookies.filter(|text| text.len() <= COOKIE_MAX) {
            if let Ok(cookie) = Cookie::parse(text, &url) {
                self.insert(cookie.into_owned(), &url);
                changed = true;
            }
        }
        self.keep(changed);
        changed
    }

    /// Takes `document.cookie = text`, said by a page at this path (RFC 6265, 5.3: nothing `HttpOnly` is made or replaced so).
    pub(super) fn said_by_page(self: &Arc<Self>, path: &str, text: &str) {
        let Some(url) = self.url(path) else { return };
        if text.len() > COOKIE_MAX {
            return;
        }
        let Ok(cookie) = Cookie::parse(text, &url) else { return };
        let hidden = |kept: &Cookie<'_>| {
            kept.http_only() == Some(true) && kept.name() == cookie.name() && kept.path == cookie.path
        };
        if cookie.http_only() == Some(true) || self.lock().iter_unexpired().any(hidden) {
            return;
        }
        self.insert(cookie.into_owned(), &url);
        self.keep(true);
    }

    /// `Clear-Site-Data: "cookies"`.
    pub(super) fn clear(self: &Arc<Self>) {
        self.lock().clear();
        self.keep(true);
    }

    fn insert(&self, cookie: Cookie<'static>, url: &Url) {
        let mut store = self.lock();
        // Replacing or expiring one is always possible; what is refused is the one too many.
        let known = store.iter_any().any(|kept| kept.name() == cookie.name() && kept.path == cookie.path);
        if !known && store.iter_any().count() >= COOKIES_MAX {
            forget_expired(&mut store);
        }
        if !known && store.iter_any().count() >= COOKIES_MAX {
            tracing::debug!(host = self.host, "a cookie was refused: the jar is full");
            return;
        }
        // An error means that the cookie is for another host, or has expired: nothing to keep.
        let _ = store.insert(cookie, url);
    }

    fn keep(self: &Arc<Self>, changed: bool) {
        if !changed || self.write_waits.swap(true, Ordering::AcqRel) {
            return;
        }
        let jar = Arc::clone(self);
        tokio::spawn(async move {
            tokio::time::sleep(WRITE_AFTER).await;
            jar.write_waits.store(false, Ordering::Release);
            let written = tokio::task::spawn_blocking(move || {
                let mut bytes = Vec::new();
                let saved = cookie_store::serde::json::save_incl_expired_and_nonpersistent(&jar.lock(), &mut bytes);
                saved.map_err(io::Error::other).and_then(|()| write_private(&jar.file, &bytes))
            });
            if let Ok(Err(error)) = written.await {
                tracing::warn!(%error, "cookies can't be kept; a restart of the node will sign people out of applications");
            }
        });
    }
}

impl fmt::Debug for Jar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Jar").field("host", &self.host).finish_non_exhaustive()
    }
}

fn forget_expired(store: &mut CookieStore) {
    let unexpired: Vec<_> = store.iter_unexpired().cloned().map(Ok::<_, Infallible>).collect();
    let Ok(kept) = CookieStore::from_cookies(unexpired, false);
    *store = kept;
}

/// Longer paths first (RFC 6265, 5.4); names in order, so that the same jar always reads the same.
fn join(store: &CookieStore, url: &Url, shown: impl Fn(&Cookie<'_>) -> bool) -> String {
    let mut cookies: Vec<_> = store.matches(url).into_iter().filter(|cookie| shown(cookie)).collect();
    cookies.sort_by(|a, b| b.path.len().cmp(&a.path.len()).then_with(|| a.name().cmp(b.name())));
    let pairs: Vec<_> = cookies.iter().map(|cookie| format!("{}={}", cookie.name(), cookie.value())).collect();
    pairs.join("; ")
}

fn read_store(file: &Path) -> io::Result<CookieStore> {
    if fs::metadata(file)?.len() > FILE_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the file is too large to be ours"));
    }
    let bytes = fs::read(file)?;
    cookie_store::serde::json::load_all(bytes.as_slice())
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))
}

fn write_private(file: &Path, bytes: &[u8]) -> io::Result<()> {
    use std::{io::Write as _, os::unix::fs::DirBuilderExt as _};
    let directory = file.parent().ok_or(io::ErrorKind::NotFound)?;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    // Files of `tempfile` have mode 0600, and renaming leaves either the old cookies or the new ones.
    let mut new = tempfile::NamedTempFile::new_in(directory)?;
    new.write_all(bytes)?;
    new.persist(file).map_err(|error| error.error)?;
    Ok(())
}

fn forget_old(directory: &Path) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        let age = entry
            .metadata()
            .and_then(|data| data.modified())
            .ok()
            .and_then(|at| SystemTime::now().duration_since(at).ok());
        if age.is_some_and(|age| age > KEPT)
            && let Err(error) = fs::remove_file(entry.path())
        {
            tracing::debug!(%error, "old cookies can't be removed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn jar(directory: &Path) -> Arc<Jar> {
        let site = Site { scheme: "http", domain: "home.localhost:7070".to_owned() };
        Jars::new(directory.to_owned()).jar(&TokenId("t".to_owned()), &"notes".parse().unwrap(), &site)
    }

    #[tokio::test]
    async fn http_only_is_sent_to_the_service_and_hidden_from_the_page() {
        let directory = tempfile::tempdir().unwrap();
        let jar = jar(directory.path());
        assert!(jar.answered("/", ["sid=1; HttpOnly; Secure", "theme=dark"].into_iter()));
        assert_eq!(jar.header("/x", false).as_deref(), Some("sid=1; theme=dark"));
        assert_eq!(jar.visible("/x"), "theme=dark");
    }

    #[tokio::test]
    async fn a_page_can_not_replace_an_http_only_cookie() {
        let directory = tempfile::tempdir().unwrap();
        let jar = jar(directory.path());
        jar.answered("/", ["sid=1; HttpOnly; Path=/"].into_iter());
        jar.said_by_page("/", "sid=stolen; Path=/");
        jar.said_by_page("/", "other=1; HttpOnly");
        jar.said_by_page("/", "theme=light");
        assert_eq!(jar.header("/", false).as_deref(), Some("sid=1; theme=light"));
    }

    #[tokio::test]
    async fn another_sites_form_brings_only_what_is_meant_for_that() {
        let directory = tempfile::tempdir().unwrap();
        let jar = jar(directory.path());
        let set = ["a=1; SameSite=Strict", "b=2; SameSite=Lax", "c=3", "d=4; SameSite=None; Secure"];
        jar.answered("/", set.into_iter());
        assert_eq!(jar.header("/", true).as_deref(), Some("d=4"));
        assert_eq!(jar.header("/", false).as_deref(), Some("a=1; b=2; c=3; d=4"));
    }

    #[tokio::test]
    async fn paths_and_expiry_are_honoured() {
        let directory = tempfile::tempdir().unwrap();
        let jar = jar(directory.path());
        jar.answered("/deep/page", ["a=1", "b=2; Path=/", "c=3; Path=/; Max-Age=0"].into_iter());
        assert_eq!(jar.header("/", false).as_deref(), Some("b=2"));
        assert_eq!(jar.header("/deep/other?q", false).as_deref(), Some("a=1; b=2"));
        jar.answered("/", ["b=; Path=/; Expires=Thu, 01 Jan 1970 00:00:00 GMT"].into_iter());
        assert_eq!(jar.header("/", false), None);
    }

    #[tokio::test]
    async fn a_jar_takes_only_so_many_cookies() {
        let directory = tempfile::tempdir().unwrap();
        let jar = jar(directory.path());
        let many: Vec<_> = (0..2 * COOKIES_MAX).map(|n| format!("c{n}=1")).collect();
        jar.answered("/", many.iter().map(String::as_str));
        assert_eq!(jar.visible("/").split("; ").count(), COOKIES_MAX);
        jar.answered("/", std::iter::once("c0=2"));
        assert!(jar.visible("/").starts_with("c0=2"), "a known cookie can still change");
        let elsewhere: Vec<_> = (0..COOKIES_MAX).map(|n| format!("c0=1; Path=/{n}")).collect();
        jar.answered("/", elsewhere.iter().map(String::as_str));
        assert_eq!(
            jar.header("/7", false).map(|header| header.split("; ").count()),
            Some(COOKIES_MAX),
            "a path makes it another one"
        );
        let huge = format!("huge={}", "x".repeat(COOKIE_MAX));
        assert!(!jar.answered("/", std::iter::once(huge.as_str())));
    }

    #[tokio::test]
    async fn what_has_expired_takes_no_room() {
        let directory = tempfile::tempdir().unwrap();
        let jar = jar(directory.path());
        for n in 0..2 * COOKIES_MAX {
            jar.answered("/", [format!("state{n}=1"), format!("state{n}=; Max-Age=0")].iter().map(String::as_str));
        }
        jar.answered("/", std::iter::once("sid=1"));
        assert_eq!(jar.header("/", false).as_deref(), Some("sid=1"));
    }

    #[tokio::test]
    async fn cookies_survive_a_restart_and_are_private() {
        use std::os::unix::fs::PermissionsExt as _;
        let directory = tempfile::tempdir().unwrap();
        let kept = directory.path().join("cookies");
        let before = jar(&kept);
        before.answered("/", ["sid=1; HttpOnly", "gone=1; Max-Age=0"].into_iter());
        crate::tunnel::tests::wait_for("the cookies are written", || before.file.exists()).await;
        assert_eq!(fs::metadata(&before.file).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(&kept).unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(jar(&kept).header("/", false).as_deref(), Some("sid=1"));
    }

    #[tokio::test]
    async fn a_damaged_file_costs_its_cookies_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let first = jar(directory.path());
        fs::write(&first.file, b"{ not json").unwrap();
        assert_eq!(jar(directory.path()).header("/", false), None);
    }
}
