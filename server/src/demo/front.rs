//! The one address that people use: a TCP port that leads to a machine that is alive, as a name does that stands for several.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    net::TcpStream,
    sync::Semaphore,
    task::{JoinHandle, JoinSet},
    time::timeout,
};

use crate::cli::Failure;

/// Connections at one time: a few dozen pages with their signalling and requests. Each has two sockets.
const CONNECTIONS_MAX: usize = 1024;

/// A node on this computer accepts at once, or is dead.
const CONNECTING: Duration = Duration::from_secs(1);

/// Where accepting fails for want of file descriptors, connections have to end first.
const BREATHER: Duration = Duration::from_millis(100);

/// Leads connections to the machines behind it until it is dropped.
#[derive(Debug)]
pub(super) struct Front {
    doors: Doors,
    task: JoinHandle<()>,
}

/// The machines behind a [`Front`]. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Doors(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    doors: Mutex<Vec<Door>>,
    /// The one that is used as long as it leads somewhere: a page that loads from two machines in turns would be no
    /// worse off, but people could not see what the loss of one does.
    current: AtomicUsize,
}

#[derive(Clone, Copy, Debug)]
struct Door {
    address: SocketAddr,
    /// Whether it is tried: a machine that is just starting accepts before it serves.
    open: bool,
}

/// The port, taken before anything else is made.
pub(super) fn take_port(port: u16) -> Result<TcpListener, Failure> {
    let taken = |error: io::Error| match error.kind() {
        io::ErrorKind::AddrInUse => Failure::Other(format!(
            "port {port} is in use by another program; stop that, or choose another with --port"
        )),
        io::ErrorKind::PermissionDenied => {
            Failure::Other(format!("port {port} needs root; choose one from 1024 up with --port"))
        }
        _ => Failure::Other(format!("port {port} can't be used: {error}")),
    };
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).map_err(taken)?;
    listener.set_nonblocking(true).map_err(taken)?;
    Ok(listener)
}

impl Front {
    /// All doors are closed at first.
    pub(super) fn open(listener: TcpListener, machines: &[SocketAddr]) -> io::Result<Self> {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let doors = machines.iter().map(|address| Door { address: *address, open: false }).collect();
        let doors = Doors(Arc::new(Inner { doors: Mutex::new(doors), current: AtomicUsize::new(0) }));
        let task = tokio::spawn(serve(listener, doors.clone()));
        Ok(Self { doors, task })
    }

    pub(super) fn doors(&self) -> Doors {
        self.doors.clone()
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        // With it go its connections.
        self.task.abort();
    }
}

impl Doors {
    /// Opens or closes the door to the machine with this index.
    pub(super) fn set(&self, index: usize, open: bool) {
        if let Some(door) = self.lock().get_mut(index) {
            door.open = open;
        }
    }

    /// Open doors, the one in use first.
    fn in_order(&self) -> Vec<(usize, SocketAddr)> {
        let doors = self.lock();
        let current = self.0.current.load(Relaxed);
        let indices = (0..doors.len()).map(|offset| (current + offset) % doors.len());
        indices.filter(|index| doors[*index].open).map(|index| (index, doors[index].address)).collect()
    }

    async fn enter(&self) -> Option<TcpStream> {
        for (index, address) in self.in_order() {
            if let Ok(Ok(stream)) = timeout(CONNECTING, TcpStream::connect(address)).await {
                self.0.current.store(index, Relaxed);
                return Some(stream);
            }
        }
        None
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Door>> {
        self.0.doors.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn serve(listener: tokio::net::TcpListener, doors: Doors) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        // Those who find no place wait in the listener's queue.
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
        };
        let Ok((client, _)) = accepted else {
            tokio::time::sleep(BREATHER).await;
            continue;
        };
        let doors = doors.clone();
        connections.spawn(async move {
            splice(client, &doors).await;
            drop(place);
        });
    }
}

/// Until both sides are done. Where no machine is alive the connection is closed, as it would be without a front.
async fn splice(mut client: TcpStream, doors: &Doors) {
    let Some(mut machine) = doors.enter().await else { return };
    // Without it a small message waits for the one before it to be acknowledged; it is only slower.
    let _ = client.set_nodelay(true).and_then(|()| machine.set_nodelay(true));
    // However it ends, both sides see it: their sockets are closed.
    let _ = tokio::io::copy_bidirectional(&mut client, &mut machine).await;
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// A machine that says its name to whoever comes, and then what it is told.
    struct Machine {
        address: SocketAddr,
        task: JoinHandle<()>,
    }

    impl Machine {
        async fn start(name: &'static str) -> Self {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let task = tokio::spawn(async move {
                let mut connections = JoinSet::new();
                while let Ok((mut stream, _)) = listener.accept().await {
                    connections.spawn(async move {
                        stream.write_all(name.as_bytes()).await.unwrap();
                        let (mut read, mut write) = stream.split();
                        let _ = tokio::io::copy(&mut read, &mut write).await;
                    });
                }
            });
            Self { address, task }
        }
    }

    async fn name(stream: &mut TcpStream) -> Option<String> {
        let mut name = [0; 5];
        stream.read_exact(&mut name).await.ok()?;
        Some(String::from_utf8_lossy(&name).into_owned())
    }

    #[tokio::test]
    async fn a_connection_leads_to_the_same_machine_until_that_dies_and_then_to_the_next() {
        let (first, second) = (Machine::start("first").await, Machine::start("other").await);
        let listener = take_port(0).unwrap();
        let port = listener.local_addr().unwrap().port();
        let front = Front::open(listener, &[first.address, second.address]).unwrap();
        let connect = async || TcpStream::connect(("127.0.0.1", port)).await.unwrap();

        assert_eq!(name(&mut connect().await).await, None, "a door was open");
        front.doors().set(0, true);
        front.doors().set(1, true);
        let mut held = connect().await;
        assert_eq!(name(&mut held).await.as_deref(), Some("first"));
        assert_eq!(name(&mut connect().await).await.as_deref(), Some("first"));
        held.write_all(b"again").await.unwrap();
        assert_eq!(name(&mut held).await.as_deref(), Some("again"));

        first.task.abort();
        assert_eq!(held.read(&mut [0; 1]).await.unwrap_or(0), 0, "the connection outlived its machine");
        assert_eq!(name(&mut connect().await).await.as_deref(), Some("other"));
        // Sticky: that the first is back moves nobody.
        front.doors().set(0, false);
        front.doors().set(0, true);
        assert_eq!(name(&mut connect().await).await.as_deref(), Some("other"));
        second.task.abort();
        assert_eq!(name(&mut connect().await).await, None);
    }

    #[test]
    fn a_taken_port_is_told_by_its_number() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let sentence = take_port(port).unwrap_err().to_string();
        assert!(sentence.contains(&format!("port {port} is in use")), "{sentence}");
        assert_ne!(take_port(0).unwrap().local_addr().unwrap().port(), 0);
    }
}
