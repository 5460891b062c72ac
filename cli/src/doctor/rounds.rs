//! Nodes examined one beside the other, each with what the objects say of it.

use super::claims::Claims;
use super::{Finding, examine_all, versions};
use crate::crowd::at_once;
use crate::far::{self, Files};
use crate::kernel::Kernel;
use crate::onward::{self, AT_ONCE, FromHere, PORT, Place, Reach as _};
use crate::status::FLANNELD;

/// What is wrong on each of these nodes, or why that is not seen. This one has its `files` and `kernel` here.
pub fn rounds(
    places: &[Place],
    claims: &Claims,
    reach: &FromHere,
    files: &Files,
    kernel: &mut Kernel,
) -> Vec<Result<Vec<Finding>, String>> {
    let target = |place: &Place| far::doctor(claims.of_node(place));
    let mut answers = onward::everywhere(places, reach, target, || {
        let claim = claims
            .at(&reach.own)
            .and_then(|place| claims.of_node(place));
        examine_all(kernel, files, claim).map_err(|error| format!("{error:#}"))
    });
    let told = at_once(places, AT_ONCE, |_, place| {
        FLANNELD.version(|_, target| reach.get(place, PORT, target))
    });
    let behind = versions::among(&told);
    for ((place, answer), behind) in places.iter().zip(&mut answers).zip(behind) {
        if let Ok(findings) = answer {
            findings.extend(claims.conflicts_of(place).chain(behind));
            findings.sort();
        }
    }
    answers
}
