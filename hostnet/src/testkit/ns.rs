//! Private namespaces and the cables between them.

use std::process::{Command, Output};

use crate::netlink::addr;
use crate::netlink::link::{self, Bridge, Change, NewLink, NewPeer};
use crate::netlink::route;
use crate::netlink::{Addr, Link, LinkKind, Route, Rtnl};
use crate::netns::NetNs;
use crate::sysctl::Sysctl;
use crate::vocab::{Cidr, IfName, Subnet};

/// A private namespace with `lo` up. It goes when this is dropped, also by a panic, and when the
/// test is killed, since nothing but our handles keeps it.
#[derive(Debug)]
pub struct Ns {
    ns: NetNs,
    label: String,
}

/// Panics unless run by root.
pub fn require_root() {
    assert!(
        nix::unistd::geteuid().is_root(),
        "this test makes network namespaces: run it as root (sudo -E env PATH=\"$PATH\" cargo test …)"
    );
}

/// Panics unless a program can be run; `package` is the Debian package that has it.
pub fn require_tool(program: &str, package: &str) {
    let found = std::env::var_os("PATH").is_some_and(|path| {
        std::env::split_paths(&path).any(|directory| directory.join(program).is_file())
    });
    assert!(
        found,
        "this test needs the program {program}: apt-get install {package}"
    );
}

impl Ns {
    /// Makes a namespace. The label is for messages.
    pub fn new(label: &str) -> Ns {
        require_root();
        let ns = NetNs::new_anonymous()
            .unwrap_or_else(|error| panic!("namespace {label}: {}", chain(&error)));
        let made = Ns {
            ns,
            label: label.to_owned(),
        };
        made.set_up("lo");
        made
    }

    /// The namespace.
    pub fn ns(&self) -> &NetNs {
        &self.ns
    }

    /// The label.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// A path by which a child process can open it, as `CNI_NETNS`.
    pub fn path(&self) -> String {
        self.ns.fd_path().display().to_string()
    }

    /// The command by which a person looks around in it while the test stands still.
    pub fn hint(&self) -> String {
        format!("nsenter --net={} bash   # {}", self.path(), self.label)
    }

    /// A netlink handle on it.
    pub fn rtnl(&self) -> Rtnl {
        Rtnl::open_in(&self.ns).unwrap_or_else(|error| self.fail("netlink", &error))
    }

    /// Runs code inside it.
    pub fn run<T>(&self, work: impl FnOnce() -> T) -> T {
        self.ns
            .run_in(work)
            .unwrap_or_else(|error| self.fail("enter", &error))
    }

    /// Runs a program inside it and gives what came of it.
    pub fn output(&self, program: &str, arguments: &[&str]) -> Output {
        self.run(|| Command::new(program).args(arguments).output())
            .unwrap_or_else(|error| panic!("{}: run {program}: {error}", self.label))
    }

    /// Runs a program inside it that must succeed, and gives its standard output.
    pub fn sh(&self, program: &str, arguments: &[&str]) -> String {
        let output = self.output(program, arguments);
        assert!(
            output.status.success(),
            "{}: {program} {arguments:?}: {}{}",
            self.label,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// A link that must be there.
    pub fn link(&self, name: &str) -> Link {
        self.find_link(name)
            .unwrap_or_else(|| panic!("{}: no link {name}", self.label))
    }

    /// A link, if it is there.
    pub fn find_link(&self, name: &str) -> Option<Link> {
        self.rtnl()
            .link(if_name(name))
            .unwrap_or_else(|error| self.fail(name, &error))
    }

    /// Sets a link up.
    pub fn set_up(&self, name: &str) {
        self.change(
            name,
            Change {
                up: Some(true),
                ..Change::default()
            },
        );
    }

    /// Sets a link down.
    pub fn set_down(&self, name: &str) {
        self.change(
            name,
            Change {
                up: Some(false),
                ..Change::default()
            },
        );
    }

    /// Changes a link.
    pub fn change(&self, name: &str, change: Change) {
        self.apply(link::change(if_name(name), &change));
    }

    /// Sends a request that must succeed.
    pub fn apply(&self, request: crate::netlink::Request) {
        self.rtnl()
            .apply(request)
            .unwrap_or_else(|error| self.fail("netlink", &error));
    }

    /// Gives a link an address such as `192.0.2.1/24`.
    pub fn addr(&self, link: &str, cidr: &str) {
        let cidr: Cidr = cidr
            .parse()
            .unwrap_or_else(|error| panic!("{cidr}: {error}"));
        self.apply(addr::add(&Addr::new(self.link(link).index, cidr)));
    }

    /// Adds a route by a gateway; `default` and `default6` are allowed as destinations.
    pub fn route(&self, destination: &str, gateway: &str) {
        let destination: Subnet = match destination {
            "default" => "0.0.0.0/0",
            "default6" => "::/0",
            other => other,
        }
        .parse()
        .unwrap_or_else(|error| panic!("{destination}: {error}"));
        let gateway = gateway
            .parse()
            .unwrap_or_else(|error| panic!("{gateway}: {error}"));
        self.apply(route::add(&Route::new(destination, Some(gateway), None)));
    }

    /// Makes a bridge that is up.
    pub fn bridge(&self, name: &str) {
        let bridge = LinkKind::Bridge(Bridge::default());
        self.apply(link::create(&NewLink {
            up: true,
            ..NewLink::new(if_name(name), bridge)
        }));
    }

    /// Reads a switch below `/proc/sys/net`.
    pub fn sysctl(&self, key: &str) -> String {
        self.run(|| Sysctl::default().get(key))
            .unwrap_or_else(|error| self.fail(key, &error))
    }

    /// Sets a switch below `/proc/sys/net`.
    pub fn set_sysctl(&self, key: &str, value: &str) {
        self.run(|| Sysctl::default().ensure(key, value))
            .unwrap_or_else(|error| self.fail(key, &error));
    }

    /// Forwards between its links, both families.
    pub fn forward(&self) {
        self.set_sysctl("ipv4/ip_forward", "1");
        self.set_sysctl("ipv6/conf/all/forwarding", "1");
    }

    fn fail(&self, what: &str, error: &dyn std::error::Error) -> ! {
        panic!("namespace {}: {what}: {}", self.label, chain(error))
    }
}

/// Lays a cable between two namespaces: a veth pair, both ends up.
pub fn connect(a: &Ns, a_link: &str, b: &Ns, b_link: &str) {
    let peer = NewPeer::new(if_name(b_link), b.ns.clone());
    a.apply(link::create(&NewLink {
        up: true,
        ..NewLink::veth(if_name(a_link), peer)
    }));
    b.set_up(b_link);
}

/// Lays a cable from a namespace to a bridge in another, where the end is called `port`.
pub fn join_bridge(host: &Ns, bridge: &str, port: &str, guest: &Ns, guest_link: &str) {
    connect(host, port, guest, guest_link);
    let master = host.link(bridge).index;
    host.change(
        port,
        Change {
            master: Some(master),
            ..Change::default()
        },
    );
}

fn if_name(text: &str) -> IfName {
    IfName::new(text).unwrap_or_else(|error| panic!("{error}"))
}

/// An error with all its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text += &format!(": {error}");
        source = error.source();
    }
    text
}
