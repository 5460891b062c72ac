//! The plugin killed after each single step that changes the system: DEL then takes away all there
//! is, and ADD succeeds.
//!
//! The steps are its system calls that change files or speak to the kernel's networks, counted by
//! tracing it.

use hostnet::testkit::{Ns, require_tool};
use nix::sys::ptrace;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use serde_json::json;

use crate::runtime::{DUAL, Node};

/// Calls by their numbers on x86-64 (linux/arch/x86/entry/syscalls/syscall_64.tbl): write, sendto,
/// sendmsg, ftruncate, rename, mkdir, link, unlink, unlinkat, renameat, linkat, renameat2.
const CHANGING: [u64; 12] = [1, 44, 46, 77, 82, 83, 86, 87, 263, 264, 265, 316];
const OPENAT: u64 = 257;
const O_CREAT: u64 = 0o100;

/// Kills a call after as many steps. Returns whether it had ended before.
fn kill_after(node: &Node, verb: &str, netns: &str, steps: usize) -> bool {
    let mut child = node.spawn(verb, "c1", netns);
    let pid = Pid::from_raw(child.id().try_into().unwrap());
    // It waits for its configuration.
    ptrace::attach(pid).unwrap();
    waitpid(pid, None).unwrap();
    ptrace::setoptions(pid, ptrace::Options::PTRACE_O_TRACESYSGOOD).unwrap();
    node.feed(&mut child);
    let mut done = 0;
    let mut entered = false;
    let ended = loop {
        ptrace::syscall(pid, None).unwrap();
        match waitpid(pid, None).unwrap() {
            WaitStatus::PtraceSyscall(_) => {
                // Each call stops twice: when it begins and when it is done. The first stop may be
                // the end of the one in which it waited.
                let registers = ptrace::getregs(pid).unwrap();
                let begins = registers.rax.cast_signed() == -i64::from(nix::libc::ENOSYS);
                if begins {
                    entered = CHANGING.contains(&registers.orig_rax)
                        || registers.orig_rax == OPENAT && registers.rdx & O_CREAT != 0;
                } else if entered {
                    entered = false;
                    done += 1;
                    if done > steps {
                        break false;
                    }
                }
            }
            WaitStatus::Exited(..) => break true,
            WaitStatus::Stopped(..) => {}
            other => panic!("{verb} after {done} steps: {other:?}"),
        }
    };
    if !ended {
        child.kill().unwrap();
        // The tracer is told of the end before the parent is; both are us.
        while waitpid(pid, None).is_ok_and(|status| !matches!(status, WaitStatus::Signaled(..))) {}
    }
    ended
}

#[test]
fn killed_after_every_step_of_add_and_del() {
    require_tool("nft", "nftables");
    let mut node = Node::without_subnet();
    node.set_subnet(&DUAL.replace("IPMASQ=true", "IPMASQ=false"));
    node.set_extra(json!({"masqAll": true, "runtimeConfig": {
        "portMappings": [
            {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
            {"hostPort": 8053, "containerPort": 53, "protocol": "udp", "hostIP": "127.0.0.1"},
        ],
        "bandwidth": {"ingressRate": 8_000_000, "ingressBurst": 800_000, "egressRate": 8_000_000, "egressBurst": 800_000},
    }}));
    let pod = Ns::new("pod");
    let netns = pod.path();
    let rules = || {
        let listed = node.host.sh("nft", &["list", "ruleset"]);
        let of_it = listed.lines().filter(|line| line.contains("\"c1/eth0@"));
        of_it.map(str::to_owned).collect::<Vec<_>>()
    };
    // A first attachment makes the bridge and the tables.
    node.add("c1", &pod).result();
    let whole = rules();
    node.del("c1", &netns);
    let (before, kept) = (node.snapshot(), node.kept());
    let nothing_left = |case: &str| {
        assert_eq!(node.kept(), kept, "{case}");
        assert_eq!(
            before.changes(&node.snapshot()),
            Vec::<String>::new(),
            "{case}"
        );
        assert_eq!(rules(), Vec::<String>::new(), "{case}");
        assert!(pod.find_link("eth0").is_none(), "{case}");
    };
    nothing_left("at first");

    let mut points = [0, 0];
    for (which, verb) in ["ADD", "DEL"].into_iter().enumerate() {
        for steps in 0.. {
            let case = format!("{verb} killed after {steps} steps");
            if verb == "DEL" {
                node.add("c1", &pod).result();
            }
            let ended = kill_after(&node, verb, &netns, steps);
            node.del("c1", &netns);
            nothing_left(&case);
            if ended {
                points[which] = steps;
                break;
            }
            // And what is made then is whole.
            if verb == "ADD" {
                node.add("c1", &pod).result();
                assert_eq!(rules().len(), whole.len(), "{case}");
                node.del("c1", &netns);
            }
        }
    }
    // Links, addresses, routes, files and rules are many steps: they were counted.
    assert!(points[0] > 30 && points[1] > 10, "{points:?}");
}
