//! Who is signed in on this browser.

use std::time::Duration;

use flotilla_api::{
    ErrorCode,
    rest::{BindToken, IssuedToken, Principal, RedeemInvitation},
};
use leptos::prelude::*;
use wasm_bindgen_futures::spawn_local;

use super::{
    api::{Client, Failure},
    bell, browser, task,
};
use crate::identity::{Changes, Identity, Key};

/// How often a token is looked at for renewal, and how often the first answer is waited for.
const RENEWAL_CHECK: Duration = Duration::from_secs(60);

/// The name is shown in lists; the node refuses much longer ones. Characters.
pub(crate) const DEVICE_MAX: usize = 60;

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Status {
    /// Looking for a token in this browser, or redeeming an invitation.
    Opening,
    SignedOut {
        notice: Option<Notice>,
    },
    /// A token is here, but the node could not be asked about it.
    Unsure(Failure),
    SignedIn(Principal),
}

/// Why the sign-in page is shown.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Notice {
    SignedOut,
    Failed(String),
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Session {
    pub(crate) client: Client,
    pub(crate) status: RwSignal<Status>,
    /// A remark for the page that opens after signing in.
    pub(crate) remark: RwSignal<Option<String>>,
}

impl Session {
    pub(crate) fn new() -> Self {
        Self { client: Client::new(), status: RwSignal::new(Status::Opening), remark: RwSignal::new(None) }
    }

    /// With the invitation that stood in the address, or with what this browser kept from before.
    pub(crate) async fn open(self, invitation: Option<String>) {
        self.status.set(Status::Opening);
        let Some(invitation) = invitation else { return self.resume().await };
        if let Err(failure) = self.redeem(invitation, browser::device()).await {
            // A link is opened again from a terminal or a history: whoever used it here is still signed in.
            if matches!(failure.code(), Some(ErrorCode::InvitationUsed | ErrorCode::InvitationExpired)) {
                self.resume().await;
                if matches!(self.status.get_untracked(), Status::SignedIn(_)) {
                    self.remark.set(Some("That invitation was used before. You are still signed in.".to_owned()));
                    return;
                }
            }
            self.status.set(Status::SignedOut { notice: Some(Notice::Failed(failure.to_string())) });
        }
    }

    async fn resume(self) {
        let kept = match Identity::load().await {
            Ok(Some(kept)) => kept,
            Ok(None) => return self.status.set(Status::SignedOut { notice: None }),
            Err(error) => {
                let notice = Some(Notice::Failed(Failure::from(error).to_string()));
                return self.status.set(Status::SignedOut { notice });
            }
        };
        self.client.use_identity(Some(kept));
        match self.client.cluster().await {
            Ok(cluster) => self.status.set(Status::SignedIn(cluster.you)),
            Err(failure) if failure.ends_session() => self.end(Notice::Failed(failure.to_string())).await,
            Err(failure) => self.status.set(Status::Unsure(failure)),
        }
    }

    /// # Errors
    /// The invitation is used up, expired or wrong, or the node does not answer; nothing changed.
    pub(crate) async fn redeem(self, invitation: String, device: String) -> Result<(), Failure> {
        let key = Key::generate().await?;
        let request = RedeemInvitation { invitation, key: key.public().clone(), device };
        let issued = self.client.redeem_invitation(&request).await?;
        self.keep(issued, key).await
    }

    /// # Errors
    /// The token is not valid, or the node does not answer; nothing changed.
    pub(crate) async fn bind(self, token: &str, device: String) -> Result<(), Failure> {
        let key = Key::generate().await?;
        let request = BindToken { key: key.public().clone(), device };
        let issued = self.client.bind_token(token, &request).await?;
        self.keep(issued, key).await
    }

    async fn keep(self, issued: IssuedToken, key: Key) -> Result<(), Failure> {
        let principal = issued.principal.clone();
        let identity = Identity::new(issued, key);
        identity.store().await?;
        self.client.use_identity(Some(identity));
        self.status.set(Status::SignedIn(principal));
        Ok(())
    }

    pub(crate) async fn end(self, notice: Notice) {
        self.client.use_identity(None);
        let notice = match Identity::forget().await {
            Ok(()) => notice,
            Err(error) => Notice::Failed(Failure::from(error).to_string()),
        };
        self.status.set(Status::SignedOut { notice: Some(notice) });
    }

    /// Signs out when the node says that the token no longer counts, renews it in time while it does, and follows what
    /// other tabs do.
    pub(crate) fn watch(self) {
        Effect::new(move || {
            let Some(failure) = self.client.ended() else { return };
            // Not bound to this effect, which runs again as soon as the session ends.
            spawn_local(self.end(Notice::Failed(failure.to_string())));
        });
        task::while_shown(async move {
            loop {
                task::sleep(RENEWAL_CHECK).await;
                task::until_visible().await;
                // A renewal that fails is tried again at the next check; the token still counts until it expires.
                let _ = self.renew_if_due().await;
            }
        });
        task::while_shown(async move {
            let (bell, mut sleeper) = bell::bell();
            // A browser without broadcast channels notices at the next answer of the node.
            let _changes = Changes::listen(move || bell.ring());
            loop {
                sleeper.rest().await;
                self.follow_others().await;
            }
        });
    }

    /// Another tab signed in or out or renewed the token. This page's own changes are heard here too, and change nothing.
    async fn follow_others(self) {
        let signed_in = self.status.with_untracked(|status| matches!(status, Status::SignedIn(_)));
        match (Identity::load().await, signed_in) {
            (Ok(Some(identity)), true) => self.client.use_identity(Some(identity)),
            (Ok(Some(_)), false) => self.resume().await,
            (Ok(None), true) => {
                self.client.use_identity(None);
                self.status.set(Status::SignedOut { notice: Some(Notice::SignedOut) });
            }
            (Ok(None), false) | (Err(_), _) => {}
        }
    }

    async fn renew_if_due(self) -> Result<(), Failure> {
        let Some(identity) = Identity::load().await? else { return Ok(()) };
        let now = self.client.node_time(browser::now());
        if !identity.renewal_is_due(now) {
            return Ok(());
        }
        let key = identity.key.clone();
        let issued = self.client.renew_token().await?;
        self.keep(issued, key).await
    }
}

/// The invitation in a link's fragment: `invite=<id>.<secret>`.
pub(crate) fn invitation_in(fragment: &str) -> Option<String> {
    fragment.split('&').find_map(|part| part.strip_prefix("invite=")).filter(|text| !text.is_empty()).map(str::to_owned)
}

/// What a person pastes may be the link, its fragment or the invitation itself; anything with two dots is a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Pasted {
    Invitation(String),
    Token(String),
    Neither,
}

impl Pasted {
    pub(crate) fn read(text: &str) -> Self {
        let text = text.trim();
        let fragment = text.split_once('#').map_or(text, |(_, fragment)| fragment);
        if let Some(invitation) = invitation_in(fragment) {
            return Self::Invitation(invitation);
        }
        let is_part =
            |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b));
        let parts: Vec<_> = text.split('.').collect();
        match parts.len() {
            2 if parts.iter().all(|part| is_part(part)) => Self::Invitation(text.to_owned()),
            3 if parts.iter().all(|part| is_part(part)) => Self::Token(text.to_owned()),
            _ => Self::Neither,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_invitation_is_found_in_a_fragment_and_in_whatever_is_pasted() {
        assert_eq!(invitation_in("invite=ab.cd"), Some("ab.cd".into()));
        assert_eq!(invitation_in("x=1&invite=ab.cd"), Some("ab.cd".into()));
        assert_eq!(invitation_in("invite="), None);
        assert_eq!(invitation_in(""), None);
        let invitation = Pasted::Invitation("ab.cd-_".into());
        for text in ["ab.cd-_", " http://app.home.localhost:7070/#invite=ab.cd-_\n", "#invite=ab.cd-_"] {
            assert_eq!(Pasted::read(text), invitation, "{text:?}");
        }
        assert_eq!(Pasted::read("a.b.c"), Pasted::Token("a.b.c".into()));
        for text in ["", "hello", "a..b", "a b.c", "http://app.home.localhost/"] {
            assert_eq!(Pasted::read(text), Pasted::Neither, "{text:?}");
        }
    }
}
