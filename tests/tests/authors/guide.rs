//! The guide of the plugin-api, followed to the letter.

use std::process::Child;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kairos_host::runner::manifest::PluginFile;
use kairos_host::runner::map;
use kairos_plugin_api::State;
use kairos_plugin_api::adapter::Setup;
use kairos_plugin_api::testing::FakeHost;

use super::*;

/// Longer than anything takes on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// `kairos run &`, ended with the test whatever becomes of it.
struct Background(Child);

impl Background {
    fn start(home: &Path) -> Self {
        let mut command = Command::new(kairos());
        command.arg("run").current_dir(home).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let started = Self(command.spawn().unwrap());
        let end = Instant::now() + PATIENCE;
        loop {
            let status =
                Command::new(kairos()).args(["status", "--json"]).current_dir(home).output().unwrap();
            if String::from_utf8_lossy(&status.stdout).contains("\"state\":\"running\"") {
                return started;
            }
            assert!(Instant::now() < end, "{}", String::from_utf8_lossy(&status.stdout));
        }
    }

    fn ended(mut self) {
        let end = Instant::now() + PATIENCE;
        while self.0.try_wait().unwrap().is_none() {
            assert!(Instant::now() < end, "the daemon still runs");
            std::thread::yield_now();
        }
        assert!(self.0.wait().unwrap().success());
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn change(path: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(path).unwrap();
    assert!(text.contains(from), "{} holds no {from:?}", path.display());
    fs::write(path, text.replacen(from, to, 1)).unwrap();
}

#[test]
fn the_walk_of_the_guide_leads_to_a_running_schedule() {
    let desk = Desk::new();
    let mut home = desk.0.path().to_owned();
    let mut said = Vec::new();
    let mut daemon = None;
    let lines = blocks("From nothing", "sh");
    let runner = blocks("From nothing", "yaml").remove(0);
    for line in lines.iter().flat_map(|block| block.lines()) {
        // A shell does the quotes, as for whoever follows the guide.
        let quoted = line.replace('&', "'&'");
        let words = Command::new("sh").args(["-c", &format!("printf '%s\\n' {quoted}")]).output().unwrap();
        let words = String::from_utf8(words.stdout).unwrap();
        let words: Vec<&str> = words.lines().collect();
        match words[..] {
            ["cd", dir] => home = home.join(dir),
            ["cargo", "build", "--release", "--manifest-path", manifest] => {
                let manifest = home.join(manifest);
                if daemon.is_some() {
                    // What the author changes meanwhile.
                    change(&manifest, "0.1.0", "0.2.0");
                    change(
                        &manifest.with_file_name("src/lib.rs"),
                        "Answer {style}.",
                        "Please answer {style}.",
                    );
                }
                // In the profile of this build, so that it does not take minutes.
                let so = built(manifest.parent().unwrap(), &["build"]);
                let release = manifest.with_file_name("target/release");
                fs::create_dir_all(&release).unwrap();
                let file = release.join(so.file_name().unwrap());
                // As cargo does it: another file under the same name.
                let _ = fs::remove_file(&file);
                fs::copy(&so, file).unwrap();
                if daemon.is_none() {
                    let config = home.join(".kairos/config/daemon.yml");
                    change(&config, "runners:\n", &format!("runners:\n{runner}"));
                    change(&config, "port: 9847", "port: 0");
                }
            }
            ["kairos", "run", "&"] => daemon = Some(Background::start(&home)),
            ["kairos", ref args @ ..] => {
                let mut command = Command::new(kairos());
                let output = command.args(args).current_dir(&home).stdin(Stdio::null()).output().unwrap();
                let stdout = String::from_utf8(output.stdout).unwrap();
                let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
                assert!(output.status.success(), "{line}: {stdout}{stderr}");
                said.push(stdout);
            }
            _ => panic!("what is {line:?}?"),
        }
    }
    let listed = said.iter().find(|said| said.contains("succeeded")).expect("a mandate succeeded");
    assert!(listed.contains("How are the logs?"), "{listed}");
    // The daemon ended as it was told, and the second version served until then.
    daemon.expect("the walk starts it").ended();
    let history = said.iter().find(|said| said.contains("0.2.0") && said.contains("active"));
    assert!(history.is_some_and(|history| history.contains("0.1.0")), "{said:?}");
    assert!(fs::read_to_string(home.join(".kairos/config/schedules.yml")).unwrap().contains("name: notes"));
}

#[test]
fn the_scenario_of_the_guide_is_right() {
    passes("hello_runner", &blocks("Testing", "yaml").remove(0));
}

#[test]
fn the_sample_in_c_of_the_guide_is_clean_and_passes_its_scenario() {
    let desk = Desk::new();
    let guide = fs::read_to_string(workspace().join("plugin-api/GUIDE-C.md")).unwrap();
    let source = desk.file("tally.c", &fenced(&guide, "c").remove(0));
    let so = desk.0.path().join("libtally.so");
    kairos_tests::c_plugin::compile(source.to_str().unwrap(), &[], &so);
    desk.file("scenario.yml", &fenced(&guide, "yaml").remove(0));
    let tested = desk.kairos(&["plugin", "test", "libtally.so", "--scenario", "scenario.yml"]);
    assert_eq!(tested.code, 0, "{}{}", tested.stdout, tested.stderr);
    // What it refuses reads as it says.
    desk.file(
        "refused.yml",
        "{expect: {status: setup_refused, error: {contains: params.tone must be a text}}}",
    );
    let refused = desk.kairos(&["plugin", "test", "libtally.so", "--scenario", "refused.yml"]);
    assert_eq!(refused.code, 0, "{}{}", refused.stdout, refused.stderr);
    // And its state goes over to another instance.
    let file = PluginFile::open(&so).unwrap();
    let instance = || {
        let setup = Setup::new(serde_json::json!({"tone": "briefly"}));
        map(&so, &file.sha256, &file.manifest, &setup, Arc::new(FakeHost::new())).unwrap()
    };
    let (old, new) = (instance(), instance());
    let state = State { schema: "tally/1".to_owned(), data: serde_json::json!(41) };
    old.import_state(state.clone()).unwrap();
    new.import_state(old.export_state().unwrap().unwrap()).unwrap();
    assert_eq!(new.export_state().unwrap(), Some(state));
    let strange = State { schema: "tally/9".to_owned(), data: serde_json::json!(1) };
    assert!(new.import_state(strange).unwrap_err().to_string().contains("not known here"));
}
