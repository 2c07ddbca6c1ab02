//! Frames as the browser holds them: an `ArrayBuffer` whose first bytes are the header.

use flotilla_api::{
    ApiError,
    frame::{Frame, FrameError, HEADER_LEN, Header, Kind},
};
use js_sys::{ArrayBuffer, Uint8Array};
use serde::{Serialize, de::DeserializeOwned};

const HEADER_BYTES: u32 = HEADER_LEN as u32;

/// Reads the header and leaves the payload where it is.
pub(super) fn header_of(message: &ArrayBuffer) -> Result<Header, FrameError> {
    let len = message.byte_length() as usize;
    let mut bytes = [0; HEADER_LEN];
    if len < HEADER_LEN {
        return Err(FrameError::TooShort { len });
    }
    first_bytes(message).copy_to(&mut bytes);
    Header::decode(bytes, len - HEADER_LEN)
}

/// Puts another header before the same payload.
pub(super) fn set_header(message: &ArrayBuffer, header: Header) {
    first_bytes(message).copy_from(&header.encode());
}

/// The same frame with these flags.
pub(super) fn with_flags(message: &ArrayBuffer, header: Header, flags: u8) -> ArrayBuffer {
    set_header(message, Header { flags, ..header });
    message.clone()
}

/// A small payload as JSON; `None` if it is something else.
pub(super) fn json_of<T: DeserializeOwned>(message: &ArrayBuffer) -> Option<T> {
    serde_json::from_slice(&Uint8Array::new(message).subarray(HEADER_BYTES, message.byte_length()).to_vec()).ok()
}

pub(super) fn json(kind: Kind, stream: u32, value: &impl Serialize) -> ArrayBuffer {
    // Structs of strings and numbers always have a JSON form.
    frame(kind, stream, 0, &serde_json::to_vec(value).unwrap_or_default())
}

pub(super) fn frame(kind: Kind, stream: u32, flags: u8, payload: &[u8]) -> ArrayBuffer {
    Uint8Array::from(Frame::new(kind, stream, payload).with_flags(flags).encode().as_slice()).buffer()
}

pub(super) fn reset(stream: u32, error: &ApiError) -> ArrayBuffer {
    json(Kind::Reset, stream, error)
}

fn first_bytes(message: &ArrayBuffer) -> Uint8Array {
    Uint8Array::new_with_byte_offset_and_length(message, 0, HEADER_BYTES)
}
