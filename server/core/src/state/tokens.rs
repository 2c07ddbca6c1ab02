//! Tokens and invitations in the state: issue, renew, revoke, redeem.

use flotilla_api::{ErrorCode, Scope, TokenId, UnixMillis};

use super::{
    Applied, EXPIRED_KEPT_MS, Event, INVITATIONS_MAX, Rejected, SERVICES_MAX, State, TOKEN_NAME_MAX, TOKENS_MAX,
};
use crate::command::{InvitationRecord, TokenRecord};

impl State {
    pub(super) fn issue_token(&mut self, at: UnixMillis, token: &TokenRecord) -> Result<Applied, Rejected> {
        self.check_new_token(at, token)?;
        self.insert_token(at, token);
        Ok(Applied::done(Event::new(
            "token-issued",
            None,
            format!("A token with the scope {} was issued to {}.", token.grant.scope, quoted(&token.name)),
        )))
    }

    pub(super) fn renew_token(
        &mut self,
        at: UnixMillis,
        id: &TokenId,
        expires_at: UnixMillis,
    ) -> Result<Applied, Rejected> {
        let token = self.tokens.get_mut(id).ok_or_else(unknown_token)?;
        if token.revoked_at.is_some() {
            return Err(Rejected::new(
                ErrorCode::TokenRevoked,
                "the token was revoked and can't be renewed; ask for a new invitation",
            ));
        }
        if token.expires_at <= at {
            return Err(Rejected::new(
                ErrorCode::TokenExpired,
                "the token has expired and can't be renewed; ask for a new invitation",
            ));
        }
        check_expiry(at, expires_at)?;
        if token.made_from.as_ref().is_some_and(|from| expires_at > from.expires_at) {
            return Err(Rejected::new(
                ErrorCode::InvalidRequest,
                "a token can't outlive the one it was made from; ask for a new one",
            ));
        }
        token.expires_at = expires_at;
        let message = format!("The token of {} was renewed.", quoted(&token.name));
        Ok(Applied::done(Event::new("token-renewed", None, message)))
    }

    pub(super) fn revoke_token(&mut self, at: UnixMillis, id: &TokenId) -> Result<Applied, Rejected> {
        if let Some(invitation) = self.invitations.get(id) {
            if invitation.used_at.is_some() {
                return Err(Rejected::new(
                    ErrorCode::InvitationUsed,
                    "the invitation was used already; revoke the token that it became",
                ));
            }
            let message = format!("The invitation for {} was withdrawn.", quoted(&invitation.name));
            self.invitations.remove(id);
            return Ok(Applied::done(Event::new("invitation-withdrawn", None, message)));
        }
        let token = self.tokens.get_mut(id).ok_or_else(unknown_token)?;
        if token.revoked_at.is_some() {
            // Not `TokenRevoked`: a client would take that for its own token.
            return Err(Rejected::new(
                ErrorCode::Conflict,
                "the token was revoked before; there is nothing left to do",
            ));
        }
        token.revoked_at = Some(at);
        let message = format!("The token of {} was revoked.", quoted(&token.name));
        // What browsers exchanged it for goes with it. Those are bound, and what is bound is not exchanged again.
        for made in self.tokens.values_mut().filter(|made| made.made_from.as_ref().is_some_and(|from| from.id == *id)) {
            made.revoked_at.get_or_insert(at);
        }
        Ok(Applied::done(Event::new("token-revoked", None, message)))
    }

    pub(super) fn create_invitation(
        &mut self,
        at: UnixMillis,
        invitation: &InvitationRecord,
    ) -> Result<Applied, Rejected> {
        if invitation.stores_only {
            return Err(Rejected::new(ErrorCode::InvalidRequest, "a machine that only stores is invited as such"));
        }
        self.open_invitation(at, invitation)
    }

    /// Of a machine that only stores.
    pub(super) fn invite_storage(
        &mut self,
        at: UnixMillis,
        invitation: &InvitationRecord,
    ) -> Result<Applied, Rejected> {
        if invitation.grant.scope != Scope::Machine {
            return Err(Rejected::new(ErrorCode::InvalidRequest, "only a machine can be one that only stores"));
        }
        self.open_invitation(at, &InvitationRecord { stores_only: true, ..invitation.clone() })
    }

    fn open_invitation(&mut self, at: UnixMillis, invitation: &InvitationRecord) -> Result<Applied, Rejected> {
        self.check_new_id(&invitation.id)?;
        check_name(&invitation.name)?;
        check_services(invitation.grant.services.len())?;
        check_expiry(at, invitation.expires_at)?;
        if invitation.used_at.is_some() {
            return Err(Rejected::new(ErrorCode::InvalidRequest, "a new invitation can't be used already"));
        }
        let open = self.invitations.values().filter(|other| other.used_at.is_none() && other.expires_at > at).count();
        if open >= INVITATIONS_MAX {
            return Err(Rejected::new(
                ErrorCode::Conflict,
                format!("{INVITATIONS_MAX} invitations are open; wait until some are used or have expired"),
            ));
        }
        if self.invitations.len() >= INVITATIONS_MAX {
            self.invitations.retain(|_, other| other.used_at.is_none() && other.expires_at > at);
        } else {
            self.invitations.retain(|_, other| other.expires_at.plus(EXPIRED_KEPT_MS) > at);
        }
        self.invitations.insert(invitation.id.clone(), invitation.clone());
        Ok(Applied::done(Event::new(
            "invitation-created",
            None,
            format!(
                "An invitation with the scope {}{} was made for {}.",
                invitation.grant.scope,
                if invitation.stores_only { " (storage only)" } else { "" },
                quoted(&invitation.name)
            ),
        )))
    }

    pub(super) fn redeem_invitation(
        &mut self,
        at: UnixMillis,
        id: &TokenId,
        token: &TokenRecord,
    ) -> Result<Applied, Rejected> {
        let Some(invitation) = self.invitations.get(id) else {
            return Err(Rejected::new(
                ErrorCode::InvitationInvalid,
                "the invitation is not known here; ask for a new one, and copy the whole link",
            ));
        };
        if invitation.used_at.is_some() {
            return Err(Rejected::new(
                ErrorCode::InvitationUsed,
                "the invitation was used already, and works only once; ask for a new one",
            ));
        }
        if invitation.expires_at <= at {
            return Err(Rejected::new(ErrorCode::InvitationExpired, "the invitation has expired; ask for a new one"));
        }
        if token.grant != invitation.grant {
            return Err(Rejected::new(
                ErrorCode::InvalidRequest,
                "the token's grant is not the one that the invitation stands for",
            ));
        }
        self.check_new_token(at, token)?;
        let message = format!("The invitation for {} was used.", quoted(&invitation.name));
        self.insert_token(at, token);
        if let Some(invitation) = self.invitations.get_mut(id) {
            invitation.used_at = Some(at);
        }
        Ok(Applied::done(Event::new("invitation-redeemed", None, message)))
    }

    fn check_new_token(&self, at: UnixMillis, token: &TokenRecord) -> Result<(), Rejected> {
        self.check_new_id(&token.id)?;
        check_name(&token.name)?;
        check_services(token.grant.services.len())?;
        check_expiry(at, token.expires_at)?;
        if token.revoked_at.is_some() {
            return Err(Rejected::new(ErrorCode::InvalidRequest, "a new token can't be revoked already"));
        }
        if self.tokens.values().filter(|other| is_live(other, at)).count() >= TOKENS_MAX {
            return Err(Rejected::new(
                ErrorCode::Conflict,
                format!("{TOKENS_MAX} tokens are valid already; revoke those that nobody uses"),
            ));
        }
        Ok(())
    }

    fn check_new_id(&self, id: &TokenId) -> Result<(), Rejected> {
        if self.tokens.contains_key(id) || self.invitations.contains_key(id) {
            return Err(Rejected::new(ErrorCode::Conflict, "this token id is taken; try again with a new one"));
        }
        Ok(())
    }

    /// Forgets what nobody can use any more: late, so that a list still shows it, and at once when there is no room.
    fn insert_token(&mut self, at: UnixMillis, token: &TokenRecord) {
        if self.tokens.len() >= TOKENS_MAX {
            self.tokens.retain(|_, other| is_live(other, at));
        } else {
            self.tokens.retain(|_, other| other.expires_at.plus(EXPIRED_KEPT_MS) > at);
        }
        self.tokens.insert(token.id.clone(), token.clone());
    }
}

fn is_live(token: &TokenRecord, at: UnixMillis) -> bool {
    token.revoked_at.is_none() && token.expires_at > at
}

fn check_name(name: &str) -> Result<(), Rejected> {
    if name.trim().is_empty() {
        return Err(Rejected::new(ErrorCode::InvalidName, "the token needs a name, so that it is known in the list"));
    }
    if name.chars().count() > TOKEN_NAME_MAX || name.chars().any(char::is_control) {
        return Err(Rejected::new(
            ErrorCode::InvalidName,
            format!("a token's name has at most {TOKEN_NAME_MAX} characters, and none that can't be seen"),
        ));
    }
    Ok(())
}

fn check_services(count: usize) -> Result<(), Rejected> {
    if count > SERVICES_MAX {
        return Err(Rejected::new(ErrorCode::InvalidRequest, format!("a grant names at most {SERVICES_MAX} services")));
    }
    Ok(())
}

fn check_expiry(at: UnixMillis, expires_at: UnixMillis) -> Result<(), Rejected> {
    if expires_at <= at {
        return Err(Rejected::new(
            ErrorCode::InvalidRequest,
            "the time of expiry lies in the past; choose a later one",
        ));
    }
    Ok(())
}

fn unknown_token() -> Rejected {
    Rejected::new(ErrorCode::TokenNotFound, "there is no such token; `flotilla token list` shows those that there are")
}

/// Names come from people: a line break in one may not forge a line of the audit trail.
fn quoted(name: &str) -> String {
    format!("`{}`", name.escape_debug())
}
