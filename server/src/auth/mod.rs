//! Who is asking, and what may they do: tokens, proofs of possession, invitations.

mod error;
mod jwt;
mod proof;
#[cfg(test)]
pub(crate) mod tests;

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use flotilla_api::{
    Grant, Scope, TokenId, UnixMillis,
    rest::{Principal, PublicKey},
};
use flotilla_core::{
    Actor, Command, CommandV1, Entry,
    command::{InvitationRecord, MadeFrom, TokenRecord},
};
use http::{HeaderMap, header::AUTHORIZATION};
use rand::RngExt;
use sha2::{Digest, Sha256};

pub use error::Error;
pub use jwt::TOKEN_MAX;

use crate::{
    identity::{ClusterKey, hexadecimal},
    store::Store,
};

/// The method that a proof for signalling names.
pub const SIGNAL_METHOD: &str = "CONNECT";

/// How long a browser that redeemed an invitation stays signed in without coming back. Milliseconds.
pub const SESSION_MS: u64 = 30 * DAY_MS;

/// The longest life of a token. Milliseconds.
pub const TOKEN_LIFE_MAX_MS: u64 = 400 * DAY_MS;

/// The longest life of an invitation link. Milliseconds.
pub const INVITATION_LIFE_MAX_MS: u64 = 30 * DAY_MS;

/// Characters of a device's name that are kept.
const DEVICE_MAX: usize = 60;

/// How long a timer is trusted: a machine that slept wakes up later than its timers think.
const EXPIRY_CHECK: Duration = Duration::from_secs(30);

const DAY_MS: u64 = 24 * 3600 * 1000;

/// Issues and checks tokens. Clones are handles to the same authority.
#[derive(Clone)]
pub struct Authority {
    inner: Arc<Inner>,
}

struct Inner {
    store: Store,
    keys: jwt::Keys,
    seen: Mutex<proof::Seen>,
    clock: fn() -> UnixMillis,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").finish_non_exhaustive()
    }
}

/// A token as it came in, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presented<'a> {
    /// `Authorization: Bearer <token>`
    Bearer { token: &'a str },
    /// `Authorization: DPoP <token>` with `DPoP: <proof>`
    Proven { token: &'a str, proof: &'a str },
}

impl<'a> Presented<'a> {
    pub fn token(self) -> &'a str {
        match self {
            Self::Bearer { token } | Self::Proven { token, .. } => token,
        }
    }

    /// # Errors
    /// No token, or more than one.
    pub fn in_headers(headers: &'a HeaderMap) -> Result<Self, Error> {
        let mut values = headers.get_all(AUTHORIZATION).iter();
        let value = values.next().ok_or(Error::TokenMissing)?;
        if values.next().is_some() {
            return Err(Error::TokenInvalid("there are several"));
        }
        let value = value.to_str().map_err(|_| Error::TokenInvalid("it is damaged or no token of Flotilla"))?;
        let (scheme, token) = value.split_once(' ').ok_or(Error::TokenInvalid("its scheme is missing"))?;
        let token = token.trim();
        if scheme.eq_ignore_ascii_case("bearer") {
            return Ok(Self::Bearer { token });
        }
        if !scheme.eq_ignore_ascii_case("dpop") {
            return Err(Error::TokenInvalid("its scheme is neither Bearer nor DPoP"));
        }
        let mut proofs = headers.get_all("dpop").iter();
        let proof = proofs.next().ok_or(Error::ProofInvalid("it is missing"))?;
        if proofs.next().is_some() {
            return Err(Error::ProofInvalid("there are several"));
        }
        let proof = proof.to_str().map_err(|_| Error::ProofInvalid("it is damaged"))?;
        Ok(Self::Proven { token, proof })
    }
}

/// What an invitation or a new token shall be.
#[derive(Clone, Debug)]
pub struct Wanted {
    pub name: String,
    pub grant: Grant,
    pub life_ms: u64,
    /// Of a machine's: it shall only store.
    pub stores_only: bool,
}

/// A token that was made: the only time that its text is to be had.
#[derive(Clone, Debug)]
pub struct Issued {
    pub token: String,
    pub principal: Principal,
}

/// An invitation that was made: the only time that its secret is to be had.
#[derive(Clone, Debug)]
pub struct Invited {
    pub id: TokenId,
    /// `<id>.<secret>`, for the fragment of a link.
    pub invitation: String,
    pub expires_at: UnixMillis,
}

impl Authority {
    /// # Errors
    /// A key that can't sign.
    pub fn new(store: Store, cluster: &str, key: &ClusterKey) -> Result<Self, Error> {
        Self::with_clock(store, cluster, key, crate::clock::now)
    }

    pub(crate) fn with_clock(
        store: Store,
        cluster: &str,
        key: &ClusterKey,
        clock: fn() -> UnixMillis,
    ) -> Result<Self, Error> {
        let keys = jwt::Keys::new(cluster, key)?;
        Ok(Self { inner: Arc::new(Inner { store, keys, seen: Mutex::default(), clock }) })
    }

    /// Checks the token of a request to the API. `url` is the address that the client asked for.
    ///
    /// # Errors
    /// Says what is wrong with the token or its proof.
    pub fn verify(&self, presented: Presented<'_>, method: &str, url: &str) -> Result<Principal, Error> {
        match presented {
            Presented::Bearer { token } => self.verify_with(token, None, method, url),
            Presented::Proven { token, proof } => self.verify_with(token, Some(proof), method, url),
        }
    }

    /// Checks the token of a signalling message. `url` is the address of `/signal` that the browser asked for.
    ///
    /// # Errors
    /// As [`verify`](Self::verify).
    pub fn verify_signal(&self, token: &str, proof: Option<&str>, url: &str) -> Result<Principal, Error> {
        self.verify_with(token, proof, SIGNAL_METHOD, url)
    }

    fn verify_with(&self, token: &str, proof: Option<&str>, method: &str, url: &str) -> Result<Principal, Error> {
        let now = (self.inner.clock)();
        let claims = self.inner.keys.verify(token, now)?;
        let principal = self.standing(&claims.token())?;
        if principal.grant != claims.grant() {
            return Err(Error::TokenInvalid("it says something else than was issued"));
        }
        let thumbprint = claims.cnf.as_ref().map(|cnf| cnf.jkt.as_str());
        if self.bound_to(&claims.token()).as_deref() != thumbprint {
            return Err(Error::TokenInvalid("it says something else than was issued"));
        }
        match (thumbprint, proof) {
            (None, None) => {}
            (None, Some(_)) => return Err(Error::ProofInvalid("the token is bound to no key; send it as Bearer")),
            (Some(_), None) => {
                return Err(Error::ProofInvalid("the token is bound to a key, and the proof is missing"));
            }
            (Some(thumbprint), Some(proof)) => {
                let mut seen = self.inner.seen.lock().unwrap_or_else(PoisonError::into_inner);
                proof::check(proof, proof::Expected { method, url, token, thumbprint }, now, &mut seen)?;
            }
        }
        let expires_at = principal.expires_at.min(UnixMillis(claims.exp.saturating_mul(1000)));
        Ok(Principal { expires_at, ..principal })
    }

    /// Catches up with the log where this node does not know a token that the cluster has signed: it may have been made a moment ago, on
    /// another machine. True if it is known now, and was not.
    pub async fn learns(&self, token: &str) -> bool {
        let Ok(claims) = self.inner.keys.verify(token, (self.inner.clock)()) else { return false };
        let is_known = || self.inner.store.state().tokens.contains_key(&claims.token());
        if is_known() {
            return false;
        }
        let caught_up = self.inner.store.consensus().linearize().await;
        tracing::debug!(?caught_up, "a token was not known here yet");
        is_known()
    }

    /// Whether a token that was checked before still holds: neither revoked nor expired. For sessions that outlive a request.
    ///
    /// # Errors
    /// Says why it does not.
    pub fn standing(&self, token: &TokenId) -> Result<Principal, Error> {
        self.inner.store.state().principal(token, (self.inner.clock)()).map_err(Error::Rejected)
    }

    /// As [`standing`](Self::standing), for a session that began as `principal`: it ends when the token that it began with does,
    /// though the token was renewed meanwhile.
    ///
    /// # Errors
    /// Says why it ended.
    pub fn standing_as(&self, principal: &Principal) -> Result<(), Error> {
        self.standing(&principal.token)?;
        if principal.expires_at <= (self.inner.clock)() {
            return Err(Error::TokenExpired);
        }
        Ok(())
    }

    /// Resolves when a session that began as `principal` has to end, with the reason.
    pub async fn ended(&self, principal: &Principal) -> Error {
        let mut states = self.inner.store.watch();
        loop {
            if let Err(error) = self.standing_as(principal) {
                return error;
            }
            let left = Duration::from_millis(principal.expires_at.since((self.inner.clock)()));
            tokio::select! {
                changed = states.changed() => if changed.is_err() {
                    return Error::Stopping;
                },
                () = tokio::time::sleep(left.min(EXPIRY_CHECK)) => {}
            }
        }
    }

    fn bound_to(&self, token: &TokenId) -> Option<String> {
        self.inner.store.state().tokens.get(token)?.bound_to.clone()
    }

    /// Makes a bearer token.
    ///
    /// # Errors
    /// A life that is too long, and what the state refuses.
    pub async fn issue(&self, actor: Actor, wanted: Wanted) -> Result<Issued, Error> {
        check_life(wanted.life_ms, TOKEN_LIFE_MAX_MS, "a token")?;
        let record = self.record(wanted, None);
        self.propose_token(actor, record.clone(), CommandV1::IssueToken { token: record }).await
    }

    /// Makes a link that stands for a token, once.
    ///
    /// # Errors
    /// As [`issue`](Self::issue).
    pub async fn invite(&self, actor: Actor, wanted: Wanted) -> Result<Invited, Error> {
        check_life(wanted.life_ms, INVITATION_LIFE_MAX_MS, "an invitation")?;
        let now = (self.inner.clock)();
        let id = random_id();
        let secret = BASE64_URL_SAFE_NO_PAD.encode(rand::rng().random::<[u8; 32]>());
        let invitation = InvitationRecord {
            id: id.clone(),
            name: wanted.name,
            grant: wanted.grant,
            secret_hash: secret_hash(&secret),
            created_at: now,
            expires_at: now.plus(wanted.life_ms),
            used_at: None,
            stores_only: false,
        };
        let expires_at = invitation.expires_at;
        let command = match wanted.stores_only {
            true => CommandV1::InviteStorage { invitation },
            false => CommandV1::CreateInvitation { invitation },
        };
        self.propose(actor, command).await?;
        Ok(Invited { invitation: format!("{id}.{secret}"), id, expires_at })
    }

    /// The invitation of this id, if whoever asks has its secret. Whether it still counts is for the state to say.
    ///
    /// # Errors
    /// It is not known here, or the secret is another.
    pub async fn check_invitation(&self, id: &TokenId, secret: &str) -> Result<InvitationRecord, Error> {
        if !self.inner.store.state().invitations.contains_key(id) {
            // It may have been made a moment ago, on another machine.
            let caught_up = self.inner.store.consensus().linearize().await;
            tracing::debug!(?caught_up, "an invitation is not known here yet");
        }
        let state = self.inner.store.state();
        let record = state.invitations.get(id).ok_or(Error::InvitationInvalid)?;
        // Hashes of 256 random bits: the time that the comparison takes tells nothing of use.
        if record.secret_hash != secret_hash(secret) {
            return Err(Error::InvitationInvalid);
        }
        Ok(record.clone())
    }

    /// Exchanges an invitation for a token that is bound to the browser's key.
    ///
    /// # Errors
    /// An invitation that is unknown, used or expired stays as it is.
    pub async fn redeem(
        &self,
        from: Option<String>,
        invitation: &str,
        key: &PublicKey,
        device: &str,
    ) -> Result<Issued, Error> {
        let thumbprint = proof::thumbprint(key)?;
        let (id, secret) = invitation.split_once('.').ok_or(Error::InvitationInvalid)?;
        let id = TokenId(id.to_owned());
        let record = self.check_invitation(&id, secret).await?;
        // A machine's is not for a browser.
        if record.grant.scope == Scope::Machine {
            return Err(Error::InvitationInvalid);
        }
        let wanted = Wanted {
            name: with_device(&record.name, device),
            grant: record.grant.clone(),
            life_ms: SESSION_MS,
            stores_only: false,
        };
        let actor = Actor { name: record.name.clone(), token: Some(id.clone()), from };
        let token = self.record(wanted, Some(thumbprint));
        self.propose_token(actor, token.clone(), CommandV1::RedeemInvitation { id, token }).await
    }

    /// Exchanges a bearer token for one of the same grant and end that is bound to the browser's key.
    ///
    /// # Errors
    /// A token that is bound already.
    pub async fn bind(
        &self,
        from: Option<String>,
        principal: &Principal,
        key: &PublicKey,
        device: &str,
    ) -> Result<Issued, Error> {
        let thumbprint = proof::thumbprint(key)?;
        if self.bound_to(&principal.token).is_some() {
            return Err(Error::AlreadyBound);
        }
        let wanted = Wanted {
            name: with_device(&principal.name, device),
            grant: principal.grant.clone(),
            life_ms: principal.expires_at.since((self.inner.clock)()).min(SESSION_MS),
            stores_only: false,
        };
        let made_from = MadeFrom { id: principal.token.clone(), expires_at: principal.expires_at };
        let record = TokenRecord { made_from: Some(made_from), ..self.record(wanted, Some(thumbprint)) };
        let command = CommandV1::IssueToken { token: record.clone() };
        self.propose_token(actor_of(principal, from), record, command).await
    }

    /// Gives a bound token another [`SESSION_MS`] from now, under the same id. A bearer token ends when it was meant to, and so
    /// does what it was exchanged for: whoever copied one could keep it for ever.
    ///
    /// # Errors
    /// A bearer token.
    pub async fn renew(&self, from: Option<String>, principal: &Principal) -> Result<Issued, Error> {
        let state = self.inner.store.state();
        let record = state.tokens.get(&principal.token).ok_or(Error::TokenInvalid("this cluster does not know it"))?;
        if record.bound_to.is_none() {
            return Err(Error::Lifetime(
                "only a browser's token can be renewed; make a new one with `flotilla token create`".to_owned(),
            ));
        }
        let wanted = (self.inner.clock)().plus(SESSION_MS);
        let wanted = record.made_from.as_ref().map_or(wanted, |from| wanted.min(from.expires_at));
        // Never shorter than it was.
        let expires_at = record.expires_at.max(wanted);
        let renewed = TokenRecord { expires_at, ..record.clone() };
        let command = CommandV1::RenewToken { id: record.id.clone(), expires_at };
        self.propose_token(actor_of(principal, from), renewed, command).await
    }

    /// Ends a token, or withdraws an invitation. At once: who verifies next sees the new state.
    ///
    /// # Errors
    /// One that is unknown or ended before.
    pub async fn revoke(&self, actor: Actor, id: TokenId) -> Result<(), Error> {
        self.propose(actor, CommandV1::RevokeToken { id }).await
    }

    fn record(&self, wanted: Wanted, bound_to: Option<String>) -> TokenRecord {
        let now = (self.inner.clock)();
        TokenRecord {
            id: random_id(),
            name: wanted.name,
            grant: wanted.grant,
            created_at: now,
            expires_at: now.plus(wanted.life_ms),
            revoked_at: None,
            bound_to,
            made_from: None,
        }
    }

    async fn propose_token(&self, actor: Actor, record: TokenRecord, command: CommandV1) -> Result<Issued, Error> {
        // Signed first: a token that can't be signed is not issued.
        let token = self.inner.keys.sign(&record, (self.inner.clock)())?;
        self.propose(actor, command).await?;
        Ok(Issued { token, principal: principal(&record) })
    }

    async fn propose(&self, actor: Actor, command: CommandV1) -> Result<(), Error> {
        let entry = Entry { at: (self.inner.clock)(), actor, command: Command::V1(command) };
        self.inner.store.propose(entry).await?;
        Ok(())
    }
}

/// Who asked, for the audit trail.
pub fn actor_of(principal: &Principal, from: Option<String>) -> Actor {
    Actor { name: principal.name.clone(), token: Some(principal.token.clone()), from }
}

fn principal(record: &TokenRecord) -> Principal {
    Principal {
        token: record.id.clone(),
        name: record.name.clone(),
        grant: record.grant.clone(),
        expires_at: record.expires_at,
    }
}

/// 128 random bits: unique without asking anybody.
fn random_id() -> TokenId {
    TokenId(hexadecimal(&rand::rng().random::<[u8; 16]>()))
}

fn secret_hash(secret: &str) -> String {
    hexadecimal(&Sha256::digest(secret))
}

/// `Ada (Chromium on Linux)`, with what can't be shown on one line left out.
fn with_device(name: &str, device: &str) -> String {
    let device: String = device.chars().filter(|c| !c.is_control()).take(DEVICE_MAX).collect();
    let device = device.trim();
    // A name that carries a device keeps the first: a bound token is bound once.
    let room = flotilla_core::state::TOKEN_NAME_MAX.saturating_sub(name.chars().count());
    if device.is_empty() || device.chars().count() + 3 > room {
        return name.to_owned();
    }
    format!("{name} ({device})")
}

fn check_life(life_ms: u64, max_ms: u64, what: &str) -> Result<(), Error> {
    if life_ms == 0 || life_ms > max_ms {
        return Err(Error::Lifetime(format!(
            "{what} lives from 1 second to {} days; choose a time between",
            max_ms / DAY_MS
        )));
    }
    Ok(())
}
