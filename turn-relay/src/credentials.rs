//! Credentials that expire (draft-uberti-behave-turn-rest-00): the name says until when, the password proves that we said so.

use std::{
    fmt,
    net::SocketAddr,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use ring::hmac;
use turn::auth::{AuthHandler, generate_auth_key};

use crate::limits::Limits;

/// Shorter secrets are guessed from one captured request.
pub(crate) const SECRET_MIN: usize = 16;

/// A user's name within `<expiry>:<user>`. Bytes.
const USER_MAX: usize = 128;

/// What a client authenticates with.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    pub username: String,
    pub password: String,
    /// Seconds since the Unix epoch.
    pub expires_at: u64,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("username", &self.username).finish_non_exhaustive()
    }
}

#[derive(Clone)]
pub(crate) struct Secret(hmac::Key);

impl Secret {
    pub(crate) fn new(secret: &str) -> Option<Self> {
        // SHA-1 is what every TURN client and server of this scheme computes; HMAC does not need its collision resistance.
        (secret.len() >= SECRET_MIN)
            .then(|| Self(hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, secret.as_bytes())))
    }

    pub(crate) fn credentials(&self, user: &str, ttl: Duration) -> Credentials {
        let expires_at = unix_seconds() + ttl.as_secs();
        let user: String = user.chars().filter(|c| !c.is_control() && *c != ':').take(USER_MAX / 4).collect();
        let username = format!("{expires_at}:{user}");
        Credentials { password: self.password(&username), username, expires_at }
    }

    fn password(&self, username: &str) -> String {
        STANDARD.encode(hmac::sign(&self.0, username.as_bytes()))
    }
}

impl Credentials {
    /// Makes credentials where there is no relay, from its secret.
    ///
    /// # Errors
    /// [`crate::Error::ShortSecret`].
    pub fn make(secret: &str, user: &str, ttl: Duration) -> Result<Self, crate::Error> {
        Ok(Secret::new(secret).ok_or(crate::Error::ShortSecret)?.credentials(user, ttl))
    }
}

fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Expiry and user in a name.
fn parse(username: &str) -> Option<(u64, &str)> {
    let (expires_at, user) = username.split_once(':')?;
    Some((expires_at.parse().ok()?, user)).filter(|(_, user)| user.len() <= USER_MAX)
}

/// Lets those in whose credentials have not expired and who are within their limits.
pub(crate) struct Gate {
    secret: Secret,
    limits: Arc<Limits>,
}

impl Gate {
    pub(crate) fn new(secret: Secret, limits: Arc<Limits>) -> Self {
        Self { secret, limits }
    }
}

impl AuthHandler for Gate {
    /// The key that the request must be signed with; whoever signs with another is refused by the server.
    fn auth_handle(&self, username: &str, realm: &str, _source: SocketAddr) -> Result<Vec<u8>, turn::Error> {
        let refuse = |why: &str| {
            self.limits.counters.credentials_denied.fetch_add(1, Relaxed);
            Err(turn::Error::Other(why.to_owned()))
        };
        match parse(username) {
            Some((expires_at, _)) if expires_at <= unix_seconds() => refuse("the credentials have expired"),
            Some((_, user)) => {
                self.limits.asked_by(user);
                Ok(generate_auth_key(username, realm, &self.secret.password(username)))
            }
            None => refuse("the user name is not of this relay"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_known_secret_gives_the_known_password() {
        let secret = Secret::new("north-of-the-wall").unwrap();
        // printf %s 1700000000:ada | openssl dgst -sha1 -hmac north-of-the-wall -binary | base64
        assert_eq!(secret.password("1700000000:ada"), "/jRSyapQTzTuFCPlfO3d0D6tPpA=");
    }

    #[test]
    fn a_short_secret_is_refused() {
        assert!(Secret::new("fifteen-bytes--").is_none());
        assert!(Credentials::make("short", "ada", Duration::from_secs(1)).is_err());
    }

    #[test]
    fn expired_and_foreign_names_are_refused() {
        let limits = Arc::new(Limits::new(8, 8));
        let gate = Gate::new(Secret::new("north-of-the-wall").unwrap(), Arc::clone(&limits));
        let source = "192.0.2.1:9".parse().unwrap();
        let long = format!("9999999999:{}", "x".repeat(USER_MAX + 1));
        for bad in ["1:ada", "ada", "", ":", "x:ada", long.as_str()] {
            assert!(gate.auth_handle(bad, "realm", source).is_err(), "{bad:?}");
        }
        assert_eq!(limits.snapshot().credentials_denied, 6);
        assert!(gate.auth_handle("9999999999:ada", "realm", source).is_ok());
    }

    #[test]
    fn a_user_can_not_smuggle_another_name_in() {
        let made = Secret::new("north-of-the-wall").unwrap().credentials("a:d\na", Duration::from_secs(60));
        assert!(made.username.ends_with(":ada"), "{}", made.username);
    }
}
