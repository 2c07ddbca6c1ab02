//! The WebRTC connection to the node, with the two lanes of one service.

use std::rc::Rc;

use flotilla_api::{
    ServiceName,
    frame::{Carries, Channel as Label, Lane},
    signal::{Candidate, FromBrowser},
};
use js_sys::Reflect;
use wasm_bindgen::{JsCast, JsValue, closure::Closure};
use wasm_bindgen_futures::JsFuture;
use web_sys::{
    RtcConfiguration, RtcIceCandidateInit, RtcOfferOptions, RtcPeerConnection, RtcPeerConnectionIceEvent, RtcSdpType,
    RtcSessionDescriptionInit,
};

use super::{
    Carrier, Event, Events, Generation,
    channel::{self, Channel},
    signalling::Socket,
};

#[derive(Debug)]
pub(super) struct Peer {
    inner: RtcPeerConnection,
    service: ServiceName,
    generation: Generation,
    events: Events,
    interactive: Channel,
    bulk: Channel,
    _on_state: Closure<dyn FnMut()>,
    on_candidate: Closure<dyn FnMut(RtcPeerConnectionIceEvent)>,
}

impl Peer {
    /// The lanes are part of the first offer, so that they are open as soon as the connection is.
    pub(super) fn new(
        service: ServiceName,
        generation: Generation,
        events: Events,
        signalling: Rc<Socket>,
    ) -> Result<Self, JsValue> {
        let configuration = RtcConfiguration::new();
        // Data channels and nothing else: one transport.
        Reflect::set(&configuration, &"bundlePolicy".into(), &"max-bundle".into())?;
        let inner = RtcPeerConnection::new_with_configuration(&configuration)?;
        let lane = |lane| {
            let label = Label { carries: Carries::Http(lane), service: service.clone() };
            open(&inner, &label, Carrier::Lane(lane), generation, &events)
        };
        let (interactive, bulk) = (lane(Lane::Interactive), lane(Lane::Bulk));

        let (connection, changed) = (inner.clone(), events.clone());
        let on_state = Closure::<dyn FnMut()>::new(move || {
            let _ = changed.unbounded_send(Event::Peer(generation, connection.connection_state()));
        });
        inner.set_onconnectionstatechange(Some(on_state.as_ref().unchecked_ref()));
        let on_candidate = candidates_to(signalling);
        inner.set_onicecandidate(Some(on_candidate.as_ref().unchecked_ref()));
        Ok(Self { inner, service, generation, events, interactive, bulk, _on_state: on_state, on_candidate })
    }

    pub(super) fn lane(&self, lane: Lane) -> &Channel {
        match lane {
            Lane::Interactive => &self.interactive,
            Lane::Bulk => &self.bulk,
        }
    }

    /// A channel for one WebSocket.
    pub(super) fn open_socket(&self, id: u32) -> Channel {
        let label = Label { carries: Carries::WebSocket, service: self.service.clone() };
        open(&self.inner, &label, Carrier::Socket(id), self.generation, &self.events)
    }

    /// Takes candidates to another signalling socket.
    pub(super) fn signal_over(&mut self, signalling: Rc<Socket>) {
        self.on_candidate = candidates_to(signalling);
        self.inner.set_onicecandidate(Some(self.on_candidate.as_ref().unchecked_ref()));
    }

    /// The connection itself, for what is asynchronous.
    pub(super) fn negotiation(&self) -> Negotiation {
        Negotiation(self.inner.clone())
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.inner.set_onconnectionstatechange(None);
        self.inner.set_onicecandidate(None);
        self.inner.close();
    }
}

/// Offers and answers.
#[derive(Clone, Debug)]
pub(super) struct Negotiation(RtcPeerConnection);

impl Negotiation {
    /// The offer, sent at once: candidates follow it as they are found.
    pub(super) async fn offer(self) -> Result<String, JsValue> {
        let offer = JsFuture::from(self.0.create_offer()).await?;
        self.describe(offer).await
    }

    /// A new offer for the same connection over other paths.
    pub(super) async fn restart(self) -> Result<String, JsValue> {
        let options = RtcOfferOptions::new();
        options.set_ice_restart(true);
        let offer = JsFuture::from(self.0.create_offer_with_rtc_offer_options(&options)).await?;
        self.describe(offer).await
    }

    async fn describe(self, offer: JsValue) -> Result<String, JsValue> {
        let offer: RtcSessionDescriptionInit = offer.unchecked_into();
        JsFuture::from(self.0.set_local_description(&offer)).await?;
        self.0.local_description().map(|description| description.sdp()).ok_or_else(|| "there is no offer".into())
    }

    pub(super) async fn accept(self, answer: String) -> Result<(), JsValue> {
        let description = RtcSessionDescriptionInit::new(RtcSdpType::Answer);
        description.set_sdp(&answer);
        JsFuture::from(self.0.set_remote_description(&description)).await.map(drop)
    }

    /// A candidate that the browser does not like is one path less.
    pub(super) async fn add_candidate(self, candidate: Candidate) {
        let init = RtcIceCandidateInit::new(&candidate.candidate);
        init.set_sdp_mid(candidate.sdp_mid.as_deref());
        init.set_sdp_m_line_index(candidate.sdp_m_line_index);
        let _ = JsFuture::from(self.0.add_ice_candidate_with_opt_rtc_ice_candidate_init(Some(&init))).await;
    }
}

fn open(peer: &RtcPeerConnection, label: &Label, carrier: Carrier, generation: Generation, events: &Events) -> Channel {
    let events = events.clone();
    Channel::new(peer.create_data_channel(&label.to_string()), move |event: channel::Event| {
        let _ = events.unbounded_send(Event::Channel(generation, carrier, event));
    })
}

fn candidates_to(signalling: Rc<Socket>) -> Closure<dyn FnMut(RtcPeerConnectionIceEvent)> {
    Closure::new(move |event: RtcPeerConnectionIceEvent| {
        let candidate = event.candidate().filter(|found| !found.candidate().is_empty()).map(|found| Candidate {
            candidate: found.candidate(),
            sdp_mid: found.sdp_mid(),
            sdp_m_line_index: found.sdp_m_line_index(),
            username_fragment: None,
        });
        signalling.send(&FromBrowser::Candidate { candidate });
    })
}
