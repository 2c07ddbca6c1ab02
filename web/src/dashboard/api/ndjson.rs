//! Newline-delimited JSON out of chunks that end anywhere.

/// A longer line is no line of ours. Bytes.
pub(crate) const LINE_MAX: usize = 1024 * 1024;

#[derive(Debug, Default)]
pub(crate) struct Splitter {
    rest: Vec<u8>,
}

/// The stream holds a line longer than [`LINE_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LineTooLong;

impl Splitter {
    /// The complete lines that `chunk` brings; blank ones, which keep a connection alive, are left out.
    ///
    /// # Errors
    /// The line that has begun is too long to be one of ours.
    pub(crate) fn push(&mut self, chunk: &[u8]) -> Result<Vec<Vec<u8>>, LineTooLong> {
        let mut lines = Vec::new();
        let mut parts = chunk.split(|byte| *byte == b'\n').peekable();
        while let Some(part) = parts.next() {
            if self.rest.len() + part.len() > LINE_MAX {
                return Err(LineTooLong);
            }
            self.rest.extend_from_slice(part);
            if parts.peek().is_some() {
                let line = std::mem::take(&mut self.rest);
                if !line.trim_ascii().is_empty() {
                    lines.push(line);
                }
            }
        }
        Ok(lines)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_whole_however_the_chunks_fall() {
        let text = b"{\"a\":1}\n\n{\"b\":2}\r\n{\"c\"";
        for size in 1..text.len() {
            let mut splitter = Splitter::default();
            let lines: Vec<_> = text.chunks(size).flat_map(|chunk| splitter.push(chunk).unwrap()).collect();
            assert_eq!(lines, [b"{\"a\":1}".to_vec(), b"{\"b\":2}\r".to_vec()], "in chunks of {size}");
        }
    }

    #[test]
    fn an_endless_line_is_refused() {
        let mut splitter = Splitter::default();
        splitter.push(&vec![b'x'; LINE_MAX]).unwrap();
        assert_eq!(splitter.push(b"x"), Err(LineTooLong));
    }
}
