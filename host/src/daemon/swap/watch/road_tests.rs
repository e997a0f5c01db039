//! Ways that change under the feet of whoever walks them.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::*;

/// A directory that no link leads to.
fn place() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().canonicalize().unwrap();
    (dir, path)
}

/// Waits for the first signs.
fn signs(road: &Road) -> Vec<Sign> {
    loop {
        let queue = road.queue().unwrap();
        let limit = Timespec { tv_sec: 20, tv_nsec: 0 };
        assert_eq!(poll(&mut [PollFd::new(&queue, PollFlags::IN)], Some(&limit)).unwrap(), 1, "no sign came");
        let signs = road.signs().unwrap();
        if !signs.is_empty() {
            return signs;
        }
    }
}

/// A way to `current/in` below a new directory, and what changes it.
fn changed_by(lay_out: impl FnOnce(&Path), change: impl FnOnce(&Path)) -> (Road, PathBuf) {
    let (_keep, top) = place();
    lay_out(&top);
    let dir = top.join("current/in");
    let road = Road::walk(&dir);
    change(&top);
    assert!(signs(&road).contains(&Sign::Way));
    let again = Road::walk(&dir);
    (again, top)
}

fn release(top: &Path) {
    fs::create_dir_all(top.join("releases/1/in")).unwrap();
    fs::create_dir_all(top.join("releases/2/in")).unwrap();
    symlink("releases/1", top.join("current")).unwrap();
}

#[test]
fn a_link_on_the_way_that_is_replaced_or_removed_is_a_sign() {
    let (road, top) = changed_by(release, |top| {
        symlink("releases/2", top.join("next")).unwrap();
        fs::rename(top.join("next"), top.join("current")).unwrap();
    });
    assert_eq!(road.end.unwrap().0, top.join("releases/2/in"));
    let (road, top) = changed_by(release, |top| fs::remove_file(top.join("current")).unwrap());
    assert!(matches!(road.end, Err(Unwatched::Absent { at, via: None }) if at == top.join("current")));
    let (road, top) = changed_by(release, |top| fs::rename(top.join("releases"), top.join("old")).unwrap());
    let via = Some(top.join("current"));
    assert!(
        matches!(road.end, Err(Unwatched::Absent { at, via: led }) if at == top.join("releases") && led == via)
    );
}

#[test]
fn a_directory_that_is_removed_is_a_sign_even_while_somebody_has_it_open() {
    let open = std::cell::RefCell::new(None);
    let (road, top) = changed_by(release, |top| {
        *open.borrow_mut() = Some(fs::File::open(top.join("current/in")).unwrap());
        fs::remove_dir(top.join("current/in")).unwrap();
    });
    let why = road.end.unwrap_err();
    let said = format!(
        "{} does not exist ({} leads there)",
        top.join("releases/1/in").display(),
        top.join("current").display()
    );
    assert_eq!((why.to_string(), why.code()), (said, "absent"));
}

#[test]
fn each_missing_directory_on_the_way_is_a_sign_when_it_comes() {
    let (_keep, top) = place();
    let dir = top.join("a/b/in");
    for step in ["a", "a/b", "a/b/in"] {
        let road = Road::walk(&dir);
        assert!(matches!(road.end, Err(Unwatched::Absent { at, .. }) if at == top.join(step)), "{step}");
        let road = Road::walk(&dir);
        fs::create_dir(top.join(step)).unwrap();
        assert_eq!(signs(&road), [Sign::Way], "{step}");
    }
    assert_eq!(Road::walk(&dir).end.unwrap().0, dir);
}

#[test]
fn what_is_no_directory_and_links_in_a_circle_are_told_apart() {
    let (_keep, top) = place();
    fs::File::create(top.join("file")).unwrap();
    symlink("circle", top.join("circle")).unwrap();
    symlink(top.join("file"), top.join("link")).unwrap();
    let code = |name: &str| Road::walk(&top.join(name)).end.unwrap_err().code();
    assert_eq!(
        ["file", "link", "circle", "file/in"].map(code),
        ["not_a_directory", "not_a_directory", "symlink_loop", "not_a_directory"]
    );
}

#[test]
fn other_names_beside_the_way_are_no_sign_and_files_at_its_end_are_told() {
    let (_keep, top) = place();
    release(&top);
    let road = Road::walk(&top.join("current/in"));
    fs::create_dir(top.join("beside")).unwrap();
    fs::File::create(top.join("releases/1/beside")).unwrap();
    fs::set_permissions(top.join("releases/1/in"), fs::Permissions::from_mode(0o700)).unwrap();
    assert_eq!(road.signs().unwrap(), []);
    fs::File::create(top.join("releases/1/in/a.so")).unwrap();
    let name = || "a.so".into();
    assert_eq!(
        signs(&road),
        [Sign::File { name: name(), made: true }, Sign::File { name: name(), made: false }]
    );
    // Through every link, out of order: it is the same directory.
    let around = Road::walk(&top.join("releases/../current/../2/./in"));
    assert_eq!(around.end.unwrap().0, top.join("releases/2/in"));
}

#[test]
fn events_mean_what_they_say() {
    let mark = Mark { names: BTreeSet::from(["in".into()]), files: true };
    let file = |name: &str, made| vec![Sign::File { name: name.into(), made }];
    let cases = [
        (ReadFlags::QUEUE_OVERFLOW, None, true, vec![Sign::Overflow]),
        (ReadFlags::UNMOUNT, None, true, vec![Sign::Way]),
        (ReadFlags::IGNORED, None, true, vec![Sign::Way]),
        (ReadFlags::MOVE_SELF, None, false, vec![Sign::Way]),
        (ReadFlags::MOVED_FROM, Some("in"), true, vec![Sign::Way]),
        (ReadFlags::ATTRIB, Some("in"), false, vec![Sign::Way]),
        (ReadFlags::ATTRIB, Some("in"), true, vec![]),
        (ReadFlags::DELETE, Some("a.so"), true, vec![]),
        (ReadFlags::CLOSE_WRITE, Some("a.so"), true, file("a.so", false)),
        (ReadFlags::CREATE, Some("a.so"), true, file("a.so", true)),
    ];
    for (events, name, arrived, expected) in cases {
        assert_eq!(meaning(Some(&mark), events, name.map(OsStr::new), arrived), expected, "{events:?}");
    }
    assert_eq!(meaning(None, ReadFlags::QUEUE_OVERFLOW, None, true), [Sign::Overflow]);
    assert_eq!(meaning(None, ReadFlags::CREATE, Some(OsStr::new("in")), true), []);
}
