//! The shim in a service's documents: one script tag, before any script of the page.

use std::{
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use futures::Stream;
use lol_html::{
    AsciiCompatibleEncoding, MemorySettings,
    html_content::ContentType,
    send::{HtmlRewriter, Settings},
};

use super::body::{Body, BodyError};

/// What the rewriter may hold back: a tag that a chunk ended in. Pages with more than that in one tag are damaged. Bytes.
const HELD_BACK_MAX: usize = 2 * 1024 * 1024;

/// The tag that loads the shim.
pub(super) fn script_tag(nonce: Option<&str>) -> String {
    let nonce = nonce.map(|nonce| format!(" nonce=\"{nonce}\"")).unwrap_or_default();
    format!("<script src=\"/__flotilla/shim.js\"{nonce}></script>")
}

/// Puts `tag` into a document: at the beginning of its head, or before its first element if it has none.
///
/// Returns the body unchanged for an encoding that is not a superset of ASCII (UTF-16), which can't be rewritten on the way.
pub(super) fn inject(body: Body, charset: Option<&str>, tag: &str) -> Body {
    let encoding = match charset {
        Some(label) => encoding_of(label),
        None => Some(AsciiCompatibleEncoding::utf_8()),
    };
    let Some(encoding) = encoding else { return body };
    Box::pin(Injected { body, rewriter: Some(rewriter(encoding, tag)) })
}

fn encoding_of(label: &str) -> Option<AsciiCompatibleEncoding> {
    AsciiCompatibleEncoding::new(encoding_rs::Encoding::for_label(label.trim_matches('"').as_bytes())?)
}

type Sink = Box<dyn FnMut(&[u8]) + Send>;

struct Rewriter {
    inner: HtmlRewriter<'static, Sink>,
    output: Arc<Mutex<Vec<u8>>>,
}

fn rewriter(encoding: AsciiCompatibleEncoding, tag: &str) -> Rewriter {
    let output = Arc::new(Mutex::new(Vec::new()));
    let done = Arc::new(AtomicBool::new(false));
    let (on_element, on_end) = (Arc::clone(&done), done);
    let (tag, last_tag) = (tag.to_owned(), tag.to_owned());
    let element = lol_html::element!("*", move |element| {
        match element.tag_name().as_str() {
            _ if on_element.load(Ordering::Relaxed) => {}
            // The head may still come, or be left out.
            "html" => {}
            "head" => {
                on_element.store(true, Ordering::Relaxed);
                element.prepend(&tag, ContentType::Html);
            }
            _ => {
                on_element.store(true, Ordering::Relaxed);
                element.before(&tag, ContentType::Html);
            }
        }
        Ok(())
    });
    let end = lol_html::end!(move |end| {
        if !on_end.load(Ordering::Relaxed) {
            end.append(&last_tag, ContentType::Html);
        }
        Ok(())
    });
    let settings = Settings::new_send()
        .append_element_content_handler(element)
        .append_document_content_handler(end)
        .with_encoding(encoding)
        .with_strict(false)
        .with_adjust_charset_on_meta_tag(true)
        .with_memory_settings(
            MemorySettings::new()
                .with_max_allowed_memory_usage(HELD_BACK_MAX)
                .with_graceful_bail_out_on_memory_limit_exceeded(true),
        );
    let sink_output = Arc::clone(&output);
    let sink: Sink =
        Box::new(move |chunk| sink_output.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(chunk));
    Rewriter { inner: HtmlRewriter::new(settings, sink), output }
}

struct Injected {
    body: Body,
    /// Gone once the document has ended.
    rewriter: Option<Rewriter>,
}

impl Injected {
    fn step(&mut self, chunk: Option<&[u8]>) -> Result<Bytes, BodyError> {
        let Some(rewriter) = &mut self.rewriter else { return Ok(Bytes::new()) };
        let output = Arc::clone(&rewriter.output);
        let rewritten = match chunk {
            Some(chunk) => rewriter.inner.write(chunk),
            None => match self.rewriter.take() {
                Some(rewriter) => rewriter.inner.end(),
                None => Ok(()),
            },
        };
        rewritten.map_err(|error| BodyError::Rewriting(error.to_string()))?;
        Ok(std::mem::take(&mut *output.lock().unwrap_or_else(PoisonError::into_inner)).into())
    }
}

impl Stream for Injected {
    type Item = Result<Bytes, BodyError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if self.rewriter.is_none() {
                return Poll::Ready(None);
            }
            let rewritten = match ready!(self.body.as_mut().poll_next(cx)) {
                Some(Ok(chunk)) => self.step(Some(&chunk)),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => self.step(None),
            };
            match rewritten {
                Ok(bytes) if bytes.is_empty() => {}
                other => return Poll::Ready(Some(other)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::TryStreamExt;
    use proptest::prelude::*;

    use super::*;

    const TAG: &str = "<script src=\"/__flotilla/shim.js\"></script>";

    fn injected(chunks: Vec<Vec<u8>>, charset: Option<&str>) -> Vec<u8> {
        let body: Body = Box::pin(futures::stream::iter(chunks.into_iter().map(|chunk| Ok(Bytes::from(chunk)))));
        let body = inject(body, charset, &script_tag(None));
        let read = body.try_fold(Vec::new(), |mut all, chunk| async move {
            all.extend_from_slice(&chunk);
            Ok(all)
        });
        futures::executor::block_on(read).unwrap()
    }

    fn injected_text(html: &str) -> String {
        String::from_utf8(injected(vec![html.as_bytes().to_vec()], Some("utf-8"))).unwrap()
    }

    #[test]
    fn the_shim_comes_before_any_script_of_the_page() {
        assert_eq!(
            injected_text("<!doctype html><html><head><script>a</script></head></html>"),
            format!("<!doctype html><html><head>{TAG}<script>a</script></head></html>")
        );
        assert_eq!(injected_text("<!doctype html><p>hi"), format!("<!doctype html>{TAG}<p>hi"));
        assert_eq!(injected_text("<html><body>x</body></html>"), format!("<html>{TAG}<body>x</body></html>"));
        assert_eq!(injected_text("just text"), format!("just text{TAG}"));
        assert_eq!(injected_text(""), TAG);
    }

    #[test]
    fn a_nonce_is_an_attribute_of_the_tag() {
        assert_eq!(script_tag(Some("abc")), "<script src=\"/__flotilla/shim.js\" nonce=\"abc\"></script>");
    }

    #[test]
    fn an_encoding_that_can_not_be_rewritten_passes_untouched() {
        let utf16: Vec<u8> = "<head>".encode_utf16().flat_map(u16::to_le_bytes).collect();
        assert_eq!(injected(vec![utf16.clone()], Some("utf-16le")), utf16);
        let latin1 = b"<head>caf\xe9".to_vec();
        assert_eq!(injected(vec![latin1], Some("iso-8859-1")), [b"<head>", TAG.as_bytes(), b"caf\xe9"].concat());
    }

    proptest! {
        #[test]
        fn chunks_make_no_difference(cuts in proptest::collection::vec(0_usize..80, 0..6)) {
            let html = "<!doctype html><html lang=en><!-- c --><head><title>t</title></head><body>text & more</body></html>";
            let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(html.len())).collect();
            cuts.extend([0, html.len()]);
            cuts.sort_unstable();
            let chunks = cuts.windows(2).map(|pair| html.as_bytes()[pair[0]..pair[1]].to_vec()).collect();
            prop_assert_eq!(String::from_utf8(injected(chunks, None)).unwrap(), injected_text(html));
        }
    }
}
