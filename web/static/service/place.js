// An app's own service worker would take this origin's requests away from the tunnel; one that it looks for is not there.
if (container) {
  const refuse = () => Promise.reject(new DOMException("Service workers are not available to apps behind Flotilla.", "SecurityError"));
  for (const [name, value] of Object.entries({
    register: refuse,
    getRegistration: () => Promise.resolve(undefined),
    getRegistrations: () => Promise.resolve([]),
  })) {
    Object.defineProperty(container, name, { value, configurable: true });
  }
}

// A link to another site leaves the tab, not the frame in it, which that site may refuse to be shown in.
window.addEventListener("click", (event) => {
  const link = event.composedPath().find((node) => node instanceof HTMLAnchorElement || node instanceof HTMLAreaElement);
  if (!link?.href || event.defaultPrevented || (link.target && link.target !== "_self") || link.hasAttribute("download")) return;
  if (window.parent !== window.top || /^https?:$/.test(link.protocol) === false || link.origin === location.origin) return;
  link.target = "_top";
});

// Browsers load a link with the attribute `download` past the service worker: a frame that nobody sees loads it through.
const DOWNLOAD_FRAME_MS = 60_000;

const download = (event, link) => {
  if (event.defaultPrevented || !link.hasAttribute("download") || !isOwn(link) || !/^https?:$/.test(link.protocol)) return;
  event.preventDefault();
  const address = new URL(link.href);
  address.hash = `flotilla-download=${encodeURIComponent(link.download)}`;
  const frame = document.createElement("iframe");
  frame.hidden = true;
  frame.src = address.href;
  document.documentElement.append(frame);
  setTimeout(() => frame.remove(), DOWNLOAD_FRAME_MS);
};

window.addEventListener("click", (event) => {
  const link = event.composedPath().find((node) => node instanceof HTMLAnchorElement);
  if (link) download(event, link);
});

// A link that a script clicks need not be in the document, where its click could be heard.
const { click } = HTMLElement.prototype;
HTMLAnchorElement.prototype.click = function () {
  if (!this.isConnected) this.addEventListener("click", (event) => download(event, this), { once: true });
  click.call(this);
};
