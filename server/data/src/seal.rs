//! Sealing: objects that only who has the key can read, and everybody can keep.
//!
//! ```text
//! coding (1)  key (8)  count (4)  count x (name (32), kind (1))  nonce (24)  ciphertext
//! ```
//!
//! The ciphertext is what [`crate::object`] lays down for the plain bytes, under XChaCha20-Poly1305, and all that stands before it is associated
//! data. The references are in the clear: a machine without the key follows them to fetch, check, keep and free a whole generation.
//! They are names of sealed objects and say nothing of what is in those, but how many there are.
//!
//! The nonce is a keyed hash of all that it is for. So what is equal under one key is one object, as without a key; and nothing ever
//! depends on a counter, or on a random number being one (SIV, RFC 5297, of which the extended nonce makes do with one pass).
//!
//! A sealed object's name is a hash of the sealed bytes in a domain of its own: who has no key can check it, and no plain object has
//! such a name.

use std::{borrow::Cow, fmt};

use chacha20poly1305::{
    KeyInit as _, XChaCha20Poly1305, XNonce,
    aead::{Aead as _, Payload},
};
use zeroize::Zeroizing;

use crate::{
    Hash,
    object::{self, Damaged, OBJECT_MAX, SEALED},
};

/// Domains of BLAKE3's key derivation. Never changed.
const NAME_CONTEXT: &str = "flotilla 2026-11-29 name of a sealed object 1";
const DATA_CONTEXT: &str = "flotilla 2026-11-29 key of data from a key of the cluster 1";
const NONCE_CONTEXT: &str = "flotilla 2026-11-29 key of nonces from a key of data 1";

const NONCE_LEN: usize = 24;
const TAG_LEN: usize = 16;

/// Before the references.
const HEAD_LEN: usize = 1 + KeyId::LEN + 4;
const REFERENCE_LEN: usize = Hash::LEN + 1;

/// Names that one object refers to: a chunk of a list or a directory has 16 KiB, in which there are not as many.
pub(crate) const REFERENCES_MAX: usize = 1024;

/// Bytes of one object as it is laid down, sealed or not.
pub const LAID_DOWN_MAX: usize = HEAD_LEN + REFERENCES_MAX * REFERENCE_LEN + NONCE_LEN + 1 + OBJECT_MAX + TAG_LEN;

/// Which key something is sealed with. It says nothing of the key, and is in the clear.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(pub [u8; Self::LEN]);

impl KeyId {
    /// Bytes.
    pub const LEN: usize = 8;
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyId({self})")
    }
}

/// What objects are sealed and opened with.
#[derive(Clone)]
pub struct Key {
    id: KeyId,
    data: Zeroizing<[u8; 32]>,
    nonces: Zeroizing<[u8; 32]>,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({})", self.id)
    }
}

impl Key {
    /// From a key that is used for something else as well; whoever has this one can't tell that.
    pub fn derive(id: KeyId, from: &[u8; 32]) -> Self {
        let data = Zeroizing::new(blake3::derive_key(DATA_CONTEXT, from));
        let nonces = Zeroizing::new(blake3::derive_key(NONCE_CONTEXT, &*data));
        Self { id, data, nonces }
    }

    pub fn id(&self) -> KeyId {
        self.id
    }

    fn cipher(&self) -> XChaCha20Poly1305 {
        XChaCha20Poly1305::new(&(*self.data).into())
    }
}

/// Has an object references itself?
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    Leaf,
    Node,
}

/// An object that another one needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    pub name: Hash,
    pub kind: Kind,
}

/// Is what is laid down sealed?
pub fn is_sealed(coded: &[u8]) -> bool {
    coded.first() == Some(&SEALED)
}

/// The name of an object that is sealed.
pub(crate) fn name(coded: &[u8]) -> Hash {
    Hash(*blake3::Hasher::new_derive_key(NAME_CONTEXT).update(coded).finalize().as_bytes())
}

/// What is laid down for an object, and its name.
///
/// # Errors
/// [`Damaged::References`] where there are more than one may have.
pub(crate) fn seal(plain: &[u8], references: &[Reference], key: &Key) -> Result<(Hash, Vec<u8>), Damaged> {
    if references.len() > REFERENCES_MAX {
        return Err(Damaged::References);
    }
    let coded = object::encode(plain);
    let mut sealed =
        Vec::with_capacity(HEAD_LEN + references.len() * REFERENCE_LEN + NONCE_LEN + coded.len() + TAG_LEN);
    sealed.push(SEALED);
    sealed.extend_from_slice(&key.id.0);
    sealed.extend_from_slice(&(references.len() as u32).to_be_bytes());
    for Reference { name, kind } in references {
        sealed.extend_from_slice(name.as_bytes());
        sealed.push(u8::from(*kind == Kind::Node));
    }
    // Of the very bytes that are encrypted: two that differ never share a nonce, whatever made them of one object.
    let mut hasher = blake3::Hasher::new_keyed(&key.nonces);
    let mut nonce = [0; NONCE_LEN];
    hasher.update(&(sealed.len() as u64).to_be_bytes()).update(&sealed).update(&coded).finalize_xof().fill(&mut nonce);
    let payload = Payload { msg: &coded, aad: &sealed };
    // It fails only beyond 256 GiB.
    let text = key.cipher().encrypt(&XNonce::from(nonce), payload).map_err(|_| Damaged::Seal)?;
    sealed.extend_from_slice(&nonce);
    sealed.extend_from_slice(&text);
    Ok((name(&sealed), sealed))
}

/// A sealed object's parts, of which nothing but their lengths was looked at.
struct Parts<'a> {
    key: KeyId,
    head: &'a [u8],
    references: &'a [u8],
    nonce: [u8; NONCE_LEN],
    text: &'a [u8],
}

fn parts(coded: &[u8]) -> Result<Parts<'_>, Damaged> {
    let cut = |at: usize| coded.split_at_checked(at).ok_or(Damaged::Cut);
    let (fixed, _) = cut(HEAD_LEN)?;
    let key: [u8; KeyId::LEN] = fixed[1..=KeyId::LEN].try_into().map_err(|_| Damaged::Cut)?;
    let count: [u8; 4] = fixed[1 + KeyId::LEN..].try_into().map_err(|_| Damaged::Cut)?;
    let count = usize::try_from(u32::from_be_bytes(count)).unwrap_or(usize::MAX);
    if count > REFERENCES_MAX {
        return Err(Damaged::References);
    }
    let (head, rest) = cut(HEAD_LEN + count * REFERENCE_LEN)?;
    let (nonce, text) = rest.split_first_chunk::<NONCE_LEN>().ok_or(Damaged::Cut)?;
    if text.len() < TAG_LEN || text.len() > 1 + OBJECT_MAX + TAG_LEN {
        return Err(Damaged::Cut);
    }
    Ok(Parts { key: KeyId(key), head, references: &head[HEAD_LEN..], nonce: *nonce, text })
}

/// With which key it is sealed.
///
/// # Errors
/// It is no sealed object.
pub(crate) fn key_of(coded: &[u8]) -> Result<KeyId, Damaged> {
    Ok(parts(coded)?.key)
}

/// What a sealed object needs, without its key.
///
/// # Errors
/// It is none.
pub(crate) fn references(coded: &[u8]) -> Result<Vec<Reference>, Damaged> {
    let each = parts(coded)?.references.chunks_exact(REFERENCE_LEN);
    each.map(|bytes| {
        let (name, kind) = bytes.split_first_chunk::<{ Hash::LEN }>().ok_or(Damaged::Cut)?;
        let kind = match kind {
            [0] => Kind::Leaf,
            [1] => Kind::Node,
            _ => return Err(Damaged::References),
        };
        Ok(Reference { name: Hash(*name), kind })
    })
    .collect()
}

/// Is it a sealed object of this name? Nobody needs a key for that.
///
/// # Errors
/// It is not.
pub(crate) fn verify(coded: &[u8], of: &Hash) -> Result<(), Damaged> {
    if name(coded) != *of {
        return Err(Damaged::Hash);
    }
    references(coded).map(drop)
}

/// The plain bytes. That they were sealed under this name is for [`verify`].
///
/// # Errors
/// It was sealed with another key, or is not what was sealed.
pub(crate) fn open(coded: &[u8], key: &Key) -> Result<Vec<u8>, Damaged> {
    let Parts { head, nonce, text, .. } = parts(coded)?;
    let payload = Payload { msg: text, aad: head };
    let coded = key.cipher().decrypt(&XNonce::from(nonce), payload).map_err(|_| Damaged::Seal)?;
    object::plain(&coded).map(Cow::into_owned)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(seed: u8) -> Key {
        Key::derive(KeyId([seed; 8]), &[seed; 32])
    }

    fn reference() -> impl Strategy<Value = Reference> {
        (any::<[u8; 32]>(), any::<bool>())
            .prop_map(|(name, node)| Reference { name: Hash(name), kind: if node { Kind::Node } else { Kind::Leaf } })
    }

    #[test]
    fn keys_and_names_of_today_are_those_of_tomorrow() {
        let (name, coded) =
            seal(b"buy bread", &[Reference { name: Hash::of(b"x"), kind: Kind::Node }], &key(7)).unwrap();
        // What was sealed once has to open for ever.
        assert_eq!(name.to_string(), "c77f686cdb495e47299c3412364532abed1cfa51ee5fd481254d9b7118a01aca");
        assert_eq!(open(&coded, &key(7)).unwrap(), b"buy bread");
    }

    #[test]
    fn a_key_is_in_no_debug_text() {
        let key = key(0xab);
        let text = format!("{key:?}");
        assert_eq!(text, "Key(abababababababab)");
    }

    #[test]
    fn more_references_than_an_object_may_have_are_refused() {
        let many = vec![Reference { name: Hash::of(b"x"), kind: Kind::Leaf }; REFERENCES_MAX + 1];
        assert_eq!(seal(b"", &many, &key(1)).unwrap_err(), Damaged::References);
        let (_, coded) = seal(b"", &many[1..], &key(1)).unwrap();
        assert_eq!(references(&coded).unwrap().len(), REFERENCES_MAX);
    }

    proptest! {
        #[test]
        fn what_is_sealed_opens_with_its_key_alone(plain in proptest::collection::vec(any::<u8>(), 0..3_000), below in proptest::collection::vec(reference(), 0..40)) {
            let (name, coded) = seal(&plain, &below, &key(1)).unwrap();
            prop_assert!(is_sealed(&coded));
            prop_assert_eq!(verify(&coded, &name), Ok(()));
            prop_assert_eq!(key_of(&coded), Ok(KeyId([1; 8])));
            prop_assert_eq!(references(&coded).unwrap(), below.clone());
            prop_assert_eq!(open(&coded, &key(1)).unwrap(), plain.clone());
            prop_assert_eq!(open(&coded, &key(2)), Err(Damaged::Seal));
            // The same is the same; anything else is not.
            prop_assert_eq!(seal(&plain, &below, &key(1)).unwrap().0, name);
            prop_assert_ne!(seal(&plain, &below, &key(2)).unwrap().0, name);
            prop_assert_ne!(Hash::of(&plain), name);
            prop_assert_ne!(Hash::of(&coded), name);
        }

        #[test]
        fn a_bit_that_flips_is_noticed_without_a_key(plain in proptest::collection::vec(any::<u8>(), 0..500), below in proptest::collection::vec(reference(), 0..4), at in any::<prop::sample::Index>(), bit in 0_u32..8) {
            let (name, mut coded) = seal(&plain, &below, &key(1)).unwrap();
            let at = at.index(coded.len());
            coded[at] ^= 1_u8 << bit;
            prop_assert!(verify(&coded, &name).is_err());
            // And by whoever opens it without looking at its name.
            prop_assert!(open(&coded, &key(1)).is_err());
        }

        #[test]
        fn noise_is_no_sealed_object_and_no_panic(mut noise in proptest::collection::vec(any::<u8>(), 0..400)) {
            if let Some(first) = noise.first_mut() { *first = SEALED; }
            let _ = references(&noise);
            let _ = key_of(&noise);
            prop_assert!(open(&noise, &key(1)).is_err());
        }
    }
}
