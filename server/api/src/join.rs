//! Join tokens: what a new machine has to know to find a cluster, to recognise it and to be let in, as one text to copy.
//!
//! ```text
//! fj1.<base64url of the fields>.<checksum>
//! ```
//!
//! The fields are lines of `<letter><value>`, so that no JSON is needed and a later version can add some: letters that a reader does
//! not know are skipped. The checksum tells a damaged paste from a token of another cluster; it protects from nobody.

use std::{fmt, str::FromStr};

use crate::{StackName, TokenId, UnixMillis};

/// Characters of a token. One with a dozen addresses has 800.
pub const JOIN_TOKEN_MAX: usize = 4096;

/// Addresses in one token: enough for every machine of the cluster, and short enough to be shown as a QR code.
pub const JOIN_ADDRESSES_MAX: usize = 16;

const PREFIX: &str = "fj1";
/// What tokens of every version begin with.
const FAMILY: &str = "fj";

/// Works once, for one machine, until it expires.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// Id of the cluster.
    pub cluster: String,
    pub name: StackName,
    /// Of the key that signs the cluster's tokens: the first 16 bytes of its SHA-256, hexadecimal. Whoever answers has to prove that
    /// it is of that cluster.
    pub fingerprint: String,
    /// `host:port` of listeners, the likeliest first.
    pub addresses: Vec<String>,
    pub invitation: TokenId,
    pub secret: String,
    pub expires_at: UnixMillis,
}

/// Why a text is no join token, in one sentence for whoever pasted it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InvalidJoinToken {
    /// It does not even begin like one.
    Another,
    /// A piece is missing, or was changed on the way.
    Damaged,
    /// Made by a newer Flotilla.
    Newer,
}

impl fmt::Display for InvalidJoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Another => {
                "this is no join token; make one on a machine of the cluster with `flotilla token create --scope machine`"
            }
            Self::Damaged => "the join token is damaged: a piece is missing or was changed; copy the whole of it again",
            Self::Newer => "the join token was made by a newer version of Flotilla; install that version on this machine, too",
        })
    }
}

impl std::error::Error for InvalidJoinToken {}

impl fmt::Debug for JoinToken {
    /// Without the secret: it would be a password in a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinToken")
            .field("cluster", &self.cluster)
            .field("name", &self.name)
            .field("addresses", &self.addresses)
            .field("expires_at", &self.expires_at)
            .finish_non_exhaustive()
    }
}

/// The text to copy.
impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let expires = self.expires_at.0.to_string();
        let mut fields = String::new();
        let mut field = |letter: char, value: &str| {
            // A line end in a value would begin another field.
            let value: String = value.chars().filter(|c| !c.is_control()).collect();
            fields.push(letter);
            fields.push_str(&value);
            fields.push('\n');
        };
        field('c', &self.cluster);
        field('n', self.name.as_str());
        field('k', &self.fingerprint);
        for address in self.addresses.iter().take(JOIN_ADDRESSES_MAX) {
            field('a', address);
        }
        field('i', &self.invitation.0);
        field('s', &self.secret);
        field('e', &expires);
        let body = encode(fields.as_bytes());
        write!(f, "{PREFIX}.{body}.{:08x}", checksum(body.as_bytes()))
    }
}

impl FromStr for JoinToken {
    type Err = InvalidJoinToken;

    /// Spaces and line ends are left out, as a terminal or a mail breaks a long line.
    fn from_str(text: &str) -> Result<Self, InvalidJoinToken> {
        let text: String = text.chars().filter(|c| !c.is_whitespace()).take(JOIN_TOKEN_MAX + 1).collect();
        let (prefix, rest) = text.split_once('.').ok_or(InvalidJoinToken::Another)?;
        if prefix != PREFIX {
            let version = prefix.strip_prefix(FAMILY).and_then(|version| version.parse::<u32>().ok());
            return Err(if version.is_some() { InvalidJoinToken::Newer } else { InvalidJoinToken::Another });
        }
        let damaged = InvalidJoinToken::Damaged;
        if text.len() > JOIN_TOKEN_MAX {
            return Err(damaged);
        }
        let (body, sum) = rest.split_once('.').ok_or(damaged)?;
        if u32::from_str_radix(sum, 16) != Ok(checksum(body.as_bytes())) {
            return Err(damaged);
        }
        let fields = decode(body).and_then(|bytes| String::from_utf8(bytes).ok()).ok_or(damaged)?;
        let values = |letter: char| fields.lines().filter_map(move |line| line.strip_prefix(letter));
        let one = |letter| values(letter).next().map(str::to_owned).ok_or(damaged);
        Ok(Self {
            cluster: one('c')?,
            name: one('n')?.parse().map_err(|_| damaged)?,
            fingerprint: one('k')?,
            addresses: values('a').take(JOIN_ADDRESSES_MAX).map(str::to_owned).collect(),
            invitation: TokenId(one('i')?),
            secret: one('s')?,
            expires_at: UnixMillis(one('e')?.parse().map_err(|_| damaged)?),
        })
    }
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// Base64url without padding (RFC 4648, 5).
fn encode(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let group = chunk.iter().fold(0u32, |group, byte| group << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for digit in 0..=chunk.len() {
            text.push(char::from(ALPHABET[(group >> (18 - 6 * digit) & 63) as usize]));
        }
    }
    text
}

fn decode(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3 + 2);
    for chunk in text.as_bytes().chunks(4) {
        let mut group = 0u32;
        for digit in chunk {
            let value = ALPHABET.iter().position(|letter| letter == digit)?;
            group = group << 6 | u32::try_from(value).ok()?;
        }
        group <<= 6 * (4 - chunk.len());
        let length = match chunk.len() {
            4 => 3,
            3 => 2,
            2 => 1,
            _ => return None,
        };
        bytes.extend_from_slice(&group.to_be_bytes()[1..=length]);
    }
    Some(bytes)
}

/// CRC-32 as in IEEE 802.3: every change of a few neighbouring characters is noticed.
fn checksum(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| if sum & 1 == 1 { sum >> 1 ^ 0xedb8_8320 } else { sum >> 1 })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> JoinToken {
        JoinToken {
            cluster: "00112233445566778899aabbccddeeff".to_owned(),
            name: "home".parse().unwrap(),
            fingerprint: "ffeeddccbbaa99887766554433221100".to_owned(),
            addresses: vec!["192.168.1.5:7070".to_owned(), "[2001:db8::1]:7070".to_owned()],
            invitation: TokenId("abc".to_owned()),
            secret: "s3cret-_".to_owned(),
            expires_at: UnixMillis(1_795_442_602_000),
        }
    }

    #[test]
    fn a_token_is_read_back_however_it_was_pasted() {
        let text = token().to_string();
        assert_eq!(text.parse(), Ok(token()));
        let (first, second) = text.split_at(40);
        assert_eq!(format!("  {first}\r\n   {second}\n").parse(), Ok(token()));
        let without = JoinToken { addresses: Vec::new(), ..token() };
        assert_eq!(without.to_string().parse(), Ok(without));
    }

    /// Tokens are kept in files and mails: what was written once must be read for ever.
    #[test]
    fn a_token_of_the_first_version_stays_readable() {
        let text = "fj1.YzAwMTEyMjMzNDQ1NTY2Nzc4ODk5YWFiYmNjZGRlZWZmCm5ob21lCmtmZmVlZGRjY2JiYWE5OTg4Nzc2NjU1NDQzMzIyMTEwMAphMTkyLjE2OC4xLjU6NzA3MAphWzIwMDE6ZGI4OjoxXTo3MDcwCmlhYmMKc3MzY3JldC1fCmUxNzk1NDQyNjAyMDAwCg.cb3f7848";
        assert_eq!(text.parse(), Ok(token()));
    }

    #[test]
    fn what_is_damaged_is_told_from_what_is_no_token_and_what_is_newer() {
        let text = token().to_string();
        for at in 4..text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[at] = if bytes[at] == b'x' { b'y' } else { b'x' };
            let changed = String::from_utf8(bytes).unwrap();
            assert_eq!(changed.parse::<JoinToken>(), Err(InvalidJoinToken::Damaged), "{at}");
        }
        for length in [5, 30, text.len() - 9, text.len() - 1] {
            assert_eq!(text[..length].parse::<JoinToken>(), Err(InvalidJoinToken::Damaged), "{length}");
        }
        for another in ["", "hello", "eyJhbGciOiJFZERTQSJ9.e30.x", "http://app.home.localhost:7070/#invite=a.b"] {
            assert_eq!(another.parse::<JoinToken>(), Err(InvalidJoinToken::Another), "{another}");
        }
        assert_eq!("fj2.abc.def".parse::<JoinToken>(), Err(InvalidJoinToken::Newer));
        let endless = format!("fj1.{}", "A".repeat(1_000_000));
        assert_eq!(endless.parse::<JoinToken>(), Err(InvalidJoinToken::Damaged));
    }

    #[test]
    fn a_value_can_not_bring_a_field_of_its_own() {
        let sly = JoinToken { secret: "x\nathem:1".to_owned(), ..token() };
        let read: JoinToken = sly.to_string().parse().unwrap();
        assert_eq!(read.addresses, token().addresses);
    }

    #[test]
    fn the_alphabet_and_the_checksum_are_the_usual_ones() {
        assert_eq!(checksum(b"123456789"), 0xcbf4_3926);
        for (bytes, text) in [(&b""[..], ""), (b"f", "Zg"), (b"fo", "Zm8"), (b"foo", "Zm9v"), (b"\xff\xfe\xfd", "__79")]
        {
            assert_eq!(encode(bytes), text);
            assert_eq!(decode(text).as_deref(), Some(bytes));
        }
        assert_eq!(decode("A"), None);
        assert_eq!(decode("Zg=="), None);
    }

    #[test]
    fn the_secret_is_not_in_the_debug_text() {
        assert!(!format!("{:?}", token()).contains("s3cret"));
    }
}
