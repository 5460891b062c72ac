//! Which kernel this is, and whether it can do what is asked of it.

/// The oldest that has all that Twill programs: concatenations with ranges, `typeof` maps, sets with timeouts per
/// element, links made straight in another namespace.
pub const OLDEST: (u32, u32) = (5, 13);

/// Its release, as uname(1) tells it; empty where it does not.
#[must_use]
pub fn release() -> String {
    let name = nix::sys::utsname::uname();
    name.map_or_else(
        |_| String::new(),
        |name| name.release().to_string_lossy().into_owned(),
    )
}

/// The first two numbers of a release: by them kernels are told apart.
#[must_use]
pub fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    let mut number = || numbers.next()?.parse().ok();
    Some((number()?, number()?))
}

/// What to tell of a kernel that is too old. Distributors backport much, so it may work all the same.
#[must_use]
pub fn too_old(release: &str) -> Option<String> {
    let (major, minor) = OLDEST;
    (version(release)? < OLDEST).then(|| {
        format!("this is Linux {release}, and {major}.{minor} or later is needed: update the node's kernel")
    })
}

/// What to tell of something that the kernel has in a module of its own, and not here.
pub(crate) fn lacks(what: &str, module: &str, config: &str) -> String {
    format!(
        "the kernel has no {what}: `modprobe {module}` on the node, whose distribution may have it in a package of further \
         modules, or a kernel with {config}"
    )
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
