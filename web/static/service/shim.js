// First in every document of an app: the few things of a browser that a service worker can't give it.
//
// - cookies.js  `document.cookie`, whose jar is at the node
// - fetch.js    requests get an id, because their abort is not always told to the service worker; answers tell the cookies
// - socket.js   WebSockets, which service workers never see: each has a data channel of its own
// - place.js    what an app in a frame must not notice, or must not do
"use strict";
(() => {
// The same document is not prepared twice, should a page include itself.
if (Object.hasOwn(window, Symbol.for("flotilla"))) return;
Object.defineProperty(window, Symbol.for("flotilla"), { value: true });

const script = document.currentScript;
const container = navigator.serviceWorker;
const worker = () => container?.controller;
const toWorker = (message) => worker()?.postMessage(message);
const wrapperOf = () => {
  try {
    return window.top.flotilla ?? null;
  } catch {
    return null;
  }
};
const isOwn = (url) => url.origin === location.origin;

// @include frames.js
// @include cookies.js
// @include fetch.js
// @include socket.js
// @include place.js

wrapperOf()?.attach(window);
script?.remove();
})();
