// Responses that do not come through the tunnel.

const WRAPPER = INCLUDE_TEXT("wrapper.html");
const SHIM = INCLUDE_TEXT("shim.js");
const ERROR_PAGE = INCLUDE_TEXT("error.html");

const page = (text, status = 200) =>
  new Response(text, {
    status,
    headers: {
      "content-type": "text/html; charset=utf-8",
      "cache-control": "no-store",
      // The wrapper is nobody's frame; what is in its frame is in a frame of this origin only.
      "content-security-policy": status === 200 ? "frame-ancestors 'none'" : "frame-ancestors 'self'",
    },
  });

const wrapper = () => page(WRAPPER);

// What `document.cookie` shows at first in a document that was just answered, by the document's client id: the shim, which it
// loads first, brings it along.
const documentCookies = new Map();
const DOCUMENTS_MAX = 64;

const rememberCookies = (client, cookies) => {
  documentCookies.set(client, cookies);
  if (documentCookies.size > DOCUMENTS_MAX) documentCookies.delete(documentCookies.keys().next().value);
};

const shim = (client) => {
  const cookies = documentCookies.get(client) ?? "";
  documentCookies.delete(client);
  const text = SHIM.replace('"{{cookies}}"', () => JSON.stringify(cookies));
  return new Response(text, {
    headers: { "content-type": "text/javascript; charset=utf-8", "cache-control": "no-store" },
  });
};

// Why a request got no answer: a code of `flotilla_api::ErrorCode` and a sentence for people.
class TunnelError extends Error {
  constructor(code, message) {
    super(message);
    this.code = code;
  }
}

const lost = () => new TunnelError("connection-failed", "The connection to the service was lost; try again.");

// The connection's own failures are network errors, as they would be without a tunnel; what the node says of a service is an
// answer with a status.
const failure = (request, error) => {
  const code = error instanceof TunnelError ? error.code : "internal";
  const status = STATUS[code] ?? 502;
  if (request.mode === "navigate") {
    const text = ERROR_PAGE.replaceAll("{{code}}", escapeHtml(code)).replaceAll("{{message}}", escapeHtml(error.message));
    return page(text, status);
  }
  if (code === "aborted" || code === "connection-failed" || code === "internal") return Response.error();
  return new Response(JSON.stringify({ code, message: error.message }), {
    status,
    headers: { "content-type": "application/json", "cache-control": "no-store" },
  });
};

// Browsers load a link with the attribute `download` past the service worker. The shim loads it in a frame, whose address has
// the file's name behind this mark.
const DOWNLOAD_MARK = "#flotilla-download=";

const downloadName = (url) => (url.hash.startsWith(DOWNLOAD_MARK) ? decodeURIComponent(url.hash.slice(DOWNLOAD_MARK.length)) : null);

const asDownload = (response, name) => {
  // Nobody sees that frame: an error is no file.
  if (!response.ok) return new Response(null, { status: 204 });
  const headers = new Headers(response.headers);
  if (!/^\s*attachment/i.test(headers.get("content-disposition") ?? "")) {
    const file = name === "" ? "" : `; filename*=UTF-8''${encodeURIComponent(name).replace(/['()*]/g, (character) => `%${character.charCodeAt(0).toString(16)}`)}`;
    headers.set("content-disposition", `attachment${file}`);
  }
  return new Response(response.body, { status: response.status, headers });
};

const escapeHtml = (text) => text.replace(/[&<>"']/g, (character) => `&#${character.charCodeAt(0)};`);
