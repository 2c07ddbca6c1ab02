//! Files that are made to hurt, files that chance makes, and the table of what is supported. What a file may say is in `keys`.

mod keys;

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn compose(text: &str) -> Result<Composition, ApiError> {
    let variables = BTreeMap::from([
        ("TAG".to_owned(), "1.27".to_owned()),
        ("EMPTY".to_owned(), String::new()),
        ("HOST_ONLY".to_owned(), "from outside".to_owned()),
    ]);
    read(text, Some("My Project"), &variables)
}

#[track_caller]
fn one(keys: &str) -> ServiceSpec {
    let text = format!("services:\n  web:\n    image: nginx\n{keys}volumes:\n  data:\n  other_data:\n");
    compose(&text).unwrap_or_else(|error| panic!("{error:?}\n{text}")).services.remove(0)
}

/// The error for a service `web` whose further keys begin at line 4.
#[track_caller]
fn refused(keys: &str) -> ApiError {
    let text = format!("services:\n  web:\n    image: nginx\n{keys}volumes:\n  data:\n");
    compose(&text).expect_err(&text)
}

#[track_caller]
fn refused_at(text: &str, code: ErrorCode, line: u32, column: u32, says: &str) {
    let error = compose(text).expect_err(text);
    assert_eq!((error.code, error.line, error.column), (code, Some(line), Some(column)), "{error:?}");
    assert!(error.message.contains(says), "{:?} does not say {says:?}", error.message);
}

/// However a file tries to be large, deep or slow, the answer comes at once.
#[test]
fn a_bomb_is_refused_before_it_goes_off() {
    let laughs: String = (1..30).fold("a0: &a0 [x, x, x, x]\n".to_owned(), |text, level| {
        let before = level - 1;
        format!("{text}a{level}: &a{level} [*a{before}, *a{before}, *a{before}, *a{before}]\n")
    });
    let merges: String = (1..200).fold("a0: &a0 {k: v}\n".to_owned(), |text, level| {
        format!("{text}a{level}: &a{level} {{<<: *a{}, k{level}: v}}\n", level - 1)
    });
    let strings = format!("a: &a {}\nb: [{}]\n", "x".repeat(100_000), "*a, ".repeat(1_000));
    let variables = format!("services: {{web: {{image: '{}'}}}}\n", "${NONE:-".repeat(20_000));
    let many = format!("services: {{web: {{image: '{}'}}}}\n", "${NONE:-x}".repeat(20_000));
    for (what, text) in [
        ("billion laughs", laughs),
        ("merged maps", merges),
        ("a long text, aliased", strings),
        ("deep flow", "[".repeat(100_000)),
        ("deep block", "- ".repeat(100_000)),
        ("deep keys", "? ".repeat(100_000)),
        ("many items", format!("a: [{}]", "a,".repeat(100_000))),
        ("many keys", (0..20_000).map(|index| format!("k{index}: v\n")).collect()),
        ("nested variables", variables),
        ("many variables", many),
        ("too large", " ".repeat(COMPOSE_MAX + 1)),
    ] {
        let begin = timing::begin();
        let error = compose(&text).expect_err(what);
        let took = timing::millis(begin);
        assert!(took < 1_000, "{what}: took {took} ms to say {error}");
        assert!(error.message.len() < 1_000, "{what}: says {} bytes", error.message.len());
    }
}

/// The one place in this crate that looks at a clock.
#[expect(clippy::disallowed_methods, clippy::disallowed_types, reason = "a test of how long something takes")]
mod timing {
    use std::time::Instant;

    pub(super) fn begin() -> Instant {
        Instant::now()
    }

    pub(super) fn millis(begin: Instant) -> u128 {
        begin.elapsed().as_millis()
    }
}

/// Pieces that YAML and Compose give a meaning, so that chance finds more than plain text.
fn fragment() -> impl Strategy<Value = String> {
    let known =
        prop::sample::select(SUPPORT).prop_map(|key| key.path.rsplit('.').next().unwrap_or_default().to_owned());
    let marks = prop::sample::select(vec![
        ": ",
        "\n",
        "\n  ",
        "\n    ",
        "\n      - ",
        "- ",
        "[",
        "]",
        "{",
        "}",
        ", ",
        "&a ",
        "*a",
        "<<: ",
        "|\n  ",
        ">\n",
        "\"",
        "'",
        "#",
        "? ",
        "!!str ",
        "!x ",
        "---\n",
        "${",
        "}",
        ":-",
        "$",
        "null",
        "true",
        "1",
        "0.5",
        "80:80",
        "data:/x",
        "é",
        "\t",
        "\0",
        "\u{feff}",
        "services:\n  web:\n    image: a\n    ",
    ])
    .prop_map(str::to_owned);
    prop_oneof![3 => marks, 2 => known, 1 => ".{0,8}"]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_text_makes_the_reader_panic(text in ".{0,400}") {
        let _ = compose(&text);
    }

    #[test]
    fn no_yaml_makes_the_reader_panic(fragments in prop::collection::vec(fragment(), 0..80)) {
        let _ = compose(&fragments.concat());
    }

    #[test]
    fn an_error_points_into_the_file(fragments in prop::collection::vec(fragment(), 0..40)) {
        let text = format!("services:\n  web:\n    image: a\n    {}", fragments.concat());
        if let Err(error) = compose(&text) {
            let lines = u32::try_from(text.split(['\n', '\r']).count()).unwrap();
            let line = error.line.expect("a file that was read has lines");
            prop_assert!((1..=lines + 1).contains(&line), "line {line} of {lines}: {error}");
        }
    }

    #[test]
    fn reading_is_a_function_of_the_text(fragments in prop::collection::vec(fragment(), 0..40)) {
        let text = fragments.concat();
        prop_assert_eq!(compose(&text), compose(&text));
    }
}

/// `FLOTILLA_BLESS=1` writes the page anew.
#[test]
#[expect(clippy::disallowed_methods, reason = "a test compares a file of the repository")]
fn the_documentation_is_the_table() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/COMPOSE.md");
    if std::env::var_os("FLOTILLA_BLESS").is_some() {
        std::fs::write(path, markdown()).unwrap();
    }
    let page = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        page == markdown(),
        "docs/COMPOSE.md differs from the table; `FLOTILLA_BLESS=1 cargo test -p flotilla-core` writes it"
    );
}

#[test]
fn the_table_names_each_key_once() {
    let mut paths: Vec<&str> = SUPPORT.iter().map(|key| key.path).collect();
    paths.sort_unstable();
    let before = paths.len();
    paths.dedup();
    assert_eq!(paths.len(), before);
}
