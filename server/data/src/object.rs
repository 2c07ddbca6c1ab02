//! How an object's bytes are laid down: compressed where that helps, and sealed where that is asked for.

use std::{
    borrow::Cow,
    cell::RefCell,
    io::{self, Cursor},
};

use zstd::bulk::{Compressor, Decompressor};

use crate::{Hash, seal};

/// Bytes of one object, uncompressed. Larger than any chunk; what claims more is damaged or forged.
pub(crate) const OBJECT_MAX: usize = 1024 * 1024;

/// Fast enough not to be noticed beside hashing, and most of what more effort would save.
const LEVEL: i32 = 1;

/// The first byte of what is laid down.
const AS_IT_IS: u8 = 0;
const ZSTD: u8 = 1;
/// What is sealed is one of the others ([`seal`]).
pub(crate) const SEALED: u8 = 2;

/// Why stored bytes are not the object that they are said to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Damaged {
    #[error("it has no bytes")]
    Empty,
    #[error("it is laid down in a way ({0}) that this version does not know")]
    Coding(u8),
    #[error("it can't be decompressed")]
    Compression,
    #[error("its bytes have another hash")]
    Hash,
    #[error("it is cut short, or too long")]
    Cut,
    #[error("what it refers to makes no sense")]
    References,
    #[error("it does not open with its key")]
    Seal,
    #[error("it is not sealed, and what needs it is")]
    NotSealed,
}

thread_local! {
    /// Making one takes longer than compressing a small object.
    static COMPRESSOR: RefCell<Option<Compressor<'static>>> = const { RefCell::new(None) };
    static DECOMPRESSOR: RefCell<Option<Decompressor<'static>>> = const { RefCell::new(None) };
}

fn compress(bytes: &[u8], to: &mut Cursor<Vec<u8>>) -> io::Result<usize> {
    COMPRESSOR.with_borrow_mut(|compressor| match compressor {
        Some(compressor) => compressor.compress_to_buffer(bytes, to),
        None => compressor.insert(Compressor::new(LEVEL)?).compress_to_buffer(bytes, to),
    })
}

fn decompress(compressed: &[u8], len: usize) -> io::Result<Vec<u8>> {
    DECOMPRESSOR.with_borrow_mut(|decompressor| match decompressor {
        Some(decompressor) => decompressor.decompress(compressed, len),
        None => decompressor.insert(Decompressor::new()?).decompress(compressed, len),
    })
}

/// The bytes to lay down for an object.
pub(crate) fn encode(bytes: &[u8]) -> Vec<u8> {
    let mut coded = Vec::with_capacity(1 + zstd::zstd_safe::compress_bound(bytes.len()));
    coded.push(ZSTD);
    let mut behind = Cursor::new(coded);
    behind.set_position(1);
    let compressed = compress(bytes, &mut behind);
    let mut coded = behind.into_inner();
    match compressed {
        // A sixteenth is the least that makes up for decompressing.
        Ok(len) if len < bytes.len() - bytes.len() / 16 => coded,
        _ => {
            coded.clear();
            coded.push(AS_IT_IS);
            coded.extend_from_slice(bytes);
            coded
        }
    }
}

/// The object of this name, from what was laid down.
///
/// # Errors
/// [`Damaged`] where it is not that object.
pub(crate) fn decode(coded: &[u8], name: &Hash) -> Result<Vec<u8>, Damaged> {
    named(coded, name).map(Cow::into_owned)
}

/// Is this the object of that name, as far as can be told without a key?
///
/// # Errors
/// [`Damaged`] where it is not.
pub(crate) fn verify(coded: &[u8], name: &Hash) -> Result<(), Damaged> {
    if seal::is_sealed(coded) { seal::verify(coded, name) } else { named(coded, name).map(drop) }
}

fn named<'a>(coded: &'a [u8], name: &Hash) -> Result<Cow<'a, [u8]>, Damaged> {
    let bytes = plain(coded)?;
    if Hash::of(&bytes) == *name { Ok(bytes) } else { Err(Damaged::Hash) }
}

/// The bytes of an object that is not sealed.
pub(crate) fn plain(coded: &[u8]) -> Result<Cow<'_, [u8]>, Damaged> {
    let (&coding, rest) = coded.split_first().ok_or(Damaged::Empty)?;
    match coding {
        AS_IT_IS => Ok(Cow::Borrowed(rest)),
        ZSTD => {
            let len = zstd::zstd_safe::get_frame_content_size(rest).ok().flatten().ok_or(Damaged::Compression)?;
            let len = usize::try_from(len).ok().filter(|len| *len <= OBJECT_MAX).ok_or(Damaged::Compression)?;
            decompress(rest, len).map(Cow::Owned).map_err(|_| Damaged::Compression)
        }
        other => Err(Damaged::Coding(other)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_compresses_takes_less_room() {
        assert!(encode(&[7; 10_000]).len() < 100);
    }

    proptest! {
        #[test]
        fn an_object_comes_back_as_it_was(bytes in proptest::collection::vec(0_u8..4, 0..5_000)) {
            prop_assert_eq!(decode(&encode(&bytes), &Hash::of(&bytes)), Ok(bytes));
        }

        #[test]
        fn a_bit_that_flips_is_noticed(bytes in proptest::collection::vec(any::<u8>(), 1..2_000), at in any::<prop::sample::Index>(), bit in 0_u32..8) {
            let name = Hash::of(&bytes);
            let mut coded = encode(&bytes);
            let at = at.index(coded.len());
            coded[at] ^= 1_u8 << bit;
            // A bit of the framing may mean nothing; the bytes are never other ones.
            prop_assert!(decode(&coded, &name).is_err() || decode(&coded, &name) == Ok(bytes));
        }

        #[test]
        fn noise_is_no_object(noise in proptest::collection::vec(any::<u8>(), 0..2_000)) {
            prop_assert!(decode(&noise, &Hash::of(b"something else")).is_err());
        }
    }
}
