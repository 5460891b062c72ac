//! `twill-cni install` and `uninstall`.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

fn run(arguments: &[&str]) -> (bool, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_twill-cni"));
    let output = command.args(arguments).env_clear().output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (
        output.status.success(),
        text(output.stdout),
        text(output.stderr),
    )
}

fn put(path: &Path, contents: &str, mode: u32) {
    hostnet::atomic_file::replace(path, contents.as_bytes(), mode).unwrap();
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

const CONFLIST: &str =
    r#"{"name": "cbr0", "cniVersion": "1.1.0", "plugins": [{"type": "twill-cni"}]}"#;

#[test]
fn it_brings_itself_and_takes_itself_away() {
    let dir = tempfile::tempdir().unwrap();
    let (bin, conf) = (dir.path().join("opt/cni/bin"), dir.path().join("net.d"));
    fs::create_dir_all(&bin).unwrap();
    put(&bin.join("bridge"), "the reference", 0o755);
    let source = dir.path().join("10-flannel.conflist");
    put(&source, CONFLIST, 0o600);
    let all = [
        "--bin-dir",
        text(&bin),
        "--conf-dir",
        text(&conf),
        "--conflist",
        text(&source),
    ];
    let install = |verb| run(&[&[verb][..], &all].concat());

    let (ok, stdout, stderr) = install("install");
    assert!(ok, "{stderr}");
    let program = bin.join("twill-cni");
    assert_eq!(
        stdout,
        format!(
            "wrote {}\nwrote {}\n",
            program.display(),
            conf.join("10-flannel.conflist").display()
        )
    );
    assert_eq!(
        fs::read(&program).unwrap(),
        fs::read(env!("CARGO_BIN_EXE_twill-cni")).unwrap()
    );
    assert_eq!(
        fs::metadata(&program).unwrap().permissions().mode() & 0o777,
        0o755
    );
    assert_eq!(
        fs::read_to_string(conf.join("10-flannel.conflist")).unwrap(),
        CONFLIST
    );
    assert_eq!(
        fs::read_to_string(bin.join("bridge")).unwrap(),
        "the reference"
    );
    // The copy runs, and a second time there is nothing to do.
    let version = Command::new(&program).arg("--version").output().unwrap();
    assert!(version.stdout.starts_with(b"twill-cni "));
    let (ok, stdout, _) = install("install");
    assert!(
        ok && stdout
            .lines()
            .all(|line| line.ends_with("is there already")),
        "{stdout}"
    );

    let (ok, stdout, _) = install("uninstall");
    assert!(ok && stdout.contains("removed"), "{stdout}");
    assert!(!program.exists() && !conf.join("10-flannel.conflist").exists());
    assert!(bin.join("bridge").exists());
    let (ok, stdout, _) = install("uninstall");
    assert!(
        ok && stdout.lines().all(|line| line.ends_with("is not there")),
        "{stdout}"
    );
}

#[test]
fn a_newer_version_stays_unless_forced() {
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("twill-cni");
    let newer = "#!/bin/sh\necho twill-cni 99.0.0\n";
    put(&program, newer, 0o755);
    let (ok, _, stderr) = run(&["install", "--bin-dir", text(dir.path())]);
    assert!(
        !ok && stderr.contains("is twill-cni 99.0.0, newer than"),
        "{stderr}"
    );
    assert_eq!(fs::read_to_string(&program).unwrap(), newer);
    let (ok, ..) = run(&["install", "--bin-dir", text(dir.path()), "--force"]);
    assert!(ok);
    assert_ne!(fs::read(&program).unwrap(), newer.as_bytes());
    // An older one, or what is no version of ours, is replaced.
    put(&program, "#!/bin/sh\necho twill-cni 0.0.1\n", 0o755);
    assert!(run(&["install", "--bin-dir", text(dir.path())]).0);
}

#[test]
fn what_is_wrong_is_seen_before_anything_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let (bin, conf) = (dir.path().join("bin"), dir.path().join("conf"));
    let source = dir.path().join("x.conflist");
    for contents in [
        "{",
        "{}",
        r#"{"name":"n","plugins":[]}"#,
        r#"{"name":"n","plugins":[{}]}"#,
    ] {
        put(&source, contents, 0o600);
        let (ok, stdout, stderr) = run(&[
            "install",
            "--bin-dir",
            text(&bin),
            "--conf-dir",
            text(&conf),
            "--conflist",
            text(&source),
        ]);
        assert!(!ok && stdout.is_empty(), "{contents}");
        assert!(
            stderr.contains("x.conflist is not a network configuration list"),
            "{stderr}"
        );
        assert!(!bin.exists() && !conf.exists());
    }
    let (ok, _, stderr) = run(&["install"]);
    assert!(
        !ok && stderr.contains("--bin-dir or --conf-dir is missing"),
        "{stderr}"
    );
    // Another's configuration of that name stays.
    fs::create_dir_all(&conf).unwrap();
    put(
        &conf.join("x.conflist"),
        r#"{"name":"n","plugins":[{"type":"bridge"}]}"#,
        0o600,
    );
    let (ok, stdout, _) = run(&[
        "uninstall",
        "--conf-dir",
        text(&conf),
        "--conflist",
        "x.conflist",
    ]);
    assert!(
        ok && stdout.contains("it does not name twill-cni"),
        "{stdout}"
    );
    assert!(conf.join("x.conflist").exists());
}
