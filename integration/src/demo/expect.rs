//! What a line must be, and finding it in what a tool prints.

/// A line that must be there.
#[derive(Clone, Debug)]
pub(super) struct Expected {
    /// All of these are in the line, in this order.
    parts: Vec<String>,
    from: From,
}

/// How a tool's text falls into lines.
#[derive(Clone, Copy, Debug)]
enum From {
    /// As printed.
    Lines,
    /// The elements of an nft set or map, of which `nft` prints several on a line.
    Elements,
}

impl Expected {
    /// A line that has these parts, in this order.
    pub(super) fn line<const N: usize>(parts: [&str; N]) -> Expected {
        Expected {
            parts: parts.map(str::to_owned).into(),
            from: From::Lines,
        }
    }

    /// An element of a set or map that has these parts, in this order, and begins with the
    /// first.
    pub(super) fn element<const N: usize>(parts: [&str; N]) -> Expected {
        Expected {
            parts: parts.map(str::to_owned).into(),
            from: From::Elements,
        }
    }

    /// The first line of `text` that is as expected, with single blanks, and cut where it goes on
    /// for long after what was expected.
    pub(super) fn find(&self, text: &str) -> Option<String> {
        let found = match self.from {
            From::Lines => text.lines().find(|line| self.fits(line)).map(str::to_owned),
            From::Elements => elements(text).into_iter().find(|element| {
                self.fits(element)
                    && self
                        .parts
                        .first()
                        .is_some_and(|first| element.starts_with(first))
            }),
        };
        let line = found?.split_whitespace().collect::<Vec<_>>().join(" ");
        let end = self.end_in(&line)?;
        Some(clip(line, end))
    }

    fn fits(&self, line: &str) -> bool {
        self.end_in(line).is_some()
    }

    /// Where in the line the last part ends, if all parts are there in order.
    fn end_in(&self, line: &str) -> Option<usize> {
        self.parts.iter().try_fold(0, |start, part| {
            let at = line[start..].find(part.as_str())?;
            Some(start + at + part.len())
        })
    }
}

impl std::fmt::Display for Expected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.parts.join(" … "))
    }
}

/// Cuts a long line at a blank, but not before `end`.
fn clip(line: String, end: usize) -> String {
    const WIDTH: usize = 96;
    let from = end.max(WIDTH);
    match line.get(from..).and_then(|rest| rest.find(' ')) {
        Some(blank) => format!("{} …", &line[..from + blank]),
        None => line,
    }
}

/// The elements in a listing of one set or map.
fn elements(listing: &str) -> Vec<String> {
    let Some((_, rest)) = listing.split_once("elements = {") else {
        return Vec::new();
    };
    let inside = rest.split('}').next().unwrap_or_default();
    inside
        .split(',')
        .map(|element| element.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LISTING: &str = "table ip twill-proxy {
\tmap vips {
\t\ttype ipv4_addr . inet_proto . inet_service : verdict
\t\telements = { 10.96.0.1 . tcp . 443 : goto lb-1,
\t\t\t     10.96.0.10 . tcp . 53 : goto lb-2, 10.96.0.10 . udp . 53 : goto lb-2 }
\t}
}
";

    #[test]
    fn elements_are_found_one_by_one() {
        let udp = Expected::element(["10.96.0.10 . udp . 53", "goto lb-2"]);
        assert_eq!(
            udp.find(LISTING).unwrap(),
            "10.96.0.10 . udp . 53 : goto lb-2"
        );
        assert_eq!(
            Expected::element(["10.96.0.10 . udp . 53", "goto lb-1"]).find(LISTING),
            None
        );
        assert_eq!(Expected::element(["96.0.1"]).find(LISTING), None);
        assert_eq!(Expected::element(["1"]).find("an empty set"), None);
    }

    #[test]
    fn long_lines_are_cut_after_what_was_expected() {
        let long = format!(
            "vxlan id 1 {} dstport 8472 nolearning ttl auto",
            "x ".repeat(60)
        );
        let found = Expected::line(["vxlan id 1", "dstport 8472"]).find(&long);
        assert!(found.unwrap().ends_with(" dstport 8472 …"));
        assert!(Expected::line(["vxlan id 1"]).find(&long).unwrap().len() < 110);
    }

    #[test]
    fn lines_are_found_by_their_parts_in_order() {
        let text = "1: lo\n10.244.3.0/24  via 10.244.3.0 dev flannel.1 onlink \n";
        let line = Expected::line(["10.244.3.0/24", "via", "onlink"]);
        assert_eq!(
            line.find(text).unwrap(),
            "10.244.3.0/24 via 10.244.3.0 dev flannel.1 onlink"
        );
        assert_eq!(Expected::line(["onlink", "via"]).find(text), None);
    }
}
