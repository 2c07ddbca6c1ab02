// The app lives in a frame, and the tab looks as if it did not. Back and forward need nothing: browsers keep one history for a
// tab and its frames.

const app = document.getElementById("app");

// Whoever opens this page is not told to the app as the page itself: the frame sends no referrer.
const openApp = () => {
  app.title = SERVICE;
  app.addEventListener("load", () => {
    mirror();
    if (document.hasFocus()) app.focus();
  });
  // Also where the browser has begun to load what the frame showed before: the link is new, and the address is the same.
  app.src = location.href;
};

// The app's window and document, or nothing while it shows another origin's page.
const appWindow = () => {
  try {
    const current = app.contentWindow;
    return current?.document && current.location.href !== "about:blank" ? current : null;
  } catch {
    return null;
  }
};

const mirror = () => {
  const current = appWindow();
  if (!current) return;
  mirrorAddress(current);
  mirrorHead(current.document);
  document.body.classList.toggle("in-use", !errorShown(current));
};

const errorShown = (current) => current.document.querySelector('meta[name="flotilla-error"]') !== null;

const mirrorAddress = (current) => {
  const { href } = current.location;
  if (href !== location.href && href.startsWith(location.origin)) history.replaceState(null, "", href);
};

const icon = document.querySelector('link[rel="icon"]');

const mirrorHead = (page) => {
  const title = page.title || SERVICE;
  if (document.title !== title) document.title = title;
  const own = page.querySelector('link[rel~="icon" i]');
  const href = own?.href || `${location.origin}/favicon.ico`;
  if (icon.href !== href) icon.href = href;
};

// Called by the shim, first thing in each document of the app.
const attach = (current) => {
  if (current.parent !== window) return;
  for (const name of ["pushState", "replaceState"]) {
    const original = current.history[name];
    current.history[name] = function (...parameters) {
      const result = original.apply(this, parameters);
      mirrorAddress(current);
      return result;
    };
  }
  for (const event of ["hashchange", "popstate", "DOMContentLoaded", "pageshow"]) {
    current.addEventListener(event, mirror);
  }
  const watch = new current.MutationObserver(() => mirrorHead(current.document));
  current.addEventListener("DOMContentLoaded", () => {
    watch.observe(current.document.head, { subtree: true, childList: true, characterData: true, attributeFilter: ["href"] });
  });
  if (opener && !current.opener) {
    try {
      current.opener = opener;
    } catch {
      // Its opener is of another origin.
    }
  }
};

// The person changed the fragment in the address bar.
window.addEventListener("hashchange", () => {
  const current = appWindow();
  if (current && current.location.href !== location.href) current.location.replace(location.href);
});
