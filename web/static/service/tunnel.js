// The connector holds the person's token and the connection; it sees this page's origin and takes the service from there.

let connector = null;
let connectorReady = false;
// What was said to the connector before it could listen. One link and an app's first WebSockets.
const early = [];

const connect = () => {
  show("connecting");
  connector = document.createElement("iframe");
  connector.id = "connector";
  connector.title = "Connection";
  connector.tabIndex = -1;
  connector.ariaHidden = "true";
  connector.src = `${DASHBOARD}/connector`;
  window.addEventListener("message", fromConnector);
  document.body.append(connector);
};

const tell = (message, ports = []) => {
  if (connectorReady) connector.contentWindow.postMessage(message, DASHBOARD, ports);
  else early.push([message, ports]);
};

const fromConnector = ({ origin, source, data }) => {
  if (origin !== DASHBOARD || source !== connector.contentWindow) return;
  if (data?.flotilla === "ready") {
    connectorReady = true;
    tell({ flotilla: "hello" });
    for (const [message, ports] of early.splice(0)) tell(message, ports);
  } else if (data?.flotilla === "state") {
    show(data.state, data.message);
    if (data.state === "open") retryAfterError();
  }
};

// An error page in the app's frame was the answer of a time without a connection.
const retryAfterError = () => {
  const current = appWindow();
  if (current && errorShown(current)) current.location.reload();
};

// How long a running service worker may take to take a port; it is asked by every request that misses one, too.
const LINK_MS = 1_000;

const linked = new Map();

// A port from the service worker to the connector; until the worker has it. The lock lasts as long as this page: that is how
// the worker learns of its end. How this page learns of the worker's end is the other way round.
const linkWorker = () =>
  new Promise((resolve) => {
    const id = crypto.randomUUID();
    navigator.locks.request(`flotilla-link-${id}`, () => {
      const { port1, port2 } = new MessageChannel();
      tell({ flotilla: "link", id }, [port1]);
      navigator.serviceWorker.controller?.postMessage({ flotilla: "link", id }, [port2]);
      linked.set(id, resolve);
      setTimeout(resolve, LINK_MS);
      return new Promise(() => {});
    });
  });

const fromWorker = ({ data }) => {
  switch (data?.flotilla) {
    case "link-wanted":
      linkWorker();
      break;
    case "linked":
      linked.get(data.id)?.();
      linked.delete(data.id);
      navigator.locks.request(data.worker, { mode: "shared" }, () => tell({ flotilla: "unlink", id: data.id }));
      break;
    case "stay-awake":
      navigator.serviceWorker.controller?.postMessage({ flotilla: "alive" });
      break;
  }
};

navigator.serviceWorker?.addEventListener("message", fromWorker);
navigator.serviceWorker?.startMessages();
// A new version of the worker has taken over.
let taken = navigator.serviceWorker?.controller ?? null;
navigator.serviceWorker?.addEventListener("controllerchange", () => {
  if (taken) linkWorker();
  taken = navigator.serviceWorker.controller;
});

// For the shim in the app's documents, which are of this origin.
window.flotilla = Object.freeze({
  attach,
  socket: (port) => tell({ flotilla: "socket" }, [port]),
});
