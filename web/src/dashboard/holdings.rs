//! Which machines hold an image, in words.

use flotilla_api::rest::{HeldImageView, ImageHolderView, ImageStep, ImageUseView};

use super::format;

/// How an image does in the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Holding {
    /// Every machine that shall have it does.
    Held,
    /// Some machine is getting it.
    Travelling,
    /// Some machine that shall have it does not.
    Missing,
    /// No service names it.
    Unused,
}

impl Holding {
    pub(crate) fn of(image: &HeldImageView) -> Self {
        let is_there = |holder: &ImageHolderView| holder.lost || holder.engine;
        if image.machines.iter().any(|holder| holder.transfer.is_some()) {
            Self::Travelling
        } else if image.used_by.is_empty() {
            Self::Unused
        } else if image.machines.iter().filter(|holder| holder.wanted).all(is_there) {
            Self::Held
        } else {
            Self::Missing
        }
    }

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Held => "held",
            Self::Travelling => "on its way",
            Self::Missing => "missing",
            Self::Unused => "unused",
        }
    }
}

/// How one machine does with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Hold {
    /// A container can be started, and other machines can get it there.
    Whole,
    /// "in its engine", "in its store"
    Part(&'static str),
    /// "fetching 25 %"
    Moving(String),
    Missing,
    Lost,
}

impl Hold {
    pub(crate) fn of(holder: &ImageHolderView) -> Self {
        match (holder.lost, holder.transfer, holder.engine, holder.store) {
            (true, ..) => Self::Lost,
            (false, Some(transfer), ..) => {
                let share = transfer.bytes as f64 / transfer.of.max(1) as f64;
                let far = if transfer.of > 0 { format!(" {}", format::percent(share.min(1.0))) } else { String::new() };
                Self::Moving(format!("{}{far}", verb(transfer.step)))
            }
            (false, None, true, true) => Self::Whole,
            (false, None, true, false) => Self::Part("in its engine"),
            (false, None, false, true) => Self::Part("in its store"),
            (false, None, false, false) => Self::Missing,
        }
    }
}

fn verb(step: ImageStep) -> &'static str {
    match step {
        ImageStep::Pulling => "pulling",
        ImageStep::Fetching => "fetching",
        ImageStep::Receiving => "receiving",
        ImageStep::Storing => "storing",
        ImageStep::Loading => "loading",
    }
}

/// "5 images: 3 held, 1 on its way, 1 unused"
pub(crate) fn summary(images: &[HeldImageView]) -> String {
    let counts: Vec<String> = [Holding::Held, Holding::Travelling, Holding::Missing, Holding::Unused]
        .into_iter()
        .map(|holding| (images.iter().filter(|image| Holding::of(image) == holding).count(), holding.as_str()))
        .filter(|(count, _)| *count > 0)
        .map(|(count, name)| format!("{count} {name}"))
        .collect();
    format!("{}: {}", format::counted(images.len(), "image", "images"), counts.join(", "))
}

/// What people call it: its names, or the beginning of its id.
pub(crate) fn names(image: &HeldImageView) -> Vec<String> {
    if image.references.is_empty() { vec![short(&image.id).to_owned()] } else { image.references.clone() }
}

/// The first digits of an id.
pub(crate) fn short(id: &str) -> &str {
    id.strip_prefix("sha256:").and_then(|hex| hex.get(..12)).unwrap_or(id)
}

/// "notes", "notes (revision 2)"
pub(crate) fn used_by(it: &ImageUseView) -> String {
    match it.revisions.as_slice() {
        _ if it.current => it.service.to_string(),
        [one] => format!("{} (revision {one})", it.service),
        several => format!("{} ({} earlier revisions)", it.service, several.len()),
    }
}

/// Whether a person who typed `filter`, in lower case, means it.
pub(crate) fn matches(image: &HeldImageView, filter: &str) -> bool {
    image.references.iter().any(|name| name.to_lowercase().contains(filter))
        || image.id.contains(filter)
        || Holding::of(image).as_str().contains(filter)
        || image.used_by.iter().any(|it| it.service.as_str().contains(filter))
        || image.machines.iter().any(|holder| holder.machine.as_str().contains(filter))
}

#[cfg(test)]
mod tests {
    use flotilla_api::{Revision, rest::TransferView};

    use super::*;

    fn holder(name: &str, engine: bool, store: bool) -> ImageHolderView {
        ImageHolderView {
            machine: name.parse().unwrap(),
            engine,
            store,
            wanted: true,
            lost: false,
            transfer: None,
            observed_at: None,
        }
    }

    fn image(machines: Vec<ImageHolderView>) -> HeldImageView {
        let used_by =
            vec![ImageUseView { service: "notes".parse().unwrap(), revisions: vec![Revision(2)], current: true }];
        HeldImageView {
            id: format!("sha256:{}", "ab".repeat(32)),
            references: vec!["notes:1".to_owned()],
            size_bytes: Some(100),
            shared_bytes: None,
            layers: Vec::new(),
            used_by,
            machines,
        }
    }

    fn moving(bytes: u64, of: u64) -> ImageHolderView {
        let transfer = TransferView { step: ImageStep::Fetching, bytes, of };
        ImageHolderView { transfer: Some(transfer), ..holder("clio", false, false) }
    }

    #[test]
    fn an_image_is_held_when_every_machine_that_may_need_it_can_start_it() {
        let whole = || holder("atlas", true, true);
        assert_eq!(Holding::of(&image(vec![whole(), holder("clio", true, true)])), Holding::Held);
        assert_eq!(Holding::of(&image(vec![whole(), holder("clio", true, false)])), Holding::Held);
        assert_eq!(Holding::of(&image(vec![whole(), holder("clio", false, true)])), Holding::Missing);
        assert_eq!(Holding::of(&image(vec![whole(), moving(1, 2)])), Holding::Travelling);
        let beside = ImageHolderView { wanted: false, ..holder("clio", true, false) };
        assert_eq!(Holding::of(&image(vec![whole(), beside])), Holding::Held, "nobody needs it there");
        let lost = ImageHolderView { lost: true, ..holder("clio", false, false) };
        assert_eq!(Holding::of(&image(vec![whole(), lost])), Holding::Held);
        let unused = HeldImageView { used_by: Vec::new(), ..image(vec![whole()]) };
        assert_eq!(Holding::of(&unused), Holding::Unused);
        assert_eq!(summary(&[image(vec![whole()]), unused]), "2 images: 1 held, 1 unused");
    }

    #[test]
    fn what_a_machine_has_is_said_in_words() {
        assert_eq!(Hold::of(&holder("atlas", true, true)), Hold::Whole);
        assert_eq!(Hold::of(&holder("atlas", false, true)), Hold::Part("in its store"));
        assert_eq!(Hold::of(&holder("atlas", false, false)), Hold::Missing);
        assert!(matches!(Hold::of(&moving(30, 120)), Hold::Moving(text) if text.starts_with("fetching 25")));
        assert_eq!(Hold::of(&moving(30, 0)), Hold::Moving("fetching".to_owned()));
    }

    #[test]
    fn an_image_is_found_by_what_people_call_it_and_who_has_it() {
        let image = image(vec![holder("atlas", true, true)]);
        for filter in ["notes:1", "abab", "atlas", "held", "notes"] {
            assert!(matches(&image, filter), "{filter}");
        }
        assert!(!matches(&image, "web"));
        assert_eq!(names(&HeldImageView { references: Vec::new(), ..image.clone() }), ["abababababab"]);
        let earlier = ImageUseView { current: false, ..image.used_by[0].clone() };
        assert_eq!(used_by(&earlier), "notes (revision 2)");
    }
}
