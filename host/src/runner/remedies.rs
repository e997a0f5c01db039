//! What to do about each reason why a file is no runner: one line for each code, also for those
//! that a worker found. Shown beside the message, never parsed.

/// For a machine that cannot confine a runner at all.
pub(super) const NO_SANDBOX: &str = "use a kernel with Landlock and seccomp (`kairos doctor` names what is missing), \
     or, if you trust the plugin, `kairos plugin trust` it and set `isolation: process`";

/// For a code that is not listed.
const OTHER: &str = "`kairos plugin check` says more of it";

/// By code, in its order.
const REMEDIES: [(&str, &str); 42] = [
    ("bad_grant", "mend the runner's `grants` in daemon.yml"),
    ("bad_manifest", "build it again with the kairos-plugin-api of this host; in C, mend KAIROS_MANIFEST"),
    ("bad_table", "fill the table as kairos.h says and build it again"),
    ("bad_trust_list", "mend `.kairos/plugins/trust.json`, or remove it and trust anew"),
    ("changed", "put it there under another name and rename it"),
    ("crashed", "mend what it does while it is loaded; `kairos plugin check` tries it without harm"),
    ("damaged", "build or copy it again"),
    ("empty", "build or copy it again"),
    ("generation_gone", "name that very file as the runner's `plugin` again, or resolve what waits for it"),
    ("io", "see to what the system says of that path, then try again"),
    ("is_a_directory", "name the plugin's file in it, lib*.so"),
    ("is_a_fifo", "name the plugin's file, lib*.so"),
    ("isolation_unavailable", "set `isolation: in_process`, or leave the key out"),
    ("layout_mismatch", "build it with an unchanged kairos-plugin-api of this major version"),
    ("load_failed", "install the library that it names, or link it statically"),
    ("load_timeout", "mend its constructor, which hangs or waits for something"),
    ("manifest_lies", "build it again; no tool may write into its section `.kairos.manifest`"),
    ("no_layout", "build it without unsafe_no_layout_constant"),
    ("no_manifest", "build it with `export_runner!`, or with KAIROS_MANIFEST in C"),
    ("no_permission", "`chmod a+r` it, and `chmod a+x` its directories"),
    ("no_worker", "see to what the system says; processes, memory or descriptors may be used up"),
    ("not_a_file", "name the plugin's file, lib*.so"),
    ("not_a_runner", "export the runner: `export_runner!`, or kairos_plugin_entry_v1 in C"),
    ("not_elf", "name the shared object that the build made, lib*.so"),
    ("not_found", "build it or copy it there, or mend the runner's `plugin`"),
    ("panic_abort", "build it with panic=unwind, or set `isolation: process`"),
    ("panic_in_load", "mend what panics while its root module is made"),
    ("panic_in_new", "mend its constructor, or the runner's `params` that it panics on"),
    ("probe_failed", "mend what its probe says is missing"),
    ("sandbox_unavailable", "enable what is missing (`kairos doctor`), or set `sandbox.require: partial`"),
    ("setup_refused", "mend the runner's `params` in daemon.yml"),
    (
        "signature_mismatch",
        "get file and signature anew from who signed it; if the change is yours, sign it again",
    ),
    ("signature_unreadable", "sign it again (`kairos plugin sign`), or look at that file and trust it"),
    (
        "signer_unknown",
        "`kairos plugin trust --key` that key if you know whose it is, or set `isolation: sandbox`",
    ),
    ("symlink_loop", "remove the link, or name the file itself"),
    ("too_large", "strip it (`strip -s`), or see whether it is the right file"),
    ("truncated", "build or copy it again"),
    ("trust_list_open", "look at `.kairos/plugins/trust.json`, then `chmod 600` it"),
    ("unknown_runner", "name one of `runners:` in daemon.yml"),
    ("untrusted", "look at that very file and `kairos plugin trust` it, or set `isolation: sandbox`"),
    ("wrong_arch", "build it for this machine, as a shared object"),
    ("wrong_major", "build it with the kairos-plugin-api of the major version that this host takes"),
];

/// What to do about that code.
pub(super) fn of(code: &str) -> &'static str {
    REMEDIES.iter().find(|(known, _)| *known == code).map_or(OTHER, |(_, remedy)| remedy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_one_short_remedy() {
        assert!(REMEDIES.windows(2).all(|two| two[0].0 < two[1].0), "in order, each once");
        for (code, remedy) in REMEDIES {
            assert!((10..140).contains(&remedy.len()) && !remedy.contains('\n'), "{code}: {remedy}");
            assert!(!remedy.ends_with('.') && of(code) == remedy, "{code}: {remedy}");
        }
        assert_eq!(of("of a later version"), OTHER);
    }
}
