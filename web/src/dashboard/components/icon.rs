use leptos::prelude::*;

/// Drawn for this dashboard on a grid of 20, with round strokes in the colour of the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Icon {
    Services,
    Deploy,
    Machine,
    Access,
    Activity,
    Open,
    Copy,
    Check,
    Cross,
    Warning,
    Refresh,
    Stop,
    Play,
    Pause,
    Trash,
    Download,
    Back,
    Question,
    Starting,
    Finished,
    Follow,
    Wrap,
    Key,
    Link,
    File,
    Person,
    Eye,
    Lost,
    Cluster,
    Drain,
    Leader,
    Pencil,
    Plug,
    Plus,
    Volume,
    Image,
    Lock,
    More,
}

impl Icon {
    fn paths(self) -> &'static str {
        match self {
            Self::Services => {
                r#"<path d="M10 2.5v11M10 3.5l5.5 9H10zM10 5.5l-4.5 7H10zM3 15.5c1.2 1.3 2.4 1.3 3.5 0 1.2 1.3 2.4 1.3 3.5 0 1.2 1.3 2.4 1.3 3.5 0 1.2 1.3 2.4 1.3 3.5 0"/>"#
            }
            Self::Deploy => {
                r#"<path d="M10 13V3.5M6.2 7.2 10 3.4l3.8 3.8M3.5 12.5v2.8c0 .7.5 1.2 1.2 1.2h10.6c.7 0 1.2-.5 1.2-1.2v-2.8"/>"#
            }
            Self::Machine => {
                r#"<rect x="3" y="3.5" width="14" height="5.5" rx="1.4"/><rect x="3" y="11" width="14" height="5.5" rx="1.4"/><path d="M6 6.3h.01M6 13.8h.01M9.5 6.3h4.5M9.5 13.8h4.5"/>"#
            }
            Self::Access | Self::Key => {
                r#"<circle cx="6.7" cy="13.3" r="3.2"/><path d="m9 11 7.5-7.5M13.4 6.6l2.4 2.4M11.2 8.8l1.6 1.6"/>"#
            }
            Self::Activity => r#"<path d="M10 5.5V10l3 2"/><circle cx="10" cy="10" r="7"/>"#,
            Self::Open => {
                r#"<path d="M11.5 3.5h5v5M16.2 3.8 9 11M14.5 11.5v3.8c0 .7-.5 1.2-1.2 1.2H4.7c-.7 0-1.2-.5-1.2-1.2V6.7c0-.7.5-1.2 1.2-1.2h3.8"/>"#
            }
            Self::Copy => {
                r#"<rect x="7" y="7" width="9.5" height="9.5" rx="1.5"/><path d="M13 4.8c0-.7-.6-1.3-1.3-1.3H4.8c-.7 0-1.3.6-1.3 1.3v6.9c0 .7.6 1.3 1.3 1.3"/>"#
            }
            Self::Check => r#"<path d="m4.5 10.5 3.6 3.6 7.4-8.2"/>"#,
            Self::Cross => r#"<path d="m5.5 5.5 9 9M14.5 5.5l-9 9"/>"#,
            Self::Warning => r#"<path d="M10 3.2 17.5 16h-15zM10 8v3.6M10 13.8h.01"/>"#,
            Self::Refresh => {
                r#"<path d="M15.8 8.2A6.2 6.2 0 0 0 4.6 7M4.2 11.8A6.2 6.2 0 0 0 15.4 13M4.4 3.8V7h3.2M15.6 16.2V13h-3.2"/>"#
            }
            Self::Stop => r#"<rect x="5" y="5" width="10" height="10" rx="1.5"/>"#,
            Self::Play => r#"<path d="M6.5 4.2v11.6l9-5.8z"/>"#,
            Self::Pause => r#"<path d="M7 4.8v10.4M13 4.8v10.4"/>"#,
            Self::Trash => {
                r#"<path d="M3.5 5.5h13M8 5.5V3.8c0-.4.3-.6.6-.6h2.8c.3 0 .6.2.6.6v1.7M5.2 5.5l.7 10c0 .7.6 1.2 1.2 1.2h5.8c.6 0 1.2-.5 1.2-1.2l.7-10M8.4 9v4.5M11.6 9v4.5"/>"#
            }
            Self::Download => r#"<path d="M10 3.5V13M6.2 9.3 10 13l3.8-3.7M3.5 16.5h13"/>"#,
            Self::Back => r#"<path d="M7.5 5 3.8 8.8l3.7 3.7M4 8.8h7.6a4.2 4.2 0 0 1 0 8.2H9"/>"#,
            Self::Question => {
                r#"<circle cx="10" cy="10" r="7" stroke-dasharray="2.6 1.8"/><path d="M8.1 8a1.9 1.9 0 1 1 2.7 1.8c-.6.3-.8.7-.8 1.3M10 13.5h.01"/>"#
            }
            Self::Starting => r#"<path d="M10 3a7 7 0 1 1-6.6 4.7"/><path d="M10 6.8V10h2.6"/>"#,
            Self::Finished => r#"<path d="M5 17V3.5M5 4.2h9.8l-2.6 3.3 2.6 3.3H5"/>"#,
            Self::Follow => r#"<path d="M10 3.5v10M6 9.8l4 3.9 4-3.9M5 16.7h10"/>"#,
            Self::Wrap => r#"<path d="M3.5 5h13M3.5 10h10.2a2.6 2.6 0 0 1 0 5.2H10M11.8 13.2l-2 2 2 2M3.5 15.2h2.8"/>"#,
            Self::Link => {
                r#"<path d="M8.4 11.6a3.3 3.3 0 0 0 4.7 0l2.7-2.7a3.3 3.3 0 0 0-4.7-4.7L9.8 5.5M11.6 8.4a3.3 3.3 0 0 0-4.7 0l-2.7 2.7a3.3 3.3 0 0 0 4.7 4.7l1.3-1.3"/>"#
            }
            Self::File => {
                r#"<path d="M11.5 2.8H6c-.8 0-1.4.6-1.4 1.4v11.6c0 .8.6 1.4 1.4 1.4h8c.8 0 1.4-.6 1.4-1.4V6.7zM11.5 2.8v4h3.9"/>"#
            }
            Self::Person => {
                r#"<circle cx="10" cy="6.8" r="3.3"/><path d="M3.8 16.7c.7-3 3.1-4.8 6.2-4.8s5.5 1.8 6.2 4.8"/>"#
            }
            Self::Eye => {
                r#"<path d="M2.5 10c1.8-3.3 4.3-5 7.5-5s5.7 1.7 7.5 5c-1.8 3.3-4.3 5-7.5 5s-5.7-1.7-7.5-5z"/><circle cx="10" cy="10" r="2.2"/>"#
            }
            Self::Cluster => {
                r#"<circle cx="10" cy="4.6" r="2.1"/><circle cx="4.4" cy="14.6" r="2.1"/><circle cx="15.6" cy="14.6" r="2.1"/><path d="M9 6.5 5.4 12.700M11 6.5l3.600 6.200M6.600 14.6h6.800"/>"#
            }
            Self::Drain => {
                r#"<path d="M3.5 4.5h6.500v11H3.5zM13 10H7.500M13.200 6.500 16.700 10l-3.500 3.500M12 10h4.500"/>"#
            }
            Self::Leader => r#"<path d="M3.500 15.500V6l3.600 3.400L10 4.300l2.900 5.100L16.500 6v9.500z"/>"#,
            Self::Pencil => {
                r#"<path d="m4 16 .8-3.600 8.500-8.500 2.800 2.800-8.500 8.500zM11.700 5.500l2.800 2.800"/>"#
            }
            Self::Plug => r#"<path d="M7 3v3.500M13 3v3.500M5 6.500h10v2.800a5 5 0 0 1-10 0zM10 14.300V17.500"/>"#,
            Self::Plus => r#"<path d="M10 4v12M4 10h12"/>"#,
            Self::Image => r#"<path d="m10 3 7 3.5-7 3.5-7-3.5zM3.3 10 10 13.4 16.7 10M3.3 13.5l6.7 3.4 6.7-3.4"/>"#,
            Self::Volume => {
                r#"<ellipse cx="10" cy="5.2" rx="6.2" ry="2.4"/><path d="M3.8 5.2v9.6c0 1.3 2.8 2.4 6.2 2.4s6.2-1.1 6.2-2.4V5.2M3.8 10c0 1.3 2.8 2.4 6.2 2.4s6.2-1.1 6.2-2.4"/>"#
            }
            Self::Lock => {
                r#"<rect x="4" y="9" width="12" height="8" rx="1.600"/><path d="M6.800 9V6.400a3.200 3.200 0 0 1 6.400 0V9M10 12.300v1.700"/>"#
            }
            Self::More => r#"<path d="M4.500 10h.01M10 10h.01M15.500 10h.01" stroke-width="2.600"/>"#,
            Self::Lost => {
                r#"<path d="M3 3l14 14M5.5 11.200a6.5 6.5 0 0 1 3-1.900M2.8 8a10.5 10.5 0 0 1 3.6-2.300M9.8 4.700a10.5 10.5 0 0 1 7.4 3.300M13 9.700c.6.4 1.1.9 1.5 1.500M10 15.500h.01"/>"#
            }
        }
    }
}

/// Never alone: the words beside it, or a label on the button, say what it means.
#[component]
pub(crate) fn Glyph(icon: Icon) -> impl IntoView {
    view! {
        <svg
            class="glyph"
            viewBox="0 0 20 20"
            fill="none"
            stroke="currentColor"
            stroke-width="1.6"
            stroke-linecap="round"
            stroke-linejoin="round"
            aria-hidden="true"
            inner_html=icon.paths()
        ></svg>
    }
}
