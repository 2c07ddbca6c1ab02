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

// To the service worker a download looks like a page that is opened in a tab. A link that is clicked by a script need not be in
// the document, where its click could be heard.
const announceDownload = (link) => {
  if (link.hasAttribute("download") && isOwn(link)) toWorker({ flotilla: "download", href: link.href });
};

window.addEventListener("click", (event) => {
  const link = event.composedPath().find((node) => node instanceof HTMLAnchorElement);
  if (link && !event.defaultPrevented) announceDownload(link);
});

const { click } = HTMLElement.prototype;
HTMLAnchorElement.prototype.click = function () {
  if (!this.isConnected) announceDownload(this);
  click.call(this);
};
