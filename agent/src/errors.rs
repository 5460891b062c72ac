//! Errors as one line for a person.

/// An error with its sources, in one line; what one of them has said already is not said again.
#[must_use]
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    for source in std::iter::successors(error.source(), |error| error.source()) {
        let cause = source.to_string();
        if !text.contains(&cause) {
            text = text + ": " + &cause;
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot open the door: {source}")]
    struct Outer {
        source: Middle,
    }

    #[derive(Debug, thiserror::Error)]
    #[error("it is locked")]
    struct Middle {
        source: std::io::Error,
    }

    #[test]
    fn each_cause_is_said_once() {
        let source = Middle {
            source: std::io::Error::other("no key"),
        };
        assert_eq!(
            chain(&Outer { source }),
            "cannot open the door: it is locked: no key"
        );
    }
}
