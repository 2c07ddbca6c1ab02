// The service worker of a service's origin. It answers every navigation with the wrapper page, and every request of the app
// inside that page through the tunnel: as frames over a MessagePort to the connector, which holds the data channels.
//
// - links.js     the ports to connectors, one for each tab; which one a request takes
// - exchange.js  one request and its answer on a link: credits, streaming both ways, aborts
// - cache.js     what the browser's HTTP cache would have kept
// - answers.js   pages and responses that are made here
//
// It keeps nothing that it needs after a restart: browsers stop an idle worker after half a minute.
"use strict";

// @include frames.js
// @include answers.js
// @include exchange.js
// @include links.js
// @include cache.js

const OWN_FILES = "/__flotilla/";

self.addEventListener("install", (event) => event.waitUntil(self.skipWaiting()));

self.addEventListener("activate", (event) => event.waitUntil(Promise.all([self.clients.claim(), forgetOldCaches()])));

self.addEventListener("fetch", (event) => {
  const url = new URL(event.request.url);
  // Other origins are the browser's own business.
  if (url.origin !== self.location.origin) return;
  if (url.pathname.startsWith(OWN_FILES)) {
    if (url.pathname === `${OWN_FILES}shim.js`) event.respondWith(shim(event.clientId));
    return;
  }
  event.respondWith(event.request.destination === "document" ? openPage(event, url) : throughTunnel(event, url));
});

self.addEventListener("message", (event) => {
  const { data, source, ports } = event;
  switch (data?.flotilla) {
    case "link":
      links.add(data.id, source, ports[0]);
      break;
    case "abort":
      abortRequest(data.request);
      break;
    case "cookies":
      sendCookies(source.id, data.writes);
      source.postMessage({ flotilla: "cookies-sent", last: data.writes.at(-1)?.sequence });
      break;
    // "alive" needs no answer: that it came keeps the worker running while a long answer streams.
  }
});

// A navigation of a whole tab. Its page is the wrapper, whose frame then asks for the same address.
const openPage = async (event, url) => {
  if (event.request.method === "GET") return wrapper();
  // A form was sent to a new tab or from the top: its answer is what the wrapper's frame shall show.
  const response = await throughTunnel(event, url);
  if (response.status >= 300 && response.status < 400) return response;
  heldAnswers.hold(url.href, response);
  return wrapper();
};

// A message that a page sent before it navigated is handled before what follows.
const messagesBefore = () => new Promise((resolve) => { setTimeout(resolve); });

// Answers that wait for the frame of a wrapper that is just being opened.
const heldAnswers = {
  HELD_MS: 30_000,
  HELD_MAX: 16,
  answers: new Map(),

  hold(href, response) {
    if (this.answers.size >= this.HELD_MAX) this.answers.delete(this.answers.keys().next().value);
    this.answers.set(href, { response, until: Date.now() + this.HELD_MS });
  },

  take(href) {
    const held = this.answers.get(href);
    this.answers.delete(href);
    return held && held.until > Date.now() ? held.response : null;
  },
};

const throughTunnel = async (event, url) => {
  const { request } = event;
  if (request.mode === "navigate") {
    const held = request.method === "GET" && heldAnswers.take(url.href);
    if (held) return held;
    // It may have set a cookie.
    await messagesBefore();
  }
  try {
    const response = await cached(event, (condition) => exchange(event, url, condition));
    const name = downloadName(url);
    return name === null ? response : asDownload(response, name);
  } catch (error) {
    return failure(request, error);
  }
};
