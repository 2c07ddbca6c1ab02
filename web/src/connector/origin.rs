//! Which service a page belongs to: told by its origin, which a browser vouches for, and by nothing that the page says.

use flotilla_api::ServiceName;

/// The service whose page has the origin `page`, if that is one of the cluster whose dashboard and connector have the origin
/// `own`: `http://notes.home.localhost:7070` beside `http://app.home.localhost:7070`.
pub(super) fn service_of(page: &str, own: &str) -> Option<ServiceName> {
    let (own_scheme, own_host) = own.split_once("://")?;
    let (scheme, host) = page.split_once("://")?;
    let (service, domain) = host.split_once('.')?;
    (scheme == own_scheme && own_host.strip_prefix("app.")? == domain).then(|| service.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: &str = "http://app.home.localhost:7070";

    #[test]
    fn a_page_of_the_cluster_names_its_service() {
        assert_eq!(service_of("http://notes.home.localhost:7070", OWN).unwrap().as_str(), "notes");
    }

    #[test]
    fn any_other_page_names_none() {
        for page in [
            "https://notes.home.localhost:7070",
            "http://notes.home.localhost:7071",
            "http://notes.home.localhost",
            "http://notes.work.localhost:7070",
            "http://a.notes.home.localhost:7070",
            "http://app.home.localhost:7070",
            "http://home.localhost:7070",
            "http://noteshome.localhost:7070",
            "http://evil.example",
            "null",
            "",
        ] {
            assert_eq!(service_of(page, OWN), None, "{page}");
        }
        assert_eq!(service_of("http://notes.localhost:7070", "http://localhost:7070"), None);
    }
}
