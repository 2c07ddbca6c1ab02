// A WebSocket (WHATWG WebSockets, RFC 6455) on a data channel of its own. The port leads to the connector, which opens the
// channel; on it one stream, with id 1, speaks frames: OPEN, HEAD (101), then DATA both ways, then END with code and reason.

const NativeWebSocket = window.WebSocket;
const SOCKET = 1;

// A larger message is more than a page can want at once; the socket is closed with 1009.
const SOCKET_MESSAGE_MAX = 64 * 1024 * 1024;

const STATE = Object.freeze({ CONNECTING: 0, OPEN: 1, CLOSING: 2, CLOSED: 3 });

const socketUrl = (text) => {
  let url;
  try {
    url = new URL(text, document.baseURI);
  } catch {
    throw new DOMException(`The URL '${text}' is invalid.`, "SyntaxError");
  }
  if (url.protocol === "http:") url.protocol = "ws:";
  if (url.protocol === "https:") url.protocol = "wss:";
  if (!/^wss?:$/.test(url.protocol)) throw new DOMException(`The URL's scheme must be 'ws' or 'wss', not '${url.protocol}'.`, "SyntaxError");
  if (url.hash !== "") throw new DOMException("The URL contains a fragment identifier.", "SyntaxError");
  return url;
};

const socketProtocols = (protocols) => {
  const list = (Array.isArray(protocols) ? protocols : [protocols]).map(String);
  const isToken = (name) => /^[!#$%&'*+\-.^_`|~0-9A-Za-z]+$/.test(name);
  if (!list.every(isToken) || new Set(list.map((name) => name.toLowerCase())).size !== list.length) {
    throw new DOMException("The subprotocols are invalid or repeated.", "SyntaxError");
  }
  return list;
};

class TunnelSocket extends EventTarget {
  #url;
  #port;
  #state = STATE.CONNECTING;
  #protocol = "";
  #binaryType = "blob";
  #window = new SendWindow();
  #outbox = [];
  #sending = false;
  #buffered = 0;
  #closing = null;
  #parts = [];
  #partsSize = 0;
  #uncredited = 0;
  #handlers = {};

  constructor(url, protocols) {
    super();
    this.#url = url;
    const { port1, port2 } = new MessageChannel();
    this.#port = port1;
    port1.onmessage = ({ data }) => this.#receive(parseFrame(data));
    const wrapper = wrapperOf();
    if (!wrapper) {
      queueMicrotask(() => this.#fail());
      return;
    }
    wrapper.socket(port2);
    openSockets.add(this);
    const page = location.pathname + location.search;
    const path = url.pathname + url.search;
    this.#post(jsonFrame(KIND.OPEN, SOCKET, { method: "GET", path, headers: socketHeaders(), protocols, referrer: page, destination: "websocket" }));
  }

  get url() { return this.#url.href; }
  get readyState() { return this.#state; }
  get protocol() { return this.#protocol; }
  get extensions() { return ""; }
  get bufferedAmount() { return this.#buffered; }
  get binaryType() { return this.#binaryType; }
  set binaryType(type) {
    if (type === "blob" || type === "arraybuffer") this.#binaryType = type;
  }

  send(data) {
    if (this.#state === STATE.CONNECTING) {
      throw new DOMException("Failed to execute 'send' on 'WebSocket': Still in CONNECTING state.", "InvalidStateError");
    }
    const isBinary = data instanceof Blob || data instanceof ArrayBuffer || ArrayBuffer.isView(data);
    let bytes;
    if (!isBinary) bytes = encoder.encode(String(data));
    else if (data instanceof Blob) bytes = data;
    // A copy: the page may change its buffer as soon as this returns.
    else if (data instanceof ArrayBuffer) bytes = new Uint8Array(data.slice(0));
    else bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength).slice();
    this.#buffered += bytes.size ?? bytes.byteLength;
    if (this.#state !== STATE.OPEN) return;
    this.#outbox.push({ bytes, flags: isBinary ? 0 : FLAG.TEXT });
    this.#drain();
  }

  close(code = undefined, reason = "") {
    if (code !== undefined && code !== 1000 && !(code >= 3000 && code <= 4999)) {
      throw new DOMException(`The close code must be 1000 or between 3000 and 4999, not ${code}.`, "InvalidAccessError");
    }
    if (encoder.encode(reason).byteLength > 123) throw new DOMException("The close reason is longer than 123 bytes.", "SyntaxError");
    if (this.#state >= STATE.CLOSING) return;
    if (this.#state === STATE.CONNECTING) {
      this.#state = STATE.CLOSING;
      this.#post(jsonFrame(KIND.RESET, SOCKET, { code: "unknown", message: "the page closed the socket before it was open" }));
      queueMicrotask(() => this.#fail());
      return;
    }
    this.#state = STATE.CLOSING;
    this.#closing = { code: code ?? 1005, reason: String(reason) };
    this.#drain();
  }

  // The page goes away (RFC 6455, 7.4.1); nobody is told.
  abandon() {
    if (this.#state === STATE.CLOSED) return;
    this.#post(jsonFrame(KIND.END, SOCKET, { code: 1001, reason: "" }));
    this.#end();
  }

  async #drain() {
    if (this.#sending) return;
    this.#sending = true;
    while (this.#outbox.length > 0) {
      const { bytes, flags } = this.#outbox.shift();
      const message = bytes instanceof Blob ? new Uint8Array(await bytes.arrayBuffer()) : bytes;
      let offset = 0;
      do {
        const wanted = message.byteLength - offset;
        // What fits is sent at once: a wait for nothing would put small messages off.
        const length = wanted === 0 ? 0 : this.#window.tryTake(wanted) || (await this.#window.take(wanted));
        if (length === null) return;
        const more = offset + length < message.byteLength ? FLAG.MORE : 0;
        this.#post(frame(KIND.DATA, SOCKET, message.subarray(offset, offset + length), flags | more));
        offset += length;
        this.#buffered -= length;
      } while (offset < message.byteLength);
    }
    this.#sending = false;
    if (this.#closing) this.#post(jsonFrame(KIND.END, SOCKET, this.#closing));
  }

  #receive({ kind, flags, payload }) {
    if (this.#state === STATE.CLOSED) return;
    switch (kind) {
      case KIND.HEAD: {
        const head = jsonOf(payload);
        if (head.cookies !== undefined && head.cookies !== null) showCookies(head.cookies);
        if (head.status !== 101) return this.#fail();
        if (this.#state !== STATE.CONNECTING) return;
        this.#state = STATE.OPEN;
        this.#protocol = head.protocol ?? "";
        this.dispatchEvent(new Event("open"));
        break;
      }
      case KIND.DATA:
        this.#take(flags, payload);
        break;
      case KIND.CREDIT:
        this.#window.grant(creditOf(payload));
        break;
      case KIND.END: {
        const { code, reason } = payload.byteLength > 0 ? jsonOf(payload) : { code: 1005, reason: "" };
        if (this.#state === STATE.OPEN) this.#post(jsonFrame(KIND.END, SOCKET, { code, reason: "" }));
        this.#end();
        this.dispatchEvent(new CloseEvent("close", { code, reason, wasClean: code !== 1006 }));
        break;
      }
      case KIND.RESET:
        this.#fail();
        break;
    }
  }

  #take(flags, payload) {
    this.#uncredited += payload.byteLength;
    if (this.#uncredited >= CREDIT_STEP) {
      this.#post(creditFrame(SOCKET, this.#uncredited));
      this.#uncredited = 0;
    }
    this.#parts.push(payload);
    this.#partsSize += payload.byteLength;
    if (this.#partsSize > SOCKET_MESSAGE_MAX) {
      this.#post(jsonFrame(KIND.END, SOCKET, { code: 1009, reason: "the message is too large for this page" }));
      this.#fail();
      return;
    }
    if (flags & FLAG.MORE) return;
    const parts = this.#parts.splice(0);
    this.#partsSize = 0;
    if (this.#state !== STATE.OPEN) return;
    let data;
    if (flags & FLAG.TEXT) data = parts.length === 1 ? decoder.decode(parts[0]) : decoder.decode(joined(parts));
    else if (this.#binaryType === "blob") data = new Blob(parts);
    else data = joined(parts).buffer;
    this.dispatchEvent(new MessageEvent("message", { data, origin: this.#url.origin }));
  }

  #fail() {
    if (this.#state === STATE.CLOSED) return;
    this.#end();
    this.dispatchEvent(new Event("error"));
    this.dispatchEvent(new CloseEvent("close", { code: 1006, reason: "", wasClean: false }));
  }

  #end() {
    this.#state = STATE.CLOSED;
    this.#window.close();
    openSockets.delete(this);
  }

  #post(message) {
    this.#port.postMessage(message, [message]);
  }

  static [Symbol.hasInstance](value) {
    return Object(value) === value && (#port in value || NativeWebSocket.prototype.isPrototypeOf(value));
  }

  static {
    Object.defineProperty(this, "name", { value: "WebSocket" });
    for (const [name, value] of Object.entries(STATE)) {
      for (const owner of [this, this.prototype]) Object.defineProperty(owner, name, { value, enumerable: true });
    }
    for (const type of ["open", "message", "error", "close"]) {
      Object.defineProperty(this.prototype, `on${type}`, {
        configurable: true,
        enumerable: true,
        get() { return this.#handlers[type]?.callback ?? null; },
        set(callback) {
          if (this.#handlers[type]) this.removeEventListener(type, this.#handlers[type]);
          delete this.#handlers[type];
          if (typeof callback !== "function") return;
          const listener = (event) => callback.call(this, event);
          listener.callback = callback;
          this.#handlers[type] = listener;
          this.addEventListener(type, listener);
        },
      });
    }
  }
}

const joined = (parts) => {
  const whole = new Uint8Array(parts.reduce((size, part) => size + part.byteLength, 0));
  let offset = 0;
  for (const part of parts) {
    whole.set(part, offset);
    offset += part.byteLength;
  }
  return whole;
};

const socketHeaders = () => [["accept-language", navigator.languages.join(",")], ["user-agent", navigator.userAgent]];

const openSockets = new Set();
window.addEventListener("pagehide", () => {
  for (const socket of [...openSockets]) socket.abandon();
});

// To another host a WebSocket is the browser's own. A proxy, so that an app's subclass of WebSocket is one of this.
window.WebSocket = new Proxy(TunnelSocket, {
  construct(target, [url, protocols = []], newTarget) {
    const parsed = socketUrl(url);
    if (parsed.host !== location.host) return new NativeWebSocket(url, protocols);
    return Reflect.construct(target, [parsed, socketProtocols(protocols)], newTarget);
  },
});
