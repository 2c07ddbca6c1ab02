//! Tokens and invitations: who may do what.

use std::{collections::BTreeSet, time::Duration};

use comfy_table::Cell;
use flotilla_api::{
    Grant, Scope, ServiceName,
    rest::{CreateInvitation, CreateToken, TokenView},
};
use serde_json::json;

use super::{
    Failure, Session,
    args::{GrantArgs, Invite, Token},
    output, time,
};
use crate::clock;

/// How long a token works where nothing is said.
const TOKEN_LIFE: Duration = Duration::from_secs(30 * 24 * 3600);

/// A machine that joins is at hand, and its token stands in a terminal's history.
const JOIN_TOKEN_LIFE: Duration = Duration::from_secs(24 * 3600);

fn grant(args: GrantArgs) -> Result<Grant, Failure> {
    let scope = Scope::from(args.scope);
    match (scope, args.services.is_empty()) {
        (Scope::User, true) => Err(Failure::Usage(
            "a user's token opens nothing by itself; name a service with --service, or use --scope".into(),
        )),
        (Scope::User, false) | (_, true) => {
            Ok(Grant { scope, services: args.services.into_iter().collect::<BTreeSet<ServiceName>>() })
        }
        (Scope::Machine, false) => Err(Failure::Usage("a machine opens no service; leave out --service".into())),
        (_, false) => Err(Failure::Usage(format!("an {scope} opens every service; leave out --service"))),
    }
}

fn services(grant: &Grant) -> String {
    match grant.scope {
        Scope::User => grant.services.iter().map(ServiceName::as_str).collect::<Vec<_>>().join(", "),
        Scope::Machine => String::new(),
        Scope::Operator | Scope::Admin => "all".into(),
    }
}

fn seconds(duration: Duration) -> u64 {
    duration.as_secs().max(1)
}

pub(super) async fn tokens(verb: Token, session: &Session) -> Result<(), Failure> {
    let output = session.output;
    match verb {
        Token::Create { name, grant: args, expires, storage_only, quiet } => {
            let grant = grant(args)?;
            let is_machine = grant.scope == Scope::Machine;
            if storage_only && !is_machine {
                return Err(Failure::Usage("only a machine can be one that only stores; say --scope machine".into()));
            }
            let name = match name {
                Some(name) => name,
                None if storage_only => "storage machine".to_owned(),
                None if is_machine => "machine".to_owned(),
                None => return Err(Failure::Usage("give the token a name that says for what or whom it is".into())),
            };
            let expires = expires.unwrap_or(if is_machine { JOIN_TOKEN_LIFE } else { TOKEN_LIFE });
            let request = CreateToken { name, grant, ttl_seconds: seconds(expires), storage_only };
            let created = session.client.create_token(&request).await?;
            if output.json {
                return output.value(&created);
            }
            output.line(&created.token)?;
            if let (Some(join), false) = (&created.join, quiet) {
                output.note(&format!("\nOn the new machine:  {}\n", output.strong(&join.command)));
                output.note(&format!(
                    "It works once, for one machine, and ends {} (id {}). It will look for the cluster at {}.",
                    time::until(clock::now(), created.expires_at),
                    created.id,
                    join.addresses.join(", ")
                ));
                if storage_only {
                    output.note(
                        "It will keep copies of encrypted volumes and can't read them; it sees names, sizes and times, and the \
                         specifications of services with their environment.",
                    );
                }
                if let Some(warning) = &join.warning {
                    output.note(&format!("warning: {warning}"));
                }
            } else if !quiet {
                output.note(&format!(
                    "This is the only time that it is shown. It ends {} (id {}).",
                    time::until(clock::now(), created.expires_at),
                    created.id
                ));
            }
            Ok(())
        }
        Token::List => {
            let tokens = session.client.tokens().await?;
            if output.json {
                return output.value(&tokens);
            }
            let now = clock::now();
            let rows = tokens
                .iter()
                .map(|token| {
                    let ends = match token.revoked_at {
                        Some(_) => "revoked".into(),
                        None => time::until(now, token.expires_at),
                    };
                    vec![
                        Cell::new(&token.id),
                        Cell::new(&token.name),
                        Cell::new(token.grant.scope),
                        Cell::new(services(&token.grant)),
                        Cell::new(time::age(now, token.created_at)),
                        Cell::new(ends),
                        Cell::new(kind(token)),
                    ]
                })
                .collect();
            output.table(&["ID", "NAME", "SCOPE", "SERVICES", "AGE", "ENDS", "KIND"], rows, "There is no token.")
        }
        Token::Revoke { id } => {
            session.client.revoke_token(&id).await?;
            output.done(&format!("Revoked {id}."), &json!({ "revoked": id }))
        }
    }
}

fn kind(token: &TokenView) -> &'static str {
    match (token.unused, &token.bound_to) {
        (true, _) if token.grant.scope == Scope::Machine => "join token",
        (true, _) => "invitation",
        (false, Some(_)) => "browser",
        (false, None) => "bearer",
    }
}

pub(super) async fn invite(verb: Invite, session: &Session) -> Result<(), Failure> {
    let Invite::Create { name, grant: args, expires } = verb;
    let output = session.output;
    let grant = grant(args)?;
    if grant.scope == Scope::Machine {
        let sentence = "a machine joins with a token, not with a link: `flotilla token create --scope machine`";
        return Err(Failure::Usage(sentence.into()));
    }
    let request = CreateInvitation { name, grant, ttl_seconds: seconds(expires) };
    let created = session.client.create_invitation(&request).await?;
    if output.json {
        return output.value(&created);
    }
    output.line(&output.link(&created.url))?;
    if output.draws_progress()
        && let Some(drawing) = output::qr(&created.url, output.colours())
    {
        output.note(&format!("\n{drawing}"));
    }
    output.note(&format!(
        "It signs one browser in, once, and ends {}. Send it as you would send a password.",
        time::until(clock::now(), created.expires_at)
    ));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{super::args::ScopeArg, *};

    #[test]
    fn a_user_needs_services_and_an_operator_none() {
        let args = |scope, services: &[&str]| GrantArgs {
            scope,
            services: services.iter().map(|name| name.parse().unwrap()).collect(),
        };
        assert!(grant(args(ScopeArg::User, &[])).is_err());
        assert!(grant(args(ScopeArg::Operator, &["notes"])).is_err());
        assert!(grant(args(ScopeArg::Machine, &["notes"])).is_err());
        assert_eq!(grant(args(ScopeArg::Machine, &[])).unwrap().scope, Scope::Machine);
        assert_eq!(services(&grant(args(ScopeArg::User, &["notes", "docs"])).unwrap()), "docs, notes");
        assert_eq!(services(&grant(args(ScopeArg::Admin, &[])).unwrap()), "all");
    }
}
