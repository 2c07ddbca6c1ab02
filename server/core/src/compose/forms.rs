//! The little languages inside of single values: durations, sizes, ports, mounts.

/// A duration as the Compose specification writes it: `1h5m30s20ms`. Milliseconds.
pub(super) fn duration(text: &str) -> Option<u64> {
    let mut rest = text;
    let mut total = 0_f64;
    while !rest.is_empty() {
        let (number, after) = decimal(rest)?;
        let end = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at(end);
        let millis = match unit {
            "us" | "µs" => 0.001,
            "ms" => 1.0,
            "s" => 1_000.0,
            "m" => 60_000.0,
            "h" => 3_600_000.0,
            _ => return None,
        };
        total += number * millis;
        rest = after;
    }
    (!text.is_empty()).then_some(total).and_then(whole)
}

/// A size as the Compose specification writes it: `512m`, `1.5gb`, or bytes. Units are binary, as Docker's.
pub(super) fn bytes(text: &str) -> Option<u64> {
    let (number, unit) = decimal(text)?;
    let factor = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "k" | "kb" => 1024.0,
        "m" | "mb" => 1024.0 * 1024.0,
        "g" | "gb" => 1024.0 * 1024.0 * 1024.0,
        _ => return None,
    };
    whole(number * factor)
}

/// A part of cores, `0.5`. Thousandths.
pub(super) fn cpu_millis(text: &str) -> Option<u64> {
    let (number, rest) = decimal(text)?;
    rest.is_empty().then_some(number * 1000.0).and_then(whole)
}

/// A leading number without sign or exponent.
fn decimal(text: &str) -> Option<(f64, &str)> {
    let end = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (number, rest) = text.split_at(end);
    Some((number.parse().ok()?, rest))
}

fn whole(number: f64) -> Option<u64> {
    // Beyond this a float is no longer exact, and no size or time that anybody means.
    const EXACT_MAX: f64 = 9_007_199_254_740_991.0;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the range was checked")]
    (0.0..=EXACT_MAX).contains(&number).then(|| number.round() as u64)
}

/// The container's side of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Port {
    pub(super) number: u16,
    pub(super) tcp: bool,
}

/// `[[address:]published:]target[/protocol]`, each a number or a range; of a range the first counts.
pub(super) fn port(text: &str) -> Option<Port> {
    let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let tcp = match protocol.to_ascii_lowercase().as_str() {
        "tcp" => true,
        "udp" => false,
        _ => return None,
    };
    let (host, target) = match ports.rsplit_once(':') {
        Some((host, target)) => (Some(host), target),
        None => (None, ports),
    };
    if let Some(host) = host {
        // The address may be an IPv6 one, with colons and brackets of its own; the published port may be empty.
        let (address, published) = match host.rsplit_once(':') {
            Some((address, published)) => (address, published),
            None if host.contains('.') => (host, ""),
            None => ("", host),
        };
        let address = address.trim_start_matches('[').trim_end_matches(']');
        let good = (address.is_empty() || address.parse::<std::net::IpAddr>().is_ok())
            && (published.is_empty() || range(published).is_some());
        if !good {
            return None;
        }
    }
    Some(Port { number: range(target)?, tcp })
}

/// `8000` or `8000-8010`: the first.
fn range(text: &str) -> Option<u16> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let number = |text: &str| text.parse::<u16>().ok().filter(|number| *number > 0);
    let (first, last) = (number(first)?, number(last)?);
    (first <= last).then_some(first)
}

/// The short form of a mount: `[source:]target[:mode]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mount<'a> {
    pub(super) source: Option<&'a str>,
    pub(super) target: &'a str,
    pub(super) modes: Vec<&'a str>,
}

pub(super) fn mount(text: &str) -> Option<Mount<'_>> {
    let parts: Vec<&str> = text.split(':').collect();
    match parts[..] {
        [target] => Some(Mount { source: None, target, modes: Vec::new() }),
        [source, target] => Some(Mount { source: Some(source), target, modes: Vec::new() }),
        [source, target, modes] => Some(Mount { source: Some(source), target, modes: modes.split(',').collect() }),
        _ => None,
    }
}

/// Does a mount's source mean a directory of the host?
pub(super) fn is_host_path(source: &str) -> bool {
    source.starts_with(['/', '.', '~', '\\']) || source.contains(['/', '\\'])
}

/// An absolute path in a container, that leads nowhere else and is not all of it.
pub(super) fn is_container_path(path: &str) -> bool {
    path.starts_with('/')
        && path.len() > 1
        && !path.contains([':', ',', '\\'])
        && path.split('/').all(|part| part != "..")
        && !path.trim_matches('/').is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_add_up() {
        assert_eq!(duration("1m30s"), Some(90_000));
        assert_eq!(duration("1.5h"), Some(5_400_000));
        assert_eq!(duration("500ms"), Some(500));
        assert_eq!(duration("0s"), Some(0));
        for bad in ["", "5", "m", "1d", "-1s", "1s2", "1 s", "..s", "99999999999999999999h"] {
            assert_eq!(duration(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn sizes_are_binary() {
        assert_eq!(bytes("512m"), Some(512 << 20));
        assert_eq!(bytes("1.5GB"), Some(3 << 29));
        assert_eq!(bytes("100"), Some(100));
        for bad in ["", "m", "1tb", "-1m", "1e9", "1 m"] {
            assert_eq!(bytes(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn only_the_container_side_of_a_port_counts() {
        let tcp = |number| Some(Port { number, tcp: true });
        for good in [
            "80",
            "8080:80",
            "127.0.0.1:8080:80",
            "[::1]:8080:80",
            "127.0.0.1::80",
            "80/tcp",
            "80-85",
            "8000-8005:80-85",
        ] {
            assert_eq!(port(good), tcp(80), "{good:?}");
        }
        assert_eq!(port("53:53/udp"), Some(Port { number: 53, tcp: false }));
        for bad in ["", "0", "65536", "80/sctp", "a:80", "80:", "85-80", "1:2:3:4:80x", "http"] {
            assert_eq!(port(bad), None, "{bad:?}");
        }
    }
}
