// The page that a tab of a service shows: the connector of the dashboard's origin in a hidden frame, the app in a visible one.
// The node serves it for the first navigation to a service, the service worker for all later ones; it is the same page, so
// that connecting and installing the service worker go on side by side.
//
// - state.js   what the person sees while there is no connection
// - mirror.js  address, title, icon and focus of the app, shown as the tab's
// - tunnel.js  the connector's frame, and ports to it for the service worker and for WebSockets
"use strict";
(() => {
// @include state.js
// @include mirror.js
// @include tunnel.js

const start = async () => {
  if (window !== window.top) {
    // The service worker was passed by: this page stands where the app should.
    show("bypassed");
    return;
  }
  if (!navigator.serviceWorker) {
    show("unsupported");
    return;
  }
  connect();
  try {
    await controlled();
  } catch (error) {
    show("unsupported", error.message);
    return;
  }
  // The frame's first request must find this tab's link, not another's.
  await linkWorker();
  openApp();
};

// How long a new service worker may take from its download to its first request.
const CONTROL_MS = 10_000;

// Until the service worker answers this origin's requests.
const controlled = async () => {
  const worker = navigator.serviceWorker;
  const registered = await worker.register("/__flotilla/sw.js", { scope: "/", updateViaCache: "none" });
  if (worker.controller) return;
  let timer;
  const claimed = new Promise((resolve, reject) => {
    worker.addEventListener("controllerchange", resolve, { once: true });
    timer = setTimeout(() => reject(new Error("its service worker did not start")), CONTROL_MS);
  });
  if (registered.active) reloadPastShift();
  await claimed;
  clearTimeout(timer);
};

// Shift-reload loads a page without its service worker, which then never takes it over: an ordinary reload does.
const reloadPastShift = () => {
  const KEY = "flotilla-reloaded";
  const last = Number(sessionStorage.getItem(KEY) ?? 0);
  // Not again and again, should that not help.
  if (Date.now() - last < CONTROL_MS) return;
  sessionStorage.setItem(KEY, String(Date.now()));
  location.reload();
};

start();
})();
