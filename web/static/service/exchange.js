// One request through the tunnel.

// A request body up to this size is read before it is sent, so that its length is known: the node need not hold it back to
// count it, and it can go on the quick lane.
const BODY_READ_AHEAD = 256 * 1024;

// How often a request that can be repeated is sent again after its connection was lost before the answer began.
const ATTEMPTS = 3;

const HEADERS_OF_OURS = /^x-flotilla-/;
const HAS_NO_BODY = new Set([101, 204, 205, 304]);

// By the id that the shim gave: a page's abort is not always told to the service worker.
const byRequestId = new Map();

const abortRequest = (id) => byRequestId.get(id)?.abandon();

const exchange = async (event, url, condition) => {
  const { request } = event;
  const writes = request.headers.get("x-flotilla-cookies");
  const body = await bodyOf(request);
  const repeatable = body === null && (request.method === "GET" || request.method === "HEAD");
  for (let attempt = 1; ; attempt++) {
    await links.wait(request.signal);
    // From here to `open` there is no `await`: a link that goes away in between would leave the exchange waiting for ever.
    const link = links.choose(event);
    if (!link) continue;
    if (writes) sendCookies(event.clientId, JSON.parse(decodeURIComponent(writes)), link);
    const current = new Exchange(link, event, url, condition, body);
    try {
      return current.response(await current.head);
    } catch (error) {
      if (!(repeatable && attempt < ATTEMPTS && error.code === "connection-failed")) throw error;
    }
  }
};

class Exchange {
  #link;
  #event;
  #id;
  #requestId;
  #window = new SendWindow();
  #settleHead;
  // What came of the body before the page could read it.
  #early = [];
  #ended = false;
  #body = null;
  #received = 0;
  #credited = 0;
  #uploading = false;
  #over = false;

  constructor(link, event, url, condition, body) {
    const { request } = event;
    this.#link = link;
    this.#event = event;
    this.head = new Promise((resolve, reject) => { this.#settleHead = { resolve, reject }; });
    this.#requestId = request.headers.get("x-flotilla-request");
    if (this.#requestId) byRequestId.set(this.#requestId, this);
    request.signal.addEventListener("abort", () => this.abandon());

    this.#id = link.register(this);
    const open = {
      method: request.method,
      path: url.pathname + url.search,
      headers: headersOf(request, condition, body),
      destination: request.destination,
    };
    const referrer = refererOf(request);
    if (referrer) open.referrer = referrer;
    let flags = FLAG.TAKES_WHOLE;
    if (body) flags |= FLAG.BODY | (body.length === null || body.length > DATA_MAX ? FLAG.LARGE : 0);
    link.post(jsonFrame(KIND.OPEN, this.#id, open, flags));
    if (body) event.waitUntil(this.#upload(body));
  }

  // The answer, once its head is here; its body streams in as the page reads it.
  response(head) {
    const headers = new Headers();
    for (const [name, value] of head.headers) {
      try {
        headers.append(name, value);
      } catch {
        // A header that no browser would have taken either.
      }
    }
    const { request } = this.#event;
    if (head.cookies !== undefined && head.cookies !== null) this.#tellCookies(head.cookies, headers);
    // Another service's page must not frame this one, whose own protection the wrapper had to lift.
    if (request.mode === "navigate") headers.append("content-security-policy", "frame-ancestors 'self'");
    const init = { status: head.status, headers };
    const location = head.status >= 300 && head.status < 400 && headers.get("location");
    if (location) {
      // Nobody reads the body of a redirect.
      this.abandon();
      return this.#leaving(location) ?? new Response(null, init);
    }
    const empty = HAS_NO_BODY.has(head.status) || request.method === "HEAD";
    return new Response(empty ? null : this.#stream(), init);
  }

  // A frame can't be sent to another site's page, which may refuse to be framed: the whole tab goes there.
  #leaving(location) {
    const { request } = this.#event;
    const target = new URL(location, request.url);
    if (request.mode !== "navigate" || target.origin === self.location.origin || !/^https?:$/.test(target.protocol)) return null;
    const text = `<!doctype html><title>Leaving</title><script>top.location.replace(${JSON.stringify(target.href).replaceAll("<", "\\x3c")})</script>`;
    return new Response(text, { headers: { "content-type": "text/html; charset=utf-8", "cache-control": "no-store" } });
  }

  #stream() {
    return new ReadableStream(
      {
        start: (controller) => {
          this.#body = controller;
          for (const bytes of this.#early.splice(0)) controller.enqueue(bytes);
          if (this.#ended) controller.close();
        },
        pull: () => this.#returnCredit(),
        cancel: () => this.abandon(),
      },
      // The most that can be under way: so every read asks for more, and every read's credit can be counted.
      new ByteLengthQueuingStrategy({ highWaterMark: INITIAL_CREDIT }),
    );
  }

  // Bytes that the page has read may be sent anew.
  #returnCredit() {
    if (this.#over) return;
    const waiting = INITIAL_CREDIT - this.#body.desiredSize;
    const owed = this.#received - waiting - this.#credited;
    if (owed >= CREDIT_STEP) {
      this.#credited += owed;
      this.#link.post(creditFrame(this.#id, owed));
    }
  }

  // `document.cookie` is a shim in the page. A page's own fetch reads the new value from a header, so that it can't be late.
  #tellCookies(cookies, headers) {
    if (this.#event.resultingClientId) {
      rememberCookies(this.#event.resultingClientId, cookies);
    } else if (this.#requestId) {
      headers.set("x-flotilla-cookies", encodeURIComponent(cookies));
    } else if (this.#event.clientId) {
      self.clients.get(this.#event.clientId).then((client) => client?.postMessage({ flotilla: "cookies", cookies }));
    }
  }

  async #upload(body) {
    this.#uploading = true;
    try {
      for await (const chunk of body.chunks()) {
        for (let offset = 0; offset < chunk.byteLength; ) {
          const length = await this.#window.take(chunk.byteLength - offset);
          if (length === null) return;
          this.#link.post(frame(KIND.DATA, this.#id, chunk.subarray(offset, offset + length)));
          offset += length;
        }
      }
      this.#uploading = false;
      if (!this.#over) this.#link.post(frame(KIND.END, this.#id));
    } catch {
      // The page gave its upload up, or the file behind it can't be read any more.
      this.abandon();
    }
  }

  receive({ kind, flags, payload }) {
    switch (kind) {
      case KIND.HEAD:
        if (flags & FLAG.WHOLE) {
          const { head, body } = wholeOf(payload);
          if (body.byteLength > 0) this.#early.push(body);
          this.#settleHead.resolve(head);
          this.#end();
        } else {
          this.#settleHead.resolve(jsonOf(payload));
        }
        break;
      case KIND.DATA:
        this.#received += payload.byteLength;
        if (this.#body) this.#body.enqueue(payload);
        else this.#early.push(payload);
        break;
      case KIND.CREDIT:
        this.#window.grant(creditOf(payload));
        break;
      case KIND.END:
        this.#end();
        break;
      case KIND.RESET: {
        const { code, message } = jsonOf(payload);
        this.fail(new TunnelError(code, message));
        break;
      }
    }
  }

  #end() {
    // An answer that is complete before its request is needs no more of it.
    if (this.#uploading) this.#link.post(jsonFrame(KIND.RESET, this.#id, { code: "aborted", message: "the answer is complete" }));
    this.#ended = true;
    this.#finish();
    this.#body?.close();
  }

  // Nobody waits for the answer any more.
  abandon() {
    if (this.#over) return;
    this.#link.post(jsonFrame(KIND.RESET, this.#id, { code: "aborted", message: "the page gave the request up" }));
    this.fail(new TunnelError("aborted", "The page gave the request up."));
  }

  fail(error) {
    if (this.#over) return;
    this.#finish();
    this.#settleHead.reject(error);
    this.#body?.error(new TypeError(error.message));
  }

  #finish() {
    this.#over = true;
    this.#window.close();
    this.#link.forget(this.#id);
    if (this.#requestId) byRequestId.delete(this.#requestId);
  }
}

// What a page sent, as chunks, with its length where that is known.
const bodyOf = async (request) => {
  if (request.method === "GET" || request.method === "HEAD") return null;
  // Firefox has no `Request.body`; a blob is kept on disk where it is large.
  const stream = request.body === undefined ? (await request.blob()).stream() : request.body;
  if (!stream) return { length: 0, async *chunks() {} };
  const reader = stream.getReader();
  const ahead = [];
  let read = 0;
  let ended = false;
  while (!ended && read < BODY_READ_AHEAD) {
    const { done, value } = await reader.read();
    ended = done;
    if (value) {
      ahead.push(value);
      read += value.byteLength;
    }
  }
  const told = Number(request.headers.get("x-flotilla-length") ?? NaN);
  return {
    length: ended ? read : Number.isSafeInteger(told) ? told : null,
    async *chunks() {
      yield* ahead.splice(0);
      while (!ended) {
        const { done, value } = await reader.read();
        if (done) return;
        yield value;
      }
    },
  };
};

const headersOf = (request, condition, body) => {
  const headers = [];
  for (const [name, value] of request.headers) {
    if (!HEADERS_OF_OURS.test(name)) headers.push([name, value]);
  }
  const add = (name, value) => {
    if (!request.headers.has(name)) headers.push([name, value]);
  };
  // What the browser adds only after the service worker.
  add("accept", "*/*");
  add("accept-language", self.navigator.languages.join(","));
  add("user-agent", self.navigator.userAgent);
  if (request.cache === "reload" || request.cache === "no-cache" || request.cache === "no-store") add("cache-control", "no-cache");
  if (body?.length !== null && body !== null) headers.push(["content-length", String(body.length)]);
  return headers.concat(condition ?? []);
};

// The page that asks, if it is one of this origin and says so.
const refererOf = (request) => {
  if (!request.referrer.startsWith(`${self.location.origin}/`)) return null;
  return request.referrer.slice(self.location.origin.length);
};
