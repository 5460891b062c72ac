//! Each single step that changes the system, the last of a plugin that is killed, or one that the kernel
//! refuses: nothing is left behind, and ADD succeeds afterwards.
//!
//! The steps are its system calls that change files or speak to the kernel's networks, counted by
//! tracing it.

use std::io::Read;

use hostnet::testkit::{Ns, Snapshot, require_tool};
use nix::sys::ptrace;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use serde_json::json;

use crate::runtime::{DUAL, Node, Reply};

/// Calls by their numbers on x86-64 (linux/arch/x86/entry/syscalls/syscall_64.tbl): write, sendto,
/// sendmsg, ftruncate, rename, mkdir, link, unlink, unlinkat, renameat, linkat, renameat2.
const CHANGING: [u64; 12] = [WRITE, 44, 46, 77, 82, 83, 86, 87, 263, 264, 265, 316];
const WRITE: u64 = 1;
const OPENAT: u64 = 257;
const O_CREAT: u64 = 0o100;

/// What becomes of a call at a step.
#[derive(Clone, Copy, PartialEq)]
enum Fate {
    /// It is killed when the step is done.
    Killed,
    /// The step fails with an I/O error instead of being done.
    Refused,
}

/// Runs a call to a step, which is counted from 0. Returns what it answered, if it was not killed, and
/// whether it came to that step.
fn trace(node: &Node, verb: &str, netns: &str, step: usize, fate: Fate) -> (Option<Reply>, bool) {
    let mut child = node.spawn(verb, "c1", netns);
    let pid = Pid::from_raw(child.id().try_into().unwrap());
    // It waits for its configuration.
    ptrace::attach(pid).unwrap();
    waitpid(pid, None).unwrap();
    ptrace::setoptions(pid, ptrace::Options::PTRACE_O_TRACESYSGOOD).unwrap();
    node.feed(&mut child);
    let mut done = 0;
    let mut entered = false;
    let status = loop {
        ptrace::syscall(pid, None).unwrap();
        match waitpid(pid, None).unwrap() {
            WaitStatus::PtraceSyscall(_) => {
                // Each call stops twice: when it begins and when it is done. The first stop may be
                // the end of the one in which it waited.
                let mut registers = ptrace::getregs(pid).unwrap();
                let begins = registers.rax.cast_signed() == -i64::from(nix::libc::ENOSYS);
                let refused = fate == Fate::Refused && done == step;
                if begins {
                    entered = CHANGING.contains(&registers.orig_rax) && !answers(&registers)
                        || registers.orig_rax == OPENAT && registers.rdx & O_CREAT != 0;
                    if entered && refused {
                        // There is no such call: nothing is done, and what it returns stays.
                        registers.orig_rax = u64::MAX;
                        registers.rax = (-i64::from(nix::libc::EIO)).cast_unsigned();
                        ptrace::setregs(pid, registers).unwrap();
                    }
                } else if entered {
                    entered = false;
                    done += 1;
                    if fate == Fate::Killed && done > step {
                        child.kill().unwrap();
                        // The tracer is told of the end before the parent is; both are us.
                        while waitpid(pid, None)
                            .is_ok_and(|status| !matches!(status, WaitStatus::Signaled(..)))
                        {
                        }
                        return (None, true);
                    }
                }
            }
            WaitStatus::Exited(_, status) => break status,
            WaitStatus::Stopped(..) => {}
            other => panic!("{verb} after {done} steps: {other:?}"),
        }
    };
    let mut answer = Vec::new();
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_to_end(&mut answer).unwrap();
    (Some(Reply::of(status == 0, &answer)), done > step)
}

/// What a call tells the runtime cannot be taken back.
fn answers(registers: &nix::libc::user_regs_struct) -> bool {
    registers.orig_rax == WRITE && registers.rdi == 1
}

/// A node on which an attachment has every kind of thing, a pod for it, and how the node was before.
struct Stage {
    node: Node,
    pod: Ns,
    before: Snapshot,
    kept: Vec<String>,
    /// How many lines of rules the attachment has.
    whole: usize,
}

impl Stage {
    fn new() -> Stage {
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
        let mut stage = Stage {
            pod: Ns::new("pod"),
            before: node.snapshot(),
            kept: Vec::new(),
            whole: 0,
            node,
        };
        // A first attachment makes the bridge and the tables.
        stage.node.add("c1", &stage.pod).result();
        stage.whole = stage.rules().len();
        stage.node.del("c1", &stage.pod.path());
        stage.before = stage.node.snapshot();
        stage.kept = stage.node.kept();
        stage.nothing_left("at first");
        assert!(stage.whole > 0);
        stage
    }

    /// The lines of the rules that belong to the attachment.
    fn rules(&self) -> Vec<String> {
        let listed = self.node.host.sh("nft", &["list", "ruleset"]);
        let of_it = listed.lines().filter(|line| line.contains("\"c1/eth0@"));
        of_it.map(str::to_owned).collect()
    }

    fn nothing_left(&self, case: &str) {
        assert_eq!(self.node.kept(), self.kept, "{case}");
        assert_eq!(
            self.before.changes(&self.node.snapshot()),
            Vec::<String>::new(),
            "{case}"
        );
        assert_eq!(self.rules(), Vec::<String>::new(), "{case}");
        assert!(self.pod.find_link("eth0").is_none(), "{case}");
    }

    /// What is made is whole, and goes.
    fn works(&self, case: &str) {
        self.node.add("c1", &self.pod).result();
        assert_eq!(self.rules().len(), self.whole, "{case}");
        self.node.del("c1", &self.pod.path());
    }
}

#[test]
fn killed_after_every_step_of_add_and_del() {
    let stage = Stage::new();
    let netns = stage.pod.path();
    let mut points = [0, 0];
    for (which, verb) in ["ADD", "DEL"].into_iter().enumerate() {
        for step in 0.. {
            let case = format!("{verb} killed after step {step}");
            if verb == "DEL" {
                stage.node.add("c1", &stage.pod).result();
            }
            let (_, reached) = trace(&stage.node, verb, &netns, step, Fate::Killed);
            stage.node.del("c1", &netns);
            stage.nothing_left(&case);
            if !reached {
                points[which] = step;
                break;
            }
            if verb == "ADD" {
                stage.works(&case);
            }
        }
    }
    // Links, addresses, routes, files and rules are many steps: they were counted.
    assert!(points[0] > 30 && points[1] > 10, "{points:?}");
}

#[test]
fn an_add_that_fails_at_any_step_leaves_the_node_as_it_was() {
    let stage = Stage::new();
    let netns = stage.pod.path();
    let (mut refused, mut borne) = (0, Vec::new());
    for step in 0.. {
        let mut case = format!("ADD of which step {step} was refused");
        let (reply, reached) = trace(&stage.node, "ADD", &netns, step, Fate::Refused);
        let reply = reply.unwrap();
        if !reached {
            reply.result();
            break;
        }
        if reply.ok {
            // It could do without that step.
            borne.push(step);
            stage.node.del("c1", &netns);
        } else {
            refused += 1;
            let (_, msg) = reply.error();
            case += &format!(": {msg}");
        }
        stage.nothing_left(&case);
        stage.works(&case);
    }
    assert!(refused > 30, "{refused} refused, borne {borne:?}");
}
