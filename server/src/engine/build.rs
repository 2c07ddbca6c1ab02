//! Images from a Dockerfile, by the engine's own builder.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bollard::{
    body_try_stream,
    errors::Error as DockerError,
    models::BuildInfo,
    query_parameters::{BuildImageOptions, BuilderVersion},
};
use bytes::Bytes;
use flotilla_api::rest::{BuildLine, BuildQuery};
use futures::{Stream, StreamExt, stream::BoxStream};
use tokio::sync::mpsc;

use super::{
    Error,
    connection::{Client, one_line},
    image,
};

/// Builds at once; each may use all cores.
pub(super) const BUILDS_AT_ONCE: usize = 2;

/// All of a build.
const BUILD_LIMIT: Duration = Duration::from_secs(60 * 60);

/// Output that waits for its reader. A slow reader slows the build, and costs no memory.
const OUTPUT_QUEUE: usize = 64;

/// Build arguments, as JSON. Bytes.
const ARGUMENTS_MAX: usize = 64 * 1024;

/// Checks what can be checked before anything is sent.
pub(super) fn options(query: &BuildQuery) -> Result<BuildImageOptions, Error> {
    image::check_tag(&query.image)?;
    let dockerfile = query.dockerfile.clone().unwrap_or_else(|| "Dockerfile".to_owned());
    if dockerfile.starts_with('/') || dockerfile.split('/').any(|part| part == "..") {
        return Err(Error::Invalid(format!(
            "`{}` is no path in the build context; name the Dockerfile relative to it",
            dockerfile.escape_debug()
        )));
    }
    let buildargs = match &query.args {
        Some(text) if text.len() > ARGUMENTS_MAX => {
            return Err(Error::Invalid(format!("the build arguments are longer than {ARGUMENTS_MAX} bytes")));
        }
        Some(text) => Some(
            serde_json::from_str::<HashMap<String, String>>(text)
                .map_err(|error| Error::Invalid(format!("the build arguments are no JSON object of texts: {error}")))?,
        ),
        None => None,
    };
    Ok(BuildImageOptions {
        dockerfile,
        t: Some(query.image.clone()),
        target: query.target.clone().unwrap_or_default(),
        buildargs,
        rm: true,
        forcerm: true,
        // Each engine has this builder; the other one needs a session of its own beside the request.
        version: BuilderVersion::BuilderV1,
        ..Default::default()
    })
}

/// Lines as they come, and last how it ended. Dropping the stream ends the build.
pub(super) fn run<E: std::fmt::Display + Send + 'static>(
    client: Client,
    image: String,
    options: BuildImageOptions,
    context: impl Stream<Item = Result<Bytes, E>> + Send + 'static,
    permit: tokio::sync::OwnedSemaphorePermit,
) -> BoxStream<'static, BuildLine> {
    let (sender, mut receiver) = mpsc::channel(OUTPUT_QUEUE);
    tokio::spawn(async move {
        let _permit = permit;
        let last = tokio::select! {
            // Nobody listens any more.
            () = sender.closed() => return,
            built = tokio::time::timeout(BUILD_LIMIT, build(&client, &image, options, context, &sender)) => match built {
                Ok(Ok(id)) => BuildLine::Done { image: id },
                Ok(Err(error)) => BuildLine::Error { error: error.into() },
                Err(_) => BuildLine::Error {
                    error: Error::Timeout { operation: "build the image", seconds: BUILD_LIMIT.as_secs() }.into(),
                },
            },
        };
        // If the reader has left, nobody needs it.
        let _ = sender.send(last).await;
    });
    futures::stream::poll_fn(move |context| receiver.poll_recv(context)).boxed()
}

async fn build<E: std::fmt::Display + Send + 'static>(
    client: &Client,
    image: &str,
    options: BuildImageOptions,
    context: impl Stream<Item = Result<Bytes, E>> + Send + 'static,
    output: &mpsc::Sender<BuildLine>,
) -> Result<String, Error> {
    let broken = Arc::new(Mutex::new(None));
    let noted = Arc::clone(&broken);
    let context = context.map(move |chunk| {
        chunk.map_err(|error| {
            let why = error.to_string();
            *noted.lock().unwrap_or_else(PoisonError::into_inner) = Some(why.clone());
            std::io::Error::other(why)
        })
    });
    let mut answers = Box::pin(client.docker().build_image(options, None, Some(body_try_stream(context))));
    while let Some(answer) = answers.next().await {
        match answer {
            Ok(info) => {
                for line in lines(info) {
                    if output.send(BuildLine::Output { text: line }).await.is_err() {
                        return Err(Error::Cancelled);
                    }
                }
            }
            Err(error) => {
                let sender = broken.lock().unwrap_or_else(PoisonError::into_inner).take();
                let why = match (sender, error) {
                    (Some(why), _) => format!("its context did not arrive: {}", one_line(&why)),
                    (
                        None,
                        DockerError::DockerStreamError { error: message }
                        | DockerError::DockerResponseServerError { message, .. },
                    ) => one_line(&message),
                    (None, other) => return Err(client.error("build the image", other)),
                };
                return Err(Error::Build { image: image.to_owned(), why });
            }
        }
    }
    let id = image::local(client, image).await?;
    id.ok_or_else(|| Error::Build { image: image.to_owned(), why: "the builder made no image".to_owned() })
}

fn lines(info: BuildInfo) -> Vec<String> {
    // Progress of pulling a base image: `status` without figures, which change many times a second.
    let text = match (info.stream, info.status, info.progress_detail) {
        (Some(text), _, _) => text,
        (None, Some(status), None) => info.id.map_or(status.clone(), |id| format!("{id}: {status}")),
        _ => return Vec::new(),
    };
    text.lines().map(str::trim_end).filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(dockerfile: &str) -> BuildQuery {
        BuildQuery { image: "notes:1".into(), dockerfile: Some(dockerfile.into()), target: None, args: None }
    }

    #[test]
    fn a_dockerfile_outside_of_the_context_is_refused() {
        assert!(options(&query("docker/Dockerfile.dev")).is_ok());
        for bad in ["/etc/passwd", "../Dockerfile", "a/../../b"] {
            assert!(options(&query(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn build_arguments_are_an_object_of_texts() {
        let with = |args: &str| options(&BuildQuery { args: Some(args.into()), ..query("Dockerfile") });
        assert_eq!(with(r#"{"A":"1"}"#).unwrap().buildargs.unwrap()["A"], "1");
        assert!(with("[]").is_err());
        assert!(with(r#"{"A":1}"#).is_err());
    }
}
