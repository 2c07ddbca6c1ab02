//! The connector: the page of the dashboard's origin that services' pages hold in a hidden frame.
//!
//! It alone has the person's token and the connection to the node. It is a pipe: frames come from service workers and
//! WebSocket shims through ports, and go to the node through data channels, and back. Payloads stay in the browser's
//! buffers; only headers are read here.

mod backoff;
mod origin;
mod outbox;
mod streams;
