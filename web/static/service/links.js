// A link is a port to the connector of one tab. A request takes its own tab's link; if it is not known which tab that is,
// the newest.

// A connector that has not answered by then is not coming: its page was closed, or its machine can't be reached.
const LINK_WAIT_MS = 20_000;

// While an answer streams, the tabs are asked this often to send a message, because a worker without events is stopped.
const AWAKE_MS = 10_000;

// This run of the worker, for the tabs: the lock of its name is free again when it has been stopped.
const WORKER = `flotilla-worker-${crypto.randomUUID()}`;
self.navigator.locks.request(WORKER, () => new Promise(() => {}));

class Link {
  #port;
  #exchanges = new Map();
  #next = 1;

  constructor(id, tab, port) {
    this.id = id;
    this.tab = tab;
    this.#port = port;
    port.onmessage = ({ data }) => {
      const received = parseFrame(data);
      this.#exchanges.get(received.stream)?.receive(received);
    };
  }

  get busy() {
    return this.#exchanges.size > 0;
  }

  register(exchange) {
    if (this.#exchanges.size >= STREAMS_MAX) {
      throw new TunnelError("rate-limited", `More than ${STREAMS_MAX} requests are under way; wait for some to end.`);
    }
    const id = this.#next++;
    this.#exchanges.set(id, exchange);
    links.keepAwake();
    return id;
  }

  forget(id) {
    this.#exchanges.delete(id);
  }

  post(message) {
    this.#port.postMessage(message, [message]);
  }

  lose() {
    this.#port.close();
    for (const exchange of [...this.#exchanges.values()]) exchange.fail(lost());
  }
}

const links = {
  all: new Map(),
  // Client id -> id of its tab's link.
  tabs: new Map(),
  TABS_MAX: 256,
  waiting: new Set(),
  timer: null,

  add(id, tab, port) {
    const link = new Link(id, tab, port);
    this.all.set(id, link);
    this.remember(tab.id, id);
    for (const wake of this.waiting) wake();
    tab.postMessage({ flotilla: "linked", id, worker: WORKER });
    // The tab holds a lock with the link's name for as long as it lives.
    self.navigator.locks.request(`flotilla-link-${id}`, () => {
      this.all.delete(id);
      link.lose();
    });
  },

  remember(client, link) {
    if (!client) return;
    this.tabs.delete(client);
    this.tabs.set(client, link);
    if (this.tabs.size > this.TABS_MAX) this.tabs.delete(this.tabs.keys().next().value);
  },

  choose(event) {
    const own = this.all.get(this.tabs.get(event.clientId));
    const link = own ?? [...this.all.values()].at(-1);
    if (link) this.remember(event.resultingClientId, link.id);
    return link;
  },

  // Until there is a link. After a restart of the worker there is none, and every open tab is asked for one.
  async wait(signal) {
    const deadline = Date.now() + LINK_WAIT_MS;
    while (this.all.size === 0) {
      if (signal.aborted) throw new TunnelError("aborted", "The page gave the request up.");
      const left = deadline - Date.now();
      if (left <= 0) {
        throw new TunnelError("connection-failed", "No open tab of this service could reach it; open or reload its page.");
      }
      let wake;
      const changed = new Promise((resolve) => { wake = resolve; });
      const timer = setTimeout(wake, left);
      signal.addEventListener("abort", wake);
      this.waiting.add(wake);
      this.askTabs();
      await changed;
      this.waiting.delete(wake);
      signal.removeEventListener("abort", wake);
      clearTimeout(timer);
    }
  },

  async askTabs() {
    for (const client of await self.clients.matchAll({ type: "window", includeUncontrolled: true })) {
      if (client.frameType === "top-level") client.postMessage({ flotilla: "link-wanted" });
    }
  },

  keepAwake() {
    this.timer ??= setInterval(() => {
      const busy = [...this.all.values()].filter((link) => link.busy);
      for (const link of busy) link.tab.postMessage({ flotilla: "stay-awake" });
      if (busy.length === 0) {
        clearInterval(this.timer);
        this.timer = null;
      }
    }, AWAKE_MS);
  },
};

// What a page said to `document.cookie`, each once: it comes by message, and with a request that can't wait for the message.
const cookiesSent = new Map();
const COOKIE_CLIENTS_MAX = 256;

const sendCookies = (client, writes, link = links.choose({ clientId: client })) => {
  if (!link) return;
  for (const { sequence, path, cookie } of writes) {
    if (sequence <= (cookiesSent.get(client) ?? 0)) continue;
    cookiesSent.delete(client);
    cookiesSent.set(client, sequence);
    if (cookiesSent.size > COOKIE_CLIENTS_MAX) cookiesSent.delete(cookiesSent.keys().next().value);
    link.post(jsonFrame(KIND.COOKIE, 0, { path, cookie }));
  }
};
