//! What a program of the system needs to see in order to run at all: libraries, name resolution,
//! certificates, devices without a memory. Nothing in here may hold a secret or be written,
//! but for the devices.

use std::path::PathBuf;

/// Read by tools. Of `/etc` only what is meant for everybody, because root's tools would read the rest.
pub(super) const READ: &[&str] = &[
    "/usr",
    "/bin",
    "/sbin",
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

/// Read and written by tools.
pub(super) const DEVICES: &[&str] = &["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"];

/// Where programs of the system lie; those that exist can be granted to a tool.
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
    places.iter().map(PathBuf::from).filter(|place| place.is_dir()).collect()
}

/// Where libraries of the system lie, with the loader's list of them.
#[must_use]
pub fn libraries() -> Vec<PathBuf> {
    let places = ["/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/etc/ld.so.cache"];
    places.iter().map(PathBuf::from).filter(|place| place.exists()).collect()
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
