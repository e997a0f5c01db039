//! What a program of the system needs to see in order to run at all: libraries, name resolution,
//! certificates, devices without a memory. Nothing in here may hold a secret or be written,
//! but for the devices.

use std::path::PathBuf;

/// Listed by tools, so that they find what is there; what is in it is read by [`readable`].
pub(super) const LISTED: &[&str] = &["/usr", "/bin", "/sbin"];

/// Where programs lie and nothing else: read only by whom they were granted, because the loader runs
/// whatever it can read.
const OF_PROGRAMS: &[&str] = &["bin", "sbin", "games", "libexec", "local"];

/// Read by tools. Of `/etc` only what is meant for everybody, because root's tools would read the rest.
const READ: &[&str] = &[
    "/lib",
    "/lib32",
    "/lib64",
    "/proc",
    "/sys/devices/system/cpu",
    "/sys/fs/cgroup",
    "/etc/alternatives",
    "/etc/ca-certificates",
    "/etc/ca-certificates.conf",
    "/etc/debian_version",
    "/etc/gai.conf",
    "/etc/group",
    "/etc/host.conf",
    "/etc/hosts",
    "/etc/inputrc",
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/locale.alias",
    "/etc/localtime",
    "/etc/magic",
    "/etc/mime.types",
    "/etc/nsswitch.conf",
    "/etc/os-release",
    "/etc/passwd",
    "/etc/pki/ca-trust",
    "/etc/pki/tls/cert.pem",
    "/etc/pki/tls/certs",
    "/etc/pki/tls/openssl.cnf",
    "/etc/profile",
    "/etc/protocols",
    "/etc/resolv.conf",
    "/etc/services",
    "/etc/shells",
    "/etc/ssl/cert.pem",
    "/etc/ssl/certs",
    "/etc/ssl/openssl.cnf",
    "/etc/terminfo",
    "/etc/timezone",
];

/// What every tool reads: [`READ`], and of `/usr` and `/usr/local` all but the programs.
pub(super) fn readable() -> Vec<PathBuf> {
    let within = |place: &str| {
        let entries = std::fs::read_dir(place).into_iter().flatten().flatten();
        entries.filter(|entry| !OF_PROGRAMS.iter().any(|name| entry.file_name() == *name))
    };
    let parts = within("/usr").chain(within("/usr/local")).map(|entry| entry.path());
    READ.iter().map(PathBuf::from).chain(parts).collect()
}

/// Read and written by tools.
pub(super) const DEVICES: &[&str] = &["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"];

/// Where programs of the system lie, those that exist, without links; they can be granted to a tool.
#[must_use]
pub fn programs() -> Vec<PathBuf> {
    let places = [
        "/usr/local/bin",
        "/usr/local/sbin",
        "/usr/bin",
        "/usr/sbin",
        "/bin",
        "/sbin",
        "/usr/libexec",
        "/usr/lib/git-core",
    ];
    let real = places.iter().filter_map(|place| std::fs::canonicalize(place).ok());
    let mut found: Vec<PathBuf> = real.filter(|place| place.is_dir()).collect();
    found.sort();
    found.dedup();
    found
}

/// Where libraries of the system lie, with the loader's list of them; without links.
#[must_use]
pub fn libraries() -> Vec<PathBuf> {
    let places = ["/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/etc/ld.so.cache"];
    places.iter().filter_map(|place| std::fs::canonicalize(place).ok()).collect()
}

/// The loaders that start dynamic programs: running any program means running one of these.
pub(super) fn loaders() -> Vec<PathBuf> {
    let places = [
        "/lib64/ld-linux-x86-64.so.2",
        "/lib/ld-linux-aarch64.so.1",
        "/lib/ld-linux.so.2",
        "/lib/ld-musl-x86_64.so.1",
        "/lib/ld-musl-aarch64.so.1",
    ];
    places.iter().map(PathBuf::from).filter(|place| place.is_file()).collect()
}
