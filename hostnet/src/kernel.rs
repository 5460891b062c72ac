//! Which kernel this is, and whether it can do what is asked of it.

use std::ffi::CStr;

/// The oldest that has all that Twill programs: concatenations with ranges, `typeof` maps, sets with timeouts per
/// element, links made straight in another namespace.
pub const OLDEST: (u32, u32) = (5, 13);

/// Its release, as uname(1) tells it.
#[must_use]
#[expect(unsafe_code, reason = "uname(2) fills a struct of C")]
pub fn release() -> String {
    // SAFETY: all zeroes is a utsname, of empty texts; uname(2) writes nothing but what fits, with a zero at the end.
    let release = unsafe {
        let mut name: libc::utsname = std::mem::zeroed();
        libc::uname(&raw mut name);
        CStr::from_ptr(name.release.as_ptr()).to_owned()
    };
    release.to_string_lossy().into_owned()
}

/// What to tell of a kernel that is too old. Distributors backport much, so it may work all the same.
#[must_use]
pub fn too_old(release: &str) -> Option<String> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    let mut number = || numbers.next()?.parse::<u32>().ok();
    let version = (number()?, number()?);
    let (major, minor) = OLDEST;
    (version < OLDEST).then(|| {
        format!("this is Linux {release}, and {major}.{minor} or later is needed: update the node's kernel")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_is_old_by_its_first_two_numbers() {
        for (release, is_old) in [
            ("6.18.0-fc", false),
            ("5.13", false),
            ("5.14.0-362.el9.x86_64", false),
            ("5.4.0-42-generic", true),
            ("4.18.0-553.el8", true),
            ("unknown", false),
        ] {
            assert_eq!(too_old(release).is_some(), is_old, "{release}");
        }
        assert!(too_old("4.18.0").unwrap().contains("4.18.0, and 5.13"));
        assert_eq!(too_old(&release()), None);
    }
}
