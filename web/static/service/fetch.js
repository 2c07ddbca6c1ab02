// fetch and XMLHttpRequest to this origin carry headers for the service worker, which takes them off again.

let lastRequest = 0;
const REQUESTS = crypto.randomUUID();

// `headers` is anything with `set`; gives the request's id.
const markRequest = (set, body) => {
  const id = `${REQUESTS}-${++lastRequest}`;
  set("x-flotilla-request", id);
  const length = lengthOf(body);
  if (length !== null) set("x-flotilla-length", String(length));
  if (unsentCookies.length > 0) set("x-flotilla-cookies", encodeURIComponent(JSON.stringify(unsentCookies)));
  return id;
};

// A service worker sees a body as a stream, without the length that an application may insist upon.
const lengthOf = (body) => {
  if (body instanceof Blob) return body.size;
  if (body instanceof ArrayBuffer || ArrayBuffer.isView(body)) return body.byteLength;
  return null;
};

const abortAtWorker = (request) => toWorker({ flotilla: "abort", request });

const nativeFetch = window.fetch;
window.fetch = async function fetch(input, init = undefined) {
  const address = input instanceof Request ? input.url : new URL(input, document.baseURI).href;
  if (!worker() || !isOwn(new URL(address))) return nativeFetch.call(window, input, init);
  const request = new Request(input, init);
  const id = markRequest((name, value) => request.headers.set(name, value), init?.body);
  request.signal.addEventListener("abort", () => abortAtWorker(id));
  const response = await nativeFetch.call(window, request);
  cookiesOf(response.headers.get("x-flotilla-cookies"));
  return response;
};

const { open, send, abort } = XMLHttpRequest.prototype;
const marked = new WeakMap();

XMLHttpRequest.prototype.open = function (method, url, ...rest) {
  marked.delete(this);
  open.call(this, method, url, ...rest);
  if (worker() && isOwn(new URL(url, document.baseURI))) marked.set(this, null);
};

XMLHttpRequest.prototype.send = function (body = null) {
  if (marked.has(this)) {
    const id = markRequest((name, value) => this.setRequestHeader(name, value), body);
    marked.set(this, id);
    const read = () => {
      if (this.readyState < XMLHttpRequest.HEADERS_RECEIVED) return;
      this.removeEventListener("readystatechange", read);
      cookiesOf(this.getResponseHeader("x-flotilla-cookies"));
    };
    this.addEventListener("readystatechange", read);
    this.addEventListener("timeout", () => abortAtWorker(id), { once: true });
  }
  send.call(this, body);
};

XMLHttpRequest.prototype.abort = function () {
  const id = marked.get(this);
  if (id && this.readyState !== XMLHttpRequest.DONE) abortAtWorker(id);
  abort.call(this);
};
