use std::collections::BTreeSet;

use super::*;

fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
    pairs.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap())).collect()
}

fn header<'a>(response: &'a Response, name: &str) -> &'a str {
    response.headers().get(name).map_or("", |value| value.to_str().unwrap())
}

#[test]
fn every_page_that_is_no_file_is_the_dashboard() {
    for path in ["/", "/services/notes", "/sign-in"] {
        let response = app(&Method::GET, path, &headers(&[("host", "app.home.localhost:7070")]));
        assert_eq!(response.status(), StatusCode::OK, "{path}");
        assert_eq!(header(&response, "content-type"), "text/html; charset=utf-8", "{path}");
        assert_eq!(header(&response, "cache-control"), "no-cache", "{path}");
        assert!(header(&response, "content-security-policy").contains("frame-ancestors 'none'"), "{path}");
    }
}

#[test]
fn a_missing_file_is_not_answered_with_a_page() {
    let response = app(&Method::GET, "/assets/dashboard-0.js", &HeaderMap::new());
    assert_eq!(response.status(), StatusCode::NOT_FOUND);
    assert_eq!(service(&Method::GET, "/__flotilla/none.js", &HeaderMap::new()).status(), StatusCode::NOT_FOUND);
}

#[test]
fn files_named_by_their_hash_are_cached_for_ever() {
    // The parts of a program name each other: all have one hash of the whole.
    let part_of = |path: &'static str| {
        let rest = path.strip_prefix("/assets/dashboard-").filter(|rest| !rest.ends_with(".css"))?;
        rest.split(['-', '.']).next()
    };
    let programs: BTreeSet<_> = embedded::all().filter_map(|asset| part_of(asset.path)).collect();
    assert!(programs.len() == 1 && programs.iter().all(|hash| hash.len() == 16), "{programs:?}");
    for asset in embedded::all().filter(|asset| asset.path.starts_with("/assets/")) {
        assert_eq!(asset.caching, Caching::Immutable);
        let named = part_of(asset.path).is_some() || asset.path.contains(asset.hash);
        assert!(named, "{} is not named {}", asset.path, asset.hash);
        assert!(header(&app(&Method::GET, asset.path, &HeaderMap::new()), "cache-control").contains("immutable"));
    }
}

#[test]
fn pages_refer_to_files_that_exist() {
    for page in embedded::all().filter(|asset| is_page(asset)) {
        let text = std::str::from_utf8(page.identity).unwrap();
        for reference in text.split('"').filter(|part| part.starts_with("/assets/")) {
            assert!(embedded::of_app(reference).is_some(), "{} refers to {reference}", page.path);
        }
    }
}

#[test]
fn the_smallest_accepted_encoding_is_sent() {
    for (accept, encoding) in [
        ("gzip, deflate, br, zstd", "br"),
        ("gzip", "gzip"),
        ("br;q=0, gzip;q=0.5", "gzip"),
        ("identity", ""),
        ("", ""),
    ] {
        let response = app(&Method::GET, "/", &headers(&[("accept-encoding", accept)]));
        assert_eq!(header(&response, "content-encoding"), encoding, "{accept}");
        assert_eq!(header(&response, "vary"), "accept-encoding");
    }
}

#[test]
fn what_did_not_change_is_not_sent_again() {
    let first = app(&Method::GET, "/", &headers(&[("accept-encoding", "br")]));
    let tag = header(&first, "etag");
    for known in [tag.to_owned(), format!("W/{tag}"), format!("\"other\", {tag}"), "*".to_owned()] {
        let again = app(&Method::GET, "/", &headers(&[("accept-encoding", "br"), ("if-none-match", &known)]));
        assert_eq!(again.status(), StatusCode::NOT_MODIFIED, "{known}");
        assert_eq!(header(&again, "etag"), tag);
    }
    let other_encoding = app(&Method::GET, "/", &headers(&[("accept-encoding", "gzip"), ("if-none-match", tag)]));
    assert_eq!(other_encoding.status(), StatusCode::OK);
}

#[test]
fn the_connector_is_framed_by_services_of_its_own_cluster_only() {
    let ancestors = |host: &str| {
        let response = app(&Method::GET, "/connector", &headers(&[("host", host)]));
        header(&response, "content-security-policy").split_once("frame-ancestors ").unwrap().1.to_owned()
    };
    assert_eq!(ancestors("app.home.localhost:7070"), "*.home.localhost:7070");
    for stranger in ["localhost:7070", "127.0.0.1:7070", "app.home; script-src *", "app.*"] {
        assert_eq!(ancestors(stranger), "'none'", "{stranger}");
    }
}

#[test]
fn every_navigation_to_a_service_gets_the_bootstrap_page() {
    for path in ["/", "/deep/link?x=1", "/index.html"] {
        let response = service(&Method::GET, path, &headers(&[("sec-fetch-mode", "navigate")]));
        assert_eq!(response.status(), StatusCode::OK, "{path}");
        assert_eq!(header(&response, "content-type"), "text/html; charset=utf-8", "{path}");
    }
}

#[test]
fn a_request_that_passed_the_service_worker_by_is_told_so() {
    let response = service(&Method::GET, "/style.css", &headers(&[("sec-fetch-mode", "no-cors")]));
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(service(&Method::POST, "/", &HeaderMap::new()).status(), StatusCode::METHOD_NOT_ALLOWED);
}

#[test]
fn the_service_worker_may_control_its_whole_origin() {
    let response = service(&Method::GET, "/__flotilla/sw.js", &headers(&[("sec-fetch-mode", "same-origin")]));
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(header(&response, "service-worker-allowed"), "/");
    assert_eq!(header(&response, "cache-control"), "no-cache");
}
