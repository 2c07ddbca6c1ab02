// What the person is told, and what to do about it.

const SERVICE = location.hostname.split(".")[0];
const DASHBOARD = `${location.protocol}//app.${location.host.slice(SERVICE.length + 1)}`;

// A connection that is made in less time than this is not worth a word.
const PATIENCE_MS = 400;

const STATES = {
  connecting: { title: `Connecting to ${SERVICE}…`, text: "" , patient: true },
  reconnecting: { title: "Reconnecting…", text: "The connection was lost; this page goes on when it is back.", patient: true },
  "sign-in": {
    title: "Sign in to go on",
    text: `This browser is not signed in to the cluster that runs ${SERVICE}.`,
    action: "Open the dashboard",
    href: `${DASHBOARD}/`,
    blocks: true,
  },
  refused: { title: `You can’t open ${SERVICE}`, action: "Open the dashboard", href: `${DASHBOARD}/`, blocks: true },
  outdated: { title: "This page is of another version", text: "Load it again to get the current one.", action: "Reload", href: "", blocks: true },
  unreachable: { title: `${SERVICE} can’t be reached`, action: "Try again", href: "", blocks: false },
  unsupported: {
    title: "This browser window can’t open services",
    text: "It offers no service worker: leave private browsing, or allow this page to keep data, and load it again.",
    blocks: true,
  },
  bypassed: { title: "This page was loaded past its service worker", text: "Load the whole tab again.", action: "Open in its own tab", href: location.href, top: true, blocks: true },
};

const panel = document.getElementById("status");
let shown = "open";
let patience;

// `text` is the node's own sentence, where there is one.
const show = (state, text) => {
  clearTimeout(patience);
  shown = state;
  const { patient } = STATES[state] ?? {};
  if (patient && panel.hidden) {
    patience = setTimeout(() => draw(state, text), PATIENCE_MS);
  } else {
    draw(state, text);
  }
};

// The node's messages begin small, as they also stand behind a colon, and quote names as code.
const sentence = (text) => {
  const plain = text.replace(/`([^`]*)`/g, "“$1”");
  return plain && plain[0].toUpperCase() + plain.slice(1) + (/[.!?…]$/.test(plain) ? "" : ".");
};

const draw = (state, text) => {
  const { title, text: usual, action, href, top, blocks = false } = STATES[state] ?? {};
  document.body.classList.toggle("blocked", blocks);
  panel.hidden = title === undefined;
  if (panel.hidden) return;
  panel.querySelector("h1").textContent = title;
  panel.querySelector("p").textContent = sentence(text || usual || "");
  const link = document.getElementById("action");
  link.hidden = action === undefined;
  if (link.hidden) return;
  link.textContent = action;
  if (href) link.href = href;
  else link.href = location.href;
  // The dashboard opens beside this tab, which goes on by itself once the person is signed in.
  link.target = top ? "_top" : href ? "_blank" : "_self";
  link.onclick = href ? null : (event) => { event.preventDefault(); location.reload(); };
};
