//! The way in for orders while a demo runs: a Unix socket in its directory, with one line of JSON each way.

use std::{
    io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use flotilla_api::MachineName;
use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{UnixListener, UnixStream},
    sync::Semaphore,
    task::JoinHandle,
    time::timeout,
};

use super::{machine::Power, outage::Outage};
use crate::cli::Failure;

/// An order, and its answer with what was seen of a few dozen services. Bytes.
const LINE_MAX: u64 = 256 * 1024;

/// Orders at one time: a person at a terminal, and a few at dashboards.
const ORDERS_MAX: usize = 8;

/// Whoever connects says at once what for, and reads the answer at once.
const TALKING: Duration = Duration::from_secs(5);

/// An order takes at most as long as an outage is watched and a machine takes to start, and some more.
const ANSWERING: Duration = Duration::from_secs(180);

/// Path of a Unix socket (unix(7)), with the zero at its end. Bytes.
const PATH_MAX: usize = 108;

/// What the demo is told to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Order {
    /// `{"kill":"atlas"}`: pull its plug, and tell what people saw.
    Kill(MachineName),
    /// `{"start":"atlas"}`: put it in again.
    Start(MachineName),
    /// `{"status":{}}`
    Status {},
}

/// What became of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Answer {
    pub(super) ok: bool,
    /// One sentence, if not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) error: Option<String>,
    /// All machines of the demo, as they are after it.
    #[serde(default)]
    pub(super) machines: Vec<MachineStatus>,
    /// Of `kill`; of `status` the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) outage: Option<Outage>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct MachineStatus {
    pub(super) name: MachineName,
    pub(super) power: Power,
    pub(super) api_url: String,
    pub(super) pid: Option<u32>,
}

impl Answer {
    pub(super) fn refused(error: impl Into<String>) -> Self {
        Self { ok: false, error: Some(error.into()), machines: Vec::new(), outage: None }
    }
}

/// Carries orders out.
pub(super) trait Obey: Send + Sync + 'static {
    fn obey(&self, order: Order) -> BoxFuture<'_, Answer>;
}

/// The socket; it is gone with this value.
#[derive(Debug)]
pub(super) struct Control {
    path: PathBuf,
    task: JoinHandle<()>,
}

impl Control {
    /// Listens in a directory that nobody else uses: a socket that is there is that of a demo that was killed.
    pub(super) fn listen(path: &Path, obey: Arc<dyn Obey>) -> Result<Self, Failure> {
        check_length(path)?;
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(Failure::io("replace", path)(error)),
            _ => {}
        }
        let listener = UnixListener::bind(path).map_err(Failure::io("listen on", path))?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
            .map_err(Failure::io("restrict", path))?;
        Ok(Self { path: path.to_owned(), task: tokio::spawn(serve(listener, obey)) })
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.task.abort();
        // Gone already is as good.
        let _ = std::fs::remove_file(&self.path);
    }
}

fn check_length(path: &Path) -> Result<(), Failure> {
    if path.as_os_str().len() < PATH_MAX {
        return Ok(());
    }
    Err(Failure::Usage(format!(
        "the path `{}` is too long for a socket; choose a shorter one with --state",
        path.display()
    )))
}

async fn serve(listener: UnixListener, obey: Arc<dyn Obey>) {
    let places = Arc::new(Semaphore::new(ORDERS_MAX));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else { return };
        let obey = Arc::clone(&obey);
        // By itself: an order that was given is carried out though the one who gave it is gone, perhaps by that very order.
        tokio::spawn(async move {
            attend(stream, &*obey).await;
            drop(place);
        });
    }
}

async fn attend(stream: UnixStream, obey: &dyn Obey) {
    let (read, mut write) = stream.into_split();
    let mut line = String::new();
    let mut lines = BufReader::new(read.take(LINE_MAX));
    let Ok(Ok(_)) = timeout(TALKING, lines.read_line(&mut line)).await else { return };
    let answer = match serde_json::from_str(&line) {
        Ok(order) => obey.obey(order).await,
        Err(_) => Answer::refused(r#"this is no order; say {"kill":"NAME"}, {"start":"NAME"} or {"status":{}}"#),
    };
    let Ok(mut text) = serde_json::to_vec(&answer) else { return };
    text.push(b'\n');
    let _ = timeout(TALKING, write.write_all(&text)).await;
}

/// Gives an order to the demo that runs in a directory.
///
/// # Errors
/// None runs there, or it refuses.
pub(super) async fn give(directory: &Path, socket: &Path, order: &Order) -> Result<Answer, Failure> {
    check_length(socket)?;
    let mut stream = UnixStream::connect(socket).await.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Failure::NotFound(format!(
            "no demo runs in `{0}`; start one with `flotilla demo --state {0}`, or name its directory with --state",
            directory.display()
        )),
        _ => Failure::io("connect to", socket)(error),
    })?;
    let asked = async {
        let mut text = serde_json::to_vec(order)?;
        text.push(b'\n');
        stream.write_all(&text).await?;
        let mut line = String::new();
        BufReader::new(stream.take(LINE_MAX)).read_line(&mut line).await?;
        io::Result::Ok(line)
    };
    let line = match timeout(ANSWERING, asked).await {
        Ok(Ok(line)) => line,
        Ok(Err(error)) => return Err(Failure::io("talk over", socket)(error)),
        Err(_) => return Err(Failure::Other(format!("the demo did not answer within {} s", ANSWERING.as_secs()))),
    };
    let answer: Answer = serde_json::from_str(&line)
        .map_err(|_| Failure::Other("the demo ended before it answered, or is of another version".into()))?;
    match answer.error {
        Some(error) => Err(Failure::Other(error)),
        None => Ok(answer),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Echo;

    impl Obey for Echo {
        fn obey(&self, order: Order) -> BoxFuture<'_, Answer> {
            let answer = match order {
                Order::Kill(name) => Answer::refused(format!("{name} is off already")),
                Order::Start(name) => {
                    let machine = MachineStatus { name, power: Power::On, api_url: "a".into(), pid: Some(7) };
                    Answer { ok: true, error: None, machines: vec![machine], outage: None }
                }
                Order::Status {} => Answer { ok: true, error: None, machines: Vec::new(), outage: None },
            };
            Box::pin(async { answer })
        }
    }

    #[test]
    fn orders_are_as_agreed() {
        for (text, order) in [
            (r#"{"kill":"atlas"}"#, Order::Kill("atlas".parse().unwrap())),
            (r#"{"start":"boreas"}"#, Order::Start("boreas".parse().unwrap())),
            (r#"{"status":{}}"#, Order::Status {}),
        ] {
            assert_eq!(serde_json::from_str::<Order>(text).unwrap(), order);
            assert_eq!(serde_json::to_string(&order).unwrap(), text);
        }
    }

    #[tokio::test]
    async fn an_order_is_answered_and_the_socket_goes_with_the_demo() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("control.sock");
        // Of a demo that was killed.
        drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
        let nobody = give(directory.path(), &socket, &Order::Status {}).await.unwrap_err();
        assert!(matches!(nobody, Failure::NotFound(_)), "{nobody:?}");

        let control = Control::listen(&socket, Arc::new(Echo)).unwrap();
        let answer = give(directory.path(), &socket, &Order::Start("atlas".parse().unwrap())).await.unwrap();
        assert_eq!(answer.machines[0].pid, Some(7));
        let refused = give(directory.path(), &socket, &Order::Kill("atlas".parse().unwrap())).await.unwrap_err();
        assert_eq!(refused.to_string(), "atlas is off already");

        let mut stream = UnixStream::connect(&socket).await.unwrap();
        stream.write_all(b"dance\n").await.unwrap();
        let mut said = String::new();
        stream.read_to_string(&mut said).await.unwrap();
        assert!(said.contains(r#""ok":false"#) && said.contains("no order"), "{said}");
        drop(control);
        assert!(!socket.exists());
    }
}
