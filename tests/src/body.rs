//! Bodies that both ends can make by themselves, so that what arrived is checked without a second copy.

use bytes::Bytes;
use sha2::{Digest, Sha256};

/// What `/numbers.txt` of the nginx image holds: so many bytes of the counting numbers, one a line.
pub const NUMBERS_LEN: usize = 200_000_000;

const CHUNK: usize = 256 * 1024;

/// The counting numbers from 1, one a line, in chunks: `1\n2\n3\n…`, `len` bytes in all.
pub fn numbers(len: usize) -> impl Iterator<Item = Bytes> + Send {
    let mut next = 1_u64;
    let mut left = len;
    std::iter::from_fn(move || {
        if left == 0 {
            return None;
        }
        let mut chunk = Vec::with_capacity(CHUNK + 16);
        while chunk.len() < CHUNK.min(left) {
            chunk.extend_from_slice(next.to_string().as_bytes());
            chunk.push(b'\n');
            next += 1;
        }
        chunk.truncate(left);
        left -= chunk.len();
        Some(Bytes::from(chunk))
    })
}

/// Bytes that do not compress and differ at every offset: byte `i` depends on `i / 8` alone, so any range can be made by itself.
pub fn noise(from: u64, len: usize) -> Bytes {
    let mut bytes = Vec::with_capacity(len + 16);
    let mut word = from / 8;
    while bytes.len() < len + 8 {
        bytes.extend_from_slice(&mix(word).to_le_bytes());
        word += 1;
    }
    let skip = (from % 8) as usize;
    Bytes::from(bytes).slice(skip..skip + len)
}

/// `len` bytes of noise from offset `from`, in chunks.
pub fn noise_chunks(from: u64, len: u64) -> impl Iterator<Item = Bytes> + Send {
    let mut at = from;
    let end = from + len;
    std::iter::from_fn(move || {
        let next = (end - at).min(CHUNK as u64);
        let chunk = noise(at, next as usize);
        at += next;
        (next > 0).then_some(chunk)
    })
}

pub fn sha256(chunks: impl IntoIterator<Item = impl AsRef<[u8]>>) -> String {
    let mut hash = Sha256::new();
    for chunk in chunks {
        hash.update(chunk);
    }
    hex(&hash.finalize())
}

pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The finaliser of SplitMix64: a bijection whose output looks random.
fn mix(index: u64) -> u64 {
    let mut z = index.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_the_length_asked_for() {
        assert_eq!(numbers(7).flatten().collect::<Vec<_>>(), b"1\n2\n3\n4");
        assert_eq!(numbers(3 * CHUNK + 1).map(|chunk| chunk.len()).sum::<usize>(), 3 * CHUNK + 1);
    }

    #[test]
    fn any_range_of_noise_is_a_part_of_the_whole() {
        let whole = noise(0, 4096);
        for (from, len) in [(0, 1), (7, 9), (8, 8), (1001, 77), (4095, 1)] {
            assert_eq!(noise(from, len), whole[from as usize..][..len]);
        }
        assert_eq!(sha256(noise_chunks(3, 1000)), sha256([&whole[3..1003]]));
    }
}
