//! Waiting for a condition, and for nothing else: no test sleeps for a time that was guessed.

use std::{fmt::Display, time::Duration};

use anyhow::{Context, Result, bail};
use tokio::time::{Instant, sleep};

/// How often a condition is looked at.
const STEP: Duration = Duration::from_millis(25);

/// Asks until there is an answer; what was asked for is in the error, with the last reason why there was none.
pub async fn until<T>(
    what: impl Display,
    limit: Duration,
    mut ask: impl AsyncFnMut() -> Result<Option<T>>,
) -> Result<T> {
    let end = Instant::now() + limit;
    loop {
        let last = match ask().await {
            Ok(Some(answer)) => return Ok(answer),
            Ok(None) => None,
            Err(error) => Some(error),
        };
        if Instant::now() >= end {
            return match last {
                Some(error) => Err(error).with_context(|| format!("waited {limit:?} for {what}")),
                None => bail!("waited {limit:?} in vain for {what}"),
            };
        }
        sleep(STEP).await;
    }
}

/// [`until`], for a condition that holds or does not.
pub async fn holds(what: impl Display, limit: Duration, mut ask: impl AsyncFnMut() -> Result<bool>) -> Result<()> {
    until(what, limit, async || Ok(ask().await?.then_some(()))).await
}
