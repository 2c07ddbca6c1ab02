//! Which site a request is for, from its host; and whether the page that sends it may.

use std::net::{Ipv4Addr, SocketAddr};

use flotilla_api::{ApiError, ErrorCode, ServiceName};
use http::{HeaderMap, Uri, header, uri::Authority};

/// Host names of this node: `app.<domain>` for the dashboard, `<service>.<domain>` for services.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Domain {
    /// In lower case, without a port.
    host: String,
    /// As it stands in URLs; absent where it is the scheme's own.
    port: Option<u16>,
    /// HTTPS rather than HTTP.
    secure: bool,
}

/// Whom a request is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Site {
    /// `app.<domain>`: dashboard, connector, API and signalling.
    App,
    /// The machine itself, by address or as `localhost`: API and probes; pages are found at [`Site::App`].
    Direct,
    /// `<service>.<domain>`: bootstrap files alone.
    Service(ServiceName),
}

impl Domain {
    /// `setting` is what the operator chose; otherwise the cluster's name under `localhost` (RFC 6761, 6.3), which browsers
    /// resolve to this machine and hold for a secure context.
    pub fn new(setting: Option<&str>, cluster: &str, listen: SocketAddr, secure: bool) -> Self {
        match setting {
            Some(text) => {
                let (host, port) = text.split_once(':').map_or((text, None), |(host, port)| (host, port.parse().ok()));
                Self { host: host.to_ascii_lowercase(), port, secure }
            }
            None => Self { host: format!("{cluster}.localhost"), port: Some(listen.port()), secure },
        }
        .without_default_port()
    }

    fn without_default_port(mut self) -> Self {
        let own = if self.secure { 443 } else { 80 };
        self.port = self.port.filter(|port| *port != own);
        self
    }

    pub fn dashboard_url(&self) -> String {
        self.url("app")
    }

    pub fn service_url(&self, service: &ServiceName) -> String {
        self.url(service.as_str())
    }

    pub fn invitation_url(&self, invitation: &str) -> String {
        format!("{}#invite={invitation}", self.dashboard_url())
    }

    pub fn scheme(&self) -> &'static str {
        if self.secure { "https" } else { "http" }
    }

    fn url(&self, label: &str) -> String {
        format!("{}://{label}.{self}/", self.scheme())
    }

    /// # Errors
    /// A host that is none of ours is refused, so that a name that points here (DNS rebinding) reaches nothing.
    pub fn site(&self, authority: &Authority) -> Result<Site, ApiError> {
        let host = authority.host().to_ascii_lowercase();
        if host == "localhost" || host == "ip6-localhost" || is_address(&host) {
            return Ok(Site::Direct);
        }
        let label = host.strip_suffix(&self.host).and_then(|rest| rest.strip_suffix('.'));
        match label {
            Some("app") => Ok(Site::App),
            Some(label) => match label.parse() {
                Ok(service) => Ok(Site::Service(service)),
                Err(_) => Err(self.unknown(&host)),
            },
            None if host == self.host => Ok(Site::Direct),
            None => Err(self.unknown(&host)),
        }
    }

    fn unknown(&self, host: &str) -> ApiError {
        let shown: String = host.chars().take(100).collect();
        ApiError::new(
            ErrorCode::InvalidRequest,
            format!("`{}` is no host of this node; open {}", shown.escape_debug(), self.dashboard_url()),
        )
    }
}

impl std::fmt::Display for Domain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.host)?;
        match self.port {
            Some(port) => write!(f, ":{port}"),
            None => Ok(()),
        }
    }
}

/// An address can't be made to point elsewhere, as a name can.
fn is_address(host: &str) -> bool {
    let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    match bare {
        Some(bare) => bare.parse::<std::net::Ipv6Addr>().is_ok(),
        None => host.parse::<Ipv4Addr>().is_ok(),
    }
}

/// The host and port that the client asked for.
///
/// # Errors
/// None, several, or what is no host.
pub(super) fn authority_of(uri: &Uri, headers: &HeaderMap) -> Result<Authority, ApiError> {
    let refuse = |message: &str| ApiError::new(ErrorCode::InvalidRequest, message);
    // RFC 9112, 3.2.2: the absolute form wins over the header.
    if let Some(authority) = uri.authority() {
        return Ok(authority.clone());
    }
    let mut values = headers.get_all(header::HOST).iter();
    let value = values.next().ok_or_else(|| refuse("the request names no host; send a `Host` header"))?;
    if values.next().is_some() {
        return Err(refuse("the request names several hosts; send one `Host` header"));
    }
    let authority: Authority = value
        .as_bytes()
        .try_into()
        .map_err(|_| refuse("the `Host` header is no host; send the name in the address"))?;
    if authority.as_str().contains('@') {
        return Err(refuse("the `Host` header is no host; send the name in the address"));
    }
    Ok(authority)
}

/// Refuses what a page of another origin sends, whatever token it has: a browser says who is asking (RFC 6454, Fetch Metadata).
///
/// # Errors
/// The origin of the page is not the host that it asks.
pub(super) fn check_origin(headers: &HeaderMap, authority: &Authority) -> Result<(), ApiError> {
    let refuse = || {
        Err(ApiError::new(
            ErrorCode::InvalidRequest,
            "a page of another site may not use this node's API; use the dashboard, or the command line",
        ))
    };
    if let Some(origin) = headers.get(header::ORIGIN) {
        let same = origin.to_str().ok().and_then(|origin| origin.split_once("://")).is_some_and(|(scheme, host)| {
            matches!(scheme, "http" | "https") && host.eq_ignore_ascii_case(authority.as_str())
        });
        if !same {
            return refuse();
        }
    }
    // Of its own pages and of none (typed, bookmarked, not a browser).
    match headers.get("sec-fetch-site").map(http::HeaderValue::as_bytes) {
        None | Some(b"same-origin" | b"none") => Ok(()),
        Some(_) => refuse(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn domain() -> Domain {
        Domain::new(None, "home", "127.0.0.1:7070".parse().unwrap(), false)
    }

    fn site(host: &str) -> Result<Site, ApiError> {
        domain().site(&host.parse().unwrap())
    }

    #[test]
    fn a_host_says_which_site() {
        assert_eq!(site("app.home.localhost:7070"), Ok(Site::App));
        assert_eq!(site("APP.Home.localhost:7070"), Ok(Site::App));
        assert_eq!(site("notes.home.localhost:7070"), Ok(Site::Service("notes".parse().unwrap())));
        for direct in ["localhost:7070", "127.0.0.1", "127.0.0.1:1", "[::1]:7070", "192.168.1.5:7070", "home.localhost"]
        {
            assert_eq!(site(direct), Ok(Site::Direct), "{direct}");
        }
    }

    #[test]
    fn a_name_that_only_points_here_is_refused() {
        for foreign in [
            "evil.example",
            "app.away.localhost",
            "home.localhost.evil.example",
            "xhome.localhost",
            "a.b.home.localhost",
            "-a.home.localhost",
            "127.0.0.1.evil.example",
            ".home.localhost",
        ] {
            let Ok(authority) = foreign.parse::<Authority>() else { continue };
            assert!(domain().site(&authority).is_err(), "{foreign}");
        }
    }

    #[test]
    fn a_domain_that_was_set_replaces_the_local_one() {
        let domain = Domain::new(Some("home.example.org:443"), "home", "0.0.0.0:7070".parse().unwrap(), true);
        assert_eq!(domain.dashboard_url(), "https://app.home.example.org/");
        assert_eq!(domain.site(&"app.home.example.org".parse().unwrap()), Ok(Site::App));
        assert!(domain.site(&"app.home.localhost:7070".parse().unwrap()).is_err());
    }

    #[test]
    fn only_a_page_of_the_same_host_may_ask() {
        let authority: Authority = "app.home.localhost:7070".parse().unwrap();
        let with = |name: &'static str, value: &'static str| {
            HeaderMap::from_iter([(name.parse().unwrap(), value.parse().unwrap())])
        };
        check_origin(&HeaderMap::new(), &authority).unwrap();
        check_origin(&with("origin", "http://app.home.localhost:7070"), &authority).unwrap();
        check_origin(&with("sec-fetch-site", "same-origin"), &authority).unwrap();
        for foreign in [
            "null",
            "http://notes.home.localhost:7070",
            "http://app.home.localhost",
            "http://app.home.localhost:7070.evil.example",
            "file://app.home.localhost:7070",
        ] {
            assert!(check_origin(&with("origin", foreign), &authority).is_err(), "{foreign}");
        }
        for foreign in ["same-site", "cross-site"] {
            assert!(check_origin(&with("sec-fetch-site", foreign), &authority).is_err(), "{foreign}");
        }
    }
}
