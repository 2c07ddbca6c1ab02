//! Parts that several pages share.

mod condition;
mod copy;
mod dialog;
mod filter;
mod icon;
mod meter;
mod page;
mod prose;
mod qr;
mod shown;
mod state;
mod time;
mod toast;
mod transfer;
mod volume;

pub(crate) use condition::{ConditionBadge, ConditionReason, machine_appearance, role};
pub(crate) use copy::{CopyButton, Secret};
pub(crate) use dialog::Dialog;
pub(crate) use filter::Filter;
pub(crate) use icon::{Glyph, Icon};
pub(crate) use meter::Meter;
pub(crate) use page::{Page, Section, arrived};
pub(crate) use prose::Prose;
pub(crate) use qr::QrImage;
pub(crate) use shown::{Empty, Problem, Skeleton, shown};
pub(crate) use state::{StateBadge, appearance, badge};
pub(crate) use time::{Ago, Until};
pub(crate) use toast::{Act, Refusal, ToastRegion, Toasts};
pub(crate) use transfer::TransferRegion;
pub(crate) use volume::{
    CopyChips, RiskLine, RiskWords, VolumeBadge, VolumeReason, copy_appearance, risk_of, risk_tone,
};
