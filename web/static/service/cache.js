// A service worker's answers pass the browser's HTTP cache by, so what may be kept (RFC 9111) is kept here, in the Cache API:
// answers to plain GET requests that say for how long they are fresh, or can be asked about with an ETag or a date.

const CACHE = "flotilla-1";

// Larger ones are streamed past the cache: a copy on the way would be held in memory.
const CACHED_BYTES_MAX = 4 * 1024 * 1024;

const FILES = new Set(["font", "image", "manifest", "script", "style", "worker"]);

const STORED_AT = "x-flotilla-stored";

// The addresses of what is kept, complete once the browser has listed them: nobody asks it for each request whether something is kept, which takes
// a third of a small one's time.
const kept = { cache: null, addresses: new Set(), complete: false };

const addressOf = (url) => url.split("#", 1)[0];

const mayBeKept = (url) => !kept.complete || kept.addresses.has(addressOf(url));

const openCache = () => {
  kept.cache ??= caches.open(CACHE).then(
    (cache) => {
      cache.keys().then((requests) => {
        for (const { url } of requests) kept.addresses.add(addressOf(url));
        kept.complete = true;
      }, () => {});
      return cache;
    },
    () => { kept.cache = null; },
  );
  return kept.cache;
};

// What is just being written, by its address: who asks for the same next finds it, as with a browser's own cache.
const beingKept = new Map();
// An answer that goes on and on holds nobody up for longer.
const BEING_KEPT_MS = 1_000;

const forgetOldCaches = async () => {
  const names = await caches.keys();
  return Promise.all(names.filter((name) => name.startsWith("flotilla-") && name !== CACHE).map((name) => caches.delete(name)));
};

// `send(condition)` asks through the tunnel, with additional headers.
const cached = async (event, send) => {
  const { request } = event;
  if (!mayAnswer(request)) return send();
  const cache = await openCache();
  // A browser that has no room for one has the answer all the same.
  if (!cache) return send();
  await beingKept.get(request.url);
  const asks = request.cache !== "reload" && mayBeKept(request.url);
  const known = asks ? await cache.match(request.url) : undefined;
  if (known && request.cache !== "no-cache" && (isFresh(known) || request.cache === "force-cache")) return known;
  if (!known && request.cache === "only-if-cached") return Response.error();

  const condition = known ? conditionOf(known) : undefined;
  const response = await send(condition);
  if (condition && response.status === 304) {
    const refreshed = stamped(known, response.headers);
    event.waitUntil(keep(cache, request.url, refreshed.clone()));
    return refreshed;
  }
  if (mayKeep(request, response)) {
    event.waitUntil(keep(cache, request.url, stamped(response.clone())));
  } else if (known) {
    kept.addresses.delete(addressOf(request.url));
    event.waitUntil(cache.delete(request.url));
  }
  return response;
};

const mayAnswer = (request) =>
  request.method === "GET" &&
  request.mode !== "navigate" &&
  request.cache !== "no-store" &&
  !["range", "authorization", "if-none-match", "if-modified-since", "if-match", "if-unmodified-since", "if-range"].some((name) =>
    request.headers.has(name),
  ) &&
  !(request.headers.get("accept") ?? "").includes("text/event-stream");

const mayKeep = (request, response) => {
  const told = response.headers.get("content-length");
  // What was compressed on its way to the node has no length any more; a page's own files are rarely large.
  const small = told === null ? FILES.has(request.destination) : Number(told) <= CACHED_BYTES_MAX;
  const vary = (response.headers.get("vary") ?? "").toLowerCase();
  return (
    response.status === 200 &&
    small &&
    (vary === "" || vary === "accept-encoding") &&
    !directives(response).has("no-store") &&
    (directives(response).has("max-age") || response.headers.has("etag") || response.headers.has("last-modified"))
  );
};

const directives = (response) => {
  const parts = (response.headers.get("cache-control") ?? "").toLowerCase().split(",");
  return new Map(parts.map((part) => part.trim().split("=")).map(([name, value]) => [name, value?.replaceAll('"', "")]));
};

const isFresh = (response) => {
  const said = directives(response);
  if (said.has("no-cache")) return false;
  const age = (Date.now() - Number(response.headers.get(STORED_AT))) / 1000 + Number(response.headers.get("age") ?? 0);
  return age < Number(said.get("max-age") ?? 0);
};

const conditionOf = (response) => {
  const etag = response.headers.get("etag");
  const date = response.headers.get("last-modified");
  if (etag) return [["if-none-match", etag]];
  return date ? [["if-modified-since", date]] : undefined;
};

// A copy that says when it was last known to be current; `updates` are the headers of a 304 (RFC 9111, 4.3.4).
const stamped = (response, updates = []) => {
  const headers = new Headers(response.headers);
  for (const [name, value] of updates) {
    if (name !== "content-length") headers.set(name, value);
  }
  headers.set(STORED_AT, String(Date.now()));
  headers.delete("x-flotilla-cookies");
  return new Response(response.body, { status: response.status, headers });
};

// A full disk is no reason to fail a request: the cache starts anew.
const keep = (cache, url, response) => {
  kept.addresses.add(addressOf(url));
  const written = cache.put(url, response).catch(() => {
    kept.cache = null;
    return caches.delete(CACHE);
  });
  const known = Promise.race([written, new Promise((resolve) => { setTimeout(resolve, BEING_KEPT_MS); })]).then(() => {
    if (beingKept.get(url) === known) beingKept.delete(url);
  });
  beingKept.set(url, known);
  return written;
};
