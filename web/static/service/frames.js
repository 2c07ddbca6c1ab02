// The frame codec of the page side: `flotilla_api::frame`, whose numbers the build puts here.
// A frame's payload lies behind its header in one ArrayBuffer, so that bytes are moved between contexts and never copied.
// @constants

const encoder = new TextEncoder();
const decoder = new TextDecoder();

const frame = (kind, stream, payload = null, flags = 0) => {
  const message = new Uint8Array(HEADER_LEN + (payload ? payload.byteLength : 0));
  message[0] = kind;
  message[1] = flags;
  new DataView(message.buffer).setUint32(4, stream);
  if (payload) message.set(payload, HEADER_LEN);
  return message.buffer;
};

const jsonFrame = (kind, stream, value, flags = 0) =>
  frame(kind, stream, encoder.encode(JSON.stringify(value)), flags);

const creditFrame = (stream, bytes) => {
  const payload = new Uint8Array(4);
  new DataView(payload.buffer).setUint32(0, bytes);
  return frame(KIND.CREDIT, stream, payload);
};

const parseFrame = (message) => {
  const view = new DataView(message);
  return {
    kind: view.getUint8(0),
    flags: view.getUint8(1),
    stream: view.getUint32(4),
    payload: new Uint8Array(message, HEADER_LEN),
  };
};

const jsonOf = (payload) => JSON.parse(decoder.decode(payload));
// An answer that came in one frame.
const wholeOf = (payload) => {
  const end = 4 + new DataView(payload.buffer, payload.byteOffset, 4).getUint32(0);
  return { head: jsonOf(payload.subarray(4, end)), body: payload.subarray(end) };
};
const creditOf = (payload) => new DataView(payload.buffer, payload.byteOffset, 4).getUint32(0);

// How much may still be sent on one stream. `take` waits until something may be; `null` from it means that the stream is over.
class SendWindow {
  #left = INITIAL_CREDIT;
  #closed = false;
  #wake = null;

  grant(bytes) {
    this.#left += bytes;
    this.#wake?.();
  }

  close() {
    this.#closed = true;
    this.#wake?.();
  }

  // At most `wanted` bytes, at most a frame's worth, at once.
  tryTake(wanted) {
    const taken = Math.min(wanted, DATA_MAX, this.#left);
    this.#left -= taken;
    return taken;
  }

  async take(wanted) {
    while (!this.#closed && this.#left === 0) {
      await new Promise((resolve) => { this.#wake = resolve; });
    }
    return this.#closed ? null : this.tryTake(wanted);
  }
}
