//! What nodes say to each other to set a link up, signed by who says it.
//!
//! An envelope is JSON: the writer's public key, the message as a text, and an Ed25519 signature over exactly the bytes of that text.
//! The message holds the session description and with it the fingerprint of the DTLS certificate, so that whoever carries an envelope
//! can neither read what goes over the link nor take part in it.

use std::collections::{HashMap, HashSet, VecDeque};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use flotilla_api::{ApiError, ErrorCode, NodeId, UnixMillis};
use serde::{Deserialize, Serialize};

use crate::{clock, identity};

/// The version of these messages.
pub const NODE_SIGNAL_VERSION: u32 = 1;

/// The largest envelope. A session description with candidates on eight addresses has about 4 KiB. Bytes.
pub const ENVELOPE_MAX: usize = 64 * 1024;

/// A signature made for anything else is none here.
const PURPOSE: &[u8] = b"flotilla mesh signal 1\0";
const VOUCHER_PURPOSE: &[u8] = b"flotilla mesh voucher 1\0";

/// How far two clocks may differ. Machines without a battery for their clock begin in the past, and a person may have typed the
/// time; a message older than this is refused even if it was never seen. Milliseconds.
const SKEW_MAX_MS: u64 = 24 * 3600 * 1000;

/// Messages of one node that are remembered, so that none is taken twice: hours of a node that tries every few seconds.
const NONCES_KEPT: usize = 1024;

/// Hexadecimal digits of a nonce and of a boot's name.
pub(super) const NONCE_LEN: usize = 32;

#[derive(Debug, Serialize, Deserialize)]
struct Outer {
    /// Ed25519, base64url without padding.
    key: String,
    /// JSON of a [`Message`].
    message: String,
    signature: String,
}

/// A signed message.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Message {
    pub(super) version: u32,
    pub(super) from: NodeId,
    /// Absent where the writer does not know yet whom it speaks to: at first contact.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) to: Option<NodeId>,
    /// By the writer's clock.
    pub(super) at: UnixMillis,
    pub(super) nonce: String,
    /// Names this run of the writer's program.
    pub(super) boot: String,
    #[serde(flatten)]
    pub(super) body: Body,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub(super) enum Body {
    Offer(Offer),
    Answer(Answer),
    /// The offer was understood and is not taken.
    Refusal {
        /// Nonce of the offer.
        reply_to: String,
        error: ApiError,
    },
}

/// What a link shall be for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Purpose {
    Control,
    Bulk,
    /// The same over TLS, to the listener: the descriptions are fingerprints of the certificates.
    Tls,
    /// First contact of a machine that is no member yet.
    Join,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Offer {
    pub(super) purpose: Purpose,
    /// Names the attempt: the same offer may come by several ways.
    pub(super) attempt: String,
    /// Session description with all candidates.
    pub(super) description: String,
    /// Relays are to be used, as there was no direct way.
    #[serde(default)]
    pub(super) relay: bool,
    /// The writer uses the port that it shares among its links; then the other end shall not.
    #[serde(default)]
    pub(super) shared_port: bool,
    /// The way is long, as the writer measured it. Of a TLS link.
    #[serde(default)]
    pub(super) far: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Answer {
    /// Nonce of the offer, so that an answer is good for that one alone.
    pub(super) reply_to: String,
    pub(super) description: String,
    /// To a stranger: the cluster's word for this node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) voucher: Option<Voucher>,
}

/// The cluster's key says that a node is of the cluster.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Voucher {
    key: String,
    signature: String,
}

impl Voucher {
    pub(super) fn sign(cluster: &SigningKey, node: &NodeId, reply_to: &str) -> Self {
        Self {
            key: BASE64_URL_SAFE_NO_PAD.encode(cluster.verifying_key().as_bytes()),
            signature: sign(cluster, VOUCHER_PURPOSE, &Self::text(node, reply_to)),
        }
    }

    fn text(node: &NodeId, reply_to: &str) -> String {
        format!("{node} {reply_to}")
    }

    /// The key that vouches for this node in answer to that offer.
    pub(super) fn key_for(&self, node: &NodeId, reply_to: &str) -> Option<VerifyingKey> {
        let key = public_key(&self.key)?;
        verify(&key, VOUCHER_PURPOSE, &Self::text(node, reply_to), &self.signature).then_some(key)
    }
}

/// Who writes from here.
#[derive(Clone)]
pub(super) struct Author {
    key: SigningKey,
    pub(super) id: NodeId,
    pub(super) boot: String,
}

impl Author {
    pub(super) fn new(key: SigningKey) -> Self {
        Self { id: identity::node_id(&key.verifying_key()), boot: random_name(), key }
    }

    /// Writes a message; returns its nonce too.
    pub(super) fn seal(&self, to: Option<&NodeId>, body: Body) -> (Vec<u8>, String) {
        self.seal_at(clock::now(), to, body)
    }

    pub(super) fn seal_at(&self, at: UnixMillis, to: Option<&NodeId>, body: Body) -> (Vec<u8>, String) {
        let nonce = random_name();
        let message = Message {
            version: NODE_SIGNAL_VERSION,
            from: self.id.clone(),
            to: to.cloned(),
            at,
            nonce: nonce.clone(),
            boot: self.boot.clone(),
            body,
        };
        // Strings and numbers: this can't fail.
        (seal_text(&self.key, serde_json::to_string(&message).unwrap_or_default()), nonce)
    }
}

pub(super) fn seal_text(key: &SigningKey, message: String) -> Vec<u8> {
    let outer = Outer {
        key: BASE64_URL_SAFE_NO_PAD.encode(key.verifying_key().as_bytes()),
        signature: sign(key, PURPOSE, &message),
        message,
    };
    serde_json::to_vec(&outer).unwrap_or_default()
}

/// A message whose signature is good: the holder of `key` wrote it. Whether that is anybody is another question.
#[derive(Debug)]
pub(super) struct Opened {
    /// Base64url without padding, as the state writes it.
    pub(super) key: String,
    pub(super) message: Message,
}

/// Reads an envelope.
///
/// # Errors
/// What its sender is told: too large, no envelope, another version, a signature that is not of the key.
pub(super) fn open(bytes: &[u8]) -> Result<Opened, ApiError> {
    #[derive(Deserialize)]
    struct Versioned {
        version: u32,
    }

    if bytes.len() > ENVELOPE_MAX {
        return Err(ApiError::new(
            ErrorCode::RequestTooLarge,
            format!("a signalling message has at most {ENVELOPE_MAX} bytes"),
        ));
    }
    let malformed = || invalid("this is no signalling message of a node");
    let outer: Outer = serde_json::from_slice(bytes).map_err(|_| malformed())?;
    let key = public_key(&outer.key).ok_or_else(malformed)?;
    if !verify(&key, PURPOSE, &outer.message, &outer.signature) {
        return Err(invalid("the signature of this signalling message is not good"));
    }
    let Versioned { version } = serde_json::from_str(&outer.message).map_err(|_| malformed())?;
    if version != NODE_SIGNAL_VERSION {
        return Err(ApiError::new(
            ErrorCode::SignalVersion,
            format!(
                "the other node speaks version {version} of signalling between nodes, this one version {NODE_SIGNAL_VERSION}; \
                 update the older of the two"
            ),
        ));
    }
    let message: Message = serde_json::from_str(&outer.message).map_err(|_| malformed())?;
    if message.from != identity::node_id(&key) {
        return Err(invalid("this signalling message is signed by another node than it says"));
    }
    if ![&message.nonce, &message.boot].iter().all(|name| name.len() == NONCE_LEN) {
        return Err(malformed());
    }
    Ok(Opened { key: outer.key, message })
}

/// Checks that a message is for this node and of these days.
///
/// # Errors
/// What its sender is told.
pub(super) fn check(message: &Message, own: &NodeId, now: UnixMillis) -> Result<(), ApiError> {
    let for_us = match &message.to {
        Some(to) => to == own,
        None => matches!(&message.body, Body::Offer(offer) if offer.purpose == Purpose::Join),
    };
    if !for_us {
        return Err(invalid("this signalling message is for another node"));
    }
    let apart = message.at.since(now).max(now.since(message.at));
    if apart > SKEW_MAX_MS {
        return Err(invalid(&format!(
            "the clocks of the two machines are {} hours apart; set them right",
            apart / 3_600_000
        )));
    }
    Ok(())
}

/// Messages that were taken already.
#[derive(Debug, Default)]
pub(super) struct Seen {
    by_node: HashMap<NodeId, SeenOf>,
}

#[derive(Debug, Default)]
struct SeenOf {
    nonces: HashSet<String>,
    order: VecDeque<(UnixMillis, String)>,
    /// What is not later than this was forgotten, and is refused.
    floor: UnixMillis,
}

impl Seen {
    /// Whether this message comes for the first time; it is remembered.
    pub(super) fn is_first(&mut self, message: &Message) -> bool {
        let seen = self.by_node.entry(message.from.clone()).or_default();
        if message.at <= seen.floor || !seen.nonces.insert(message.nonce.clone()) {
            return false;
        }
        seen.order.push_back((message.at, message.nonce.clone()));
        if seen.order.len() > NONCES_KEPT
            && let Some((at, nonce)) = seen.order.pop_front()
        {
            seen.nonces.remove(&nonce);
            seen.floor = seen.floor.max(at);
        }
        true
    }

    /// Forgets those that are asked for no more.
    pub(super) fn retain(&mut self, keep: impl Fn(&NodeId) -> bool) {
        self.by_node.retain(|id, _| keep(id));
    }
}

pub(super) fn invalid(message: &str) -> ApiError {
    ApiError::new(ErrorCode::SignalInvalid, message)
}

pub(super) fn random_name() -> String {
    identity::hexadecimal(&rand::random::<[u8; NONCE_LEN / 2]>())
}

/// # Errors
/// Text that is no Ed25519 public key in base64url.
pub(super) fn public_key(text: &str) -> Option<VerifyingKey> {
    let bytes = BASE64_URL_SAFE_NO_PAD.decode(text).ok()?;
    VerifyingKey::from_bytes(&bytes.try_into().ok()?).ok()
}

fn sign(key: &SigningKey, purpose: &[u8], text: &str) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(key.sign(&[purpose, text.as_bytes()].concat()).to_bytes())
}

fn verify(key: &VerifyingKey, purpose: &[u8], text: &str, signature: &str) -> bool {
    let Ok(bytes) = BASE64_URL_SAFE_NO_PAD.decode(signature) else { return false };
    let Ok(signature) = Signature::from_slice(&bytes) else { return false };
    key.verify_strict(&[purpose, text.as_bytes()].concat(), &signature).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn author(seed: u8) -> Author {
        Author::new(SigningKey::from_bytes(&[seed; 32]))
    }

    fn offer(purpose: Purpose) -> Body {
        Body::Offer(Offer {
            purpose,
            attempt: "a".to_owned(),
            description: "v=0".to_owned(),
            relay: false,
            shared_port: false,
            far: false,
        })
    }

    fn refused(result: Result<impl std::fmt::Debug, ApiError>, code: ErrorCode, says: &str) {
        let error = result.unwrap_err();
        assert!(error.code == code && error.message.contains(says), "{error:?}");
    }

    #[test]
    fn what_was_signed_is_read_and_anything_else_is_not() {
        let (one, other) = (author(1), author(2));
        let (bytes, nonce) = one.seal(Some(&other.id), offer(Purpose::Control));
        let opened = open(&bytes).unwrap();
        assert_eq!((&opened.message.from, &opened.message.nonce), (&one.id, &nonce));
        check(&opened.message, &other.id, clock::now()).unwrap();

        let outer: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        let with = |field: &str, value: &str| {
            let mut outer = outer.clone();
            outer[field] = value.into();
            serde_json::to_vec(&outer).unwrap()
        };
        let text = outer["message"].as_str().unwrap();
        let changed = with("message", &text.replace("v=0", "v=1"));
        refused(open(&changed), ErrorCode::SignalInvalid, "signature");
        let other_key = BASE64_URL_SAFE_NO_PAD.encode(other.key.verifying_key().as_bytes());
        refused(open(&with("key", &other_key)), ErrorCode::SignalInvalid, "signature");
        let posing = seal_text(&other.key, text.to_owned());
        refused(open(&posing), ErrorCode::SignalInvalid, "another node");
        for bad in ["", "AAAA", "!", &"A".repeat(43)] {
            refused(open(&with("key", bad)), ErrorCode::SignalInvalid, "");
            refused(open(&with("signature", bad)), ErrorCode::SignalInvalid, "");
        }
        for bad in [&b""[..], b"{}", b"[]", b"\xff", &bytes[..bytes.len() - 1]] {
            refused(open(bad), ErrorCode::SignalInvalid, "no signalling message");
        }
        refused(open(&vec![b' '; ENVELOPE_MAX + 1]), ErrorCode::RequestTooLarge, "at most");
        let newer = seal_text(&one.key, text.replacen("\"version\":1", "\"version\":7", 1));
        refused(open(&newer), ErrorCode::SignalVersion, "version 7");
        let short = seal_text(&one.key, text.replace(&nonce, "00"));
        refused(open(&short), ErrorCode::SignalInvalid, "no signalling message");
    }

    #[test]
    fn a_signature_for_another_purpose_is_none() {
        let one = author(1);
        let text = String::from_utf8(one.seal(None, offer(Purpose::Join)).0).unwrap();
        let mut outer: Outer = serde_json::from_str(&text).unwrap();
        outer.signature = sign(&one.key, VOUCHER_PURPOSE, &outer.message);
        refused(open(&serde_json::to_vec(&outer).unwrap()), ErrorCode::SignalInvalid, "signature");
    }

    #[test]
    fn a_message_is_for_one_node_and_for_these_days() {
        let (one, other, third) = (author(1), author(2), author(3));
        let now = UnixMillis(1_000_000_000_000);
        let at = |at: u64, to: Option<&NodeId>, body| open(&one.seal_at(UnixMillis(at), to, body).0).unwrap().message;
        let control = || offer(Purpose::Control);
        refused(check(&at(now.0, Some(&third.id), control()), &other.id, now), ErrorCode::SignalInvalid, "for another");
        refused(check(&at(now.0, None, control()), &other.id, now), ErrorCode::SignalInvalid, "for another");
        check(&at(now.0, None, offer(Purpose::Join)), &other.id, now).unwrap();
        let (hour, day) = (3_600_000, SKEW_MAX_MS);
        for apart in [0, hour, day] {
            check(&at(now.0 - apart, Some(&other.id), control()), &other.id, now).unwrap();
            check(&at(now.0 + apart, Some(&other.id), control()), &other.id, now).unwrap();
        }
        for wrong in [now.0 - day - 1, now.0 + day + 1, 0] {
            refused(check(&at(wrong, Some(&other.id), control()), &other.id, now), ErrorCode::SignalInvalid, "clocks");
        }
    }

    #[test]
    fn no_message_is_taken_twice_not_even_one_that_was_forgotten() {
        let (one, other) = (author(1), author(2));
        let mut seen = Seen::default();
        let message =
            |at: u64| open(&one.seal_at(UnixMillis(at), Some(&other.id), offer(Purpose::Bulk)).0).unwrap().message;
        let first = message(5_000);
        assert!(seen.is_first(&first));
        assert!(!seen.is_first(&first));
        // Clocks go backwards; that alone is no replay.
        assert!(seen.is_first(&message(4_000)));
        for at in 0..NONCES_KEPT as u64 {
            assert!(seen.is_first(&message(10_000 + at)));
        }
        assert!(seen.by_node[&one.id].order.len() <= NONCES_KEPT);
        assert!(!seen.is_first(&first), "it was forgotten, and taken again");
        seen.retain(|_| false);
        assert!(seen.by_node.is_empty());
    }

    #[test]
    fn a_voucher_is_for_one_node_and_one_offer() {
        let cluster = SigningKey::from_bytes(&[9; 32]);
        let (one, other) = (author(1), author(2));
        let voucher = Voucher::sign(&cluster, &one.id, "n");
        assert_eq!(voucher.key_for(&one.id, "n"), Some(cluster.verifying_key()));
        assert_eq!(voucher.key_for(&other.id, "n"), None);
        assert_eq!(voucher.key_for(&one.id, "m"), None);
    }
}
