use leptos::prelude::*;
use qrcode::{Color, EcLevel, QrCode};

/// Modules of empty space that a reader needs around the code (ISO/IEC 18004, 5.3.8).
const QUIET: usize = 4;

/// A QR code of `text`, or nothing where it does not fit into one; the text itself always stands beside it.
#[component]
pub(crate) fn QrImage(#[prop(into)] text: String, label: &'static str) -> impl IntoView {
    path(&text).map(|(size, path)| {
        view! {
            <svg class="qr" role="img" aria-label=label viewBox=format!("0 0 {size} {size}") shape-rendering="crispEdges">
                <rect width="100%" height="100%" fill="#fff"></rect>
                <path d=path fill="#000"></path>
            </svg>
        }
    })
}

/// Width of the picture in modules, and one path of all dark ones.
fn path(text: &str) -> Option<(usize, String)> {
    let code = QrCode::with_error_correction_level(text, EcLevel::M).ok()?;
    let width = code.width();
    let mut path = String::new();
    for (index, color) in code.to_colors().into_iter().enumerate() {
        if color == Color::Dark {
            path += &format!("M{} {}h1v1h-1z", index % width + QUIET, index / width + QUIET);
        }
    }
    Some((width + 2 * QUIET, path))
}

#[cfg(test)]
mod tests {
    use super::path;

    #[test]
    fn a_code_has_its_three_corners_and_a_quiet_zone() {
        let (size, path) = path("http://app.home.localhost:7070/#invite=0123456789abcdef.secret").unwrap();
        assert!(path.starts_with("M4 4h1v1h-1z"), "the first corner is dark");
        let last = size - 5;
        assert!(path.contains(&format!("M{last} 4h1")) && path.contains(&format!("M4 {last}h1")));
        assert!(!path.contains("M0 ") && !path.contains(&format!("M{} ", size - 1)));
    }

    #[test]
    fn a_text_beyond_any_code_has_no_picture() {
        assert_eq!(path(&"x".repeat(5000)), None);
    }
}
