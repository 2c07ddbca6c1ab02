// The node keeps the cookies of a person and a service. `document.cookie` shows what it last said, with what was written here
// since. The node's word comes with this script when a document begins, then in a header of fetch and XMLHttpRequest, or as a
// message.

let shownCookies = new Map();
// Written here, and perhaps not yet with the service worker.
let unsentCookies = [];
let lastSequence = 0;

const parseCookies = (text) => {
  const cookies = new Map();
  for (const pair of text.split("; ")) {
    if (pair === "") continue;
    const [name, value] = splitPair(pair);
    cookies.set(name, value);
  }
  return cookies;
};

// RFC 6265, 5.2: what has no `=` is a value without a name.
const splitPair = (pair) => {
  const at = pair.indexOf("=");
  return at < 0 ? ["", pair.trim()] : [pair.slice(0, at).trim(), pair.slice(at + 1).trim()];
};

// A cookie may be set to vanish, or for a part of the site that this document is not in.
const applyCookie = (cookies, text) => {
  const [pair, ...attributes] = text.split(";");
  const [name, value] = splitPair(pair);
  const said = new Map(attributes.map((attribute) => splitPair(attribute.includes("=") ? attribute : `${attribute}=`)).map(([key, word]) => [key.toLowerCase(), word]));
  if (said.has("httponly") || (name === "" && value === "")) return false;
  const path = said.get("path");
  const elsewhere = path?.startsWith("/") && path !== "/" && location.pathname !== path && !location.pathname.startsWith(path.endsWith("/") ? path : `${path}/`);
  const age = said.get("max-age");
  const gone = age !== undefined ? Number(age) <= 0 : Date.parse(said.get("expires") ?? "") <= Date.now();
  if (gone) cookies.delete(name);
  else if (!elsewhere) cookies.set(name, value);
  return true;
};

const showCookies = (text) => {
  shownCookies = parseCookies(text);
  for (const { cookie } of unsentCookies) applyCookie(shownCookies, cookie);
};

const cookiesOf = (answer) => {
  if (answer !== null) showCookies(decodeURIComponent(answer));
};

// The service worker puts them here.
const FIRST_COOKIES = "{{cookies}}";
showCookies(FIRST_COOKIES.startsWith("{{") ? "" : FIRST_COOKIES);

Object.defineProperty(Document.prototype, "cookie", {
  configurable: true,
  enumerable: true,
  get() {
    return [...shownCookies].map(([name, value]) => (name === "" ? value : `${name}=${value}`)).join("; ");
  },
  set(text) {
    const cookie = String(text);
    if (!applyCookie(shownCookies, cookie)) return;
    unsentCookies.push({ sequence: ++lastSequence, path: location.pathname, cookie });
    toWorker({ flotilla: "cookies", writes: unsentCookies });
  },
});

container?.addEventListener("message", (event) => {
  switch (event.data?.flotilla) {
    case "cookies":
      showCookies(event.data.cookies);
      break;
    case "cookies-sent":
      unsentCookies = unsentCookies.filter(({ sequence }) => sequence > event.data.last);
      break;
    default:
      return;
  }
  event.stopImmediatePropagation();
});
container?.startMessages();
