//! What the file tools promise: exact edits, known hashes, nothing outside, nothing half done.

#![allow(clippy::disallowed_methods, reason = "tests prepare files without durability")]

use super::*;
use crate::broker::stop::{Patience, StopSignal};
use crate::broker::tools::Nobody;
use crate::sys::clock::SystemClock;
use std::fs;
use std::os::unix::fs::symlink;

struct Bench {
    dir: tempfile::TempDir,
    read: FsRead,
    edit: FsEdit,
}

impl Bench {
    fn new(files: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(dir.path().join(name), text).unwrap();
        }
        let workspace = Workspace::open(dir.path()).unwrap();
        Self { dir, read: FsRead::new(Arc::clone(&workspace)), edit: FsEdit::new(workspace) }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }
}

fn run(tool: &dyn Tool, args: Value) -> Result<ToolReply, Refusal> {
    let touch = tool.touch(&args)?;
    let intent = tool.intent(&args, &touch)?;
    Ok(execute(tool, &args, &intent, "sha256-0123456789abcdef"))
}

fn execute(tool: &dyn Tool, args: &Value, intent: &Intent, key: &str) -> ToolReply {
    let (stop, clock) = (StopSignal::new(), SystemClock::default());
    let course = Course { key, patience: Patience::new(&stop, &clock, None), watch: &Nobody };
    let done = tool.execute(args, intent, &course).unwrap();
    assert_eq!(done.usage, Some(kairos_plugin_api::Usage::ZERO));
    done.reply
}

/// The word of a refusal, from wherever it comes.
fn code(result: Result<ToolReply, Refusal>) -> String {
    let reply = match result {
        Err(Refusal::Invalid(_)) => return "invalid".to_owned(),
        Err(Refusal::Answer(reply)) | Ok(reply) => reply,
    };
    assert!(!reply.ok, "{reply:?}");
    reply.output["code"].as_str().unwrap().to_owned()
}

#[test]
fn reading_gives_text_and_hash() {
    let bench = Bench::new(&[("a.md", "hé\n")]);
    let reply = run(&bench.read, json!({"path": "./a.md"})).unwrap();
    assert!(reply.ok);
    let hash = canonical::hash_bytes("hé\n".as_bytes());
    assert_eq!(reply.output, json!({"path": "a.md", "content": "hé\n", "bytes": 4, "sha256": hash}));
}

#[test]
fn what_is_no_text_file_of_the_workspace_is_not_read() {
    let bench = Bench::new(&[("plain", "x")]);
    fs::write(bench.path("bin"), [0xff, 0xfe]).unwrap();
    fs::write(bench.path("big"), vec![b'a'; usize::try_from(READ_MAX).unwrap() + 1]).unwrap();
    fs::write(bench.path("edge"), vec![b'a'; usize::try_from(READ_MAX).unwrap()]).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, bench.path("pipe"), rustix::fs::FileType::Fifo, Mode::RWXU, 0)
        .unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(bench.path("socket")).unwrap();
    symlink("/etc/passwd", bench.path("out")).unwrap();
    let cases = [
        ("bin", "not_text"),
        ("big", "too_large"),
        ("pipe", "not_a_file"),
        ("socket", "not_a_file"),
        (".", "invalid"),
        ("none", "not_found"),
        ("none/deeper", "not_found"),
        ("plain/x", "not_a_file"),
        ("out", "invalid"),
        ("/etc/passwd", "invalid"),
        ("../x", "invalid"),
        ("", "invalid"),
    ];
    for (path, word) in cases {
        assert_eq!(code(run(&bench.read, json!({ "path": path }))), word, "{path}");
    }
    assert!(run(&bench.read, json!({"path": "edge"})).unwrap().ok);
    for args in [json!({}), json!({"path": 7}), json!({"path": "plain", "x": 1}), json!(null), json!("plain")]
    {
        assert_eq!(code(run(&bench.read, args)), "invalid");
    }
}

#[test]
fn an_edit_replaces_the_one_place_and_keeps_the_mode() {
    let bench = Bench::new(&[("a.sh", "one two three")]);
    fs::set_permissions(bench.path("a.sh"), Permissions::from_mode(0o750)).unwrap();
    let args = json!({"path": "a.sh", "old": "two", "new": "2"});
    let touch = bench.edit.touch(&args).unwrap();
    assert_eq!(touch, Touch { access: Access::Write, path: Some("a.sh".into()) });
    let intent = bench.edit.intent(&args, &touch).unwrap();
    assert_eq!(bench.text("a.sh"), "one two three", "an intent changes nothing");
    assert_eq!(bench.edit.world_hash(&intent), intent.pre_hash);
    let reply = execute(&bench.edit, &args, &intent, "sha256-00");
    assert!(reply.ok, "{reply:?}");
    assert_eq!(bench.text("a.sh"), "one 2 three");
    assert_eq!(bench.edit.world_hash(&intent), intent.post_hash);
    assert_eq!(reply.output["pre_sha256"], json!(intent.pre_hash));
    assert_eq!(reply.output["post_sha256"], json!(intent.post_hash));
    assert_eq!(fs::metadata(bench.path("a.sh")).unwrap().permissions().mode() & 0o7777, 0o750);
    assert_eq!(fs::read_dir(bench.dir.path()).unwrap().count(), 1, "nothing is left over");
}

#[test]
fn edits_that_are_not_exact_are_refused_and_change_nothing() {
    let text = "aaa b b\n";
    let bench = Bench::new(&[("f", text)]);
    let cases = [
        (json!({"path": "f", "old": "x", "new": "y"}), "no_match"),
        (json!({"path": "f", "old": "b", "new": "y"}), "ambiguous"),
        (json!({"path": "f", "old": "aa", "new": "y"}), "ambiguous"),
        (json!({"path": "f", "old": "aaa", "new": "aaa"}), "no_change"),
        (json!({"path": "f", "old": "", "new": "y"}), "exists"),
        (json!({"path": "g", "old": "x", "new": "y"}), "not_found"),
        (json!({"path": "g", "old": "", "new": "y", "create": "z"}), "invalid"),
        (json!({"path": "f", "old": "aaa", "new": "y".repeat(1 << 20)}), "too_large"),
        (json!({"path": "f", "old": "aaa"}), "invalid"),
        (json!({"path": "f", "old": "aaa", "new": "b", "mode": 1}), "invalid"),
    ];
    for (args, word) in cases {
        assert_eq!(code(run(&bench.edit, args.clone())), word, "{args}");
    }
    assert_eq!(bench.text("f"), text);
    let all = run(&bench.edit, json!({"path": "f", "old": "b", "new": "c", "replace_all": true})).unwrap();
    assert_eq!((all.output["replacements"].as_u64(), bench.text("f")), (Some(2), "aaa c c\n".to_owned()));
}

#[test]
fn a_missing_file_is_created_whole_or_from_a_beginning() {
    let bench = Bench::new(&[]);
    let args = json!({"path": "new/deep/f", "old": "", "new": "text"});
    let intent = bench.edit.intent(&args, &bench.edit.touch(&args).unwrap()).unwrap();
    assert_eq!(bench.edit.world_hash(&intent).as_deref(), Some(ABSENT));
    assert!(execute(&bench.edit, &args, &intent, "sha256-00").ok);
    assert_eq!(bench.text("new/deep/f"), "text");
    assert_eq!(bench.edit.world_hash(&intent), intent.post_hash);
    let begun = json!({"path": "g", "old": "open", "new": "done", "create": "state: open\n"});
    let reply = run(&bench.edit, begun).unwrap();
    assert_eq!(
        (reply.output["created"].as_bool(), bench.text("g")),
        (Some(true), "state: done\n".to_owned())
    );
}

#[test]
fn a_file_that_changed_since_the_intent_is_left_alone() {
    let bench = Bench::new(&[("f", "old")]);
    let args = json!({"path": "f", "old": "old", "new": "new"});
    let intent = bench.edit.intent(&args, &bench.edit.touch(&args).unwrap()).unwrap();
    fs::write(bench.path("f"), "old, by somebody else").unwrap();
    assert_eq!(code(Ok(execute(&bench.edit, &args, &intent, "sha256-00"))), "changed");
    assert_eq!(bench.text("f"), "old, by somebody else");
}

#[test]
fn a_link_swapped_in_after_the_look_is_no_way_out() {
    let bench = Bench::new(&[("f", "old")]);
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("f"), "old").unwrap();
    fs::create_dir(bench.path("d")).unwrap();
    fs::write(bench.path("d/f"), "old").unwrap();
    let args = json!({"path": "d/f", "old": "old", "new": "new"});
    let intent = bench.edit.intent(&args, &bench.edit.touch(&args).unwrap()).unwrap();
    fs::rename(bench.path("d"), bench.path("e")).unwrap();
    symlink(outside.path(), bench.path("d")).unwrap();
    assert_eq!(code(Ok(execute(&bench.edit, &args, &intent, "sha256-00"))), "invalid");
    assert_eq!(fs::read_to_string(outside.path().join("f")).unwrap(), "old");
    assert_eq!(bench.edit.world_hash(&intent), None);
}

#[test]
fn a_leftover_of_a_crash_does_not_stop_the_next_attempt() {
    let bench = Bench::new(&[("f", "old")]);
    let key = "sha256-0123456789abcdef0123456789abcdef";
    fs::write(bench.path(&format!("{TEMP_PREFIX}{}", temp_tag(key))), "half").unwrap();
    let args = json!({"path": "f", "old": "old", "new": "new"});
    let intent = bench.edit.intent(&args, &bench.edit.touch(&args).unwrap()).unwrap();
    assert!(execute(&bench.edit, &args, &intent, key).ok);
    assert_eq!(bench.text("f"), "new");
    assert_eq!(fs::read_dir(bench.dir.path()).unwrap().count(), 1);
}
