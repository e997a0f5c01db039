//! Namespaces of its own, and no capabilities: root in here is nobody in particular.

use std::io;
use std::os::unix::fs::OpenOptionsExt as _;

use rustix::process::{getegid, geteuid};
use rustix::thread::{CapabilitySet, CapabilitySets, UnshareFlags, capabilities, set_capabilities};

use super::level::{Tried, layer};
use super::{Network, raw};

/// Capabilities are bits of a 64-bit set; later kernels may add some.
const CAPABILITIES_MAX: libc::c_ulong = 63;

/// Tries the user namespace and those that it makes possible. True when the user namespace is new.
pub(super) fn enter(network: Network, tried: &mut Tried) -> bool {
    let mut wanted = UnshareFlags::NEWIPC | UnshareFlags::NEWUTS;
    if network == Network::None {
        wanted |= UnshareFlags::NEWNET;
    }
    let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
    let user = match raw::unshare(UnshareFlags::NEWUSER | wanted) {
        Ok(()) => map_ids(uid, gid).map_err(|error| format!("the ids cannot be mapped: {error}")),
        Err(error) => Err(format!("unshare: {error}")),
    };
    let namespaces = if user.is_ok() { Ok(()) } else { without_user_namespace(wanted) };
    if network == Network::None {
        tried.put(layer::NETWORK_NAMESPACE, namespaces);
    }
    tried.put(layer::USER_NAMESPACE, user)
}

/// Root can have the others without it.
fn without_user_namespace(wanted: UnshareFlags) -> Result<(), String> {
    raw::unshare(wanted).map_err(|error| format!("unshare: {error}"))
}

/// The same ids inside as outside: files keep their owner, programs see who they are.
fn map_ids(uid: u32, gid: u32) -> io::Result<()> {
    write("/proc/self/setgroups", "deny")?;
    write("/proc/self/uid_map", &format!("{uid} {uid} 1"))?;
    write("/proc/self/gid_map", &format!("{gid} {gid} 1"))
}

fn write(path: &str, text: &str) -> io::Result<()> {
    use std::io::Write as _;
    let mut file = std::fs::OpenOptions::new().write(true).custom_flags(libc::O_CLOEXEC).open(path)?;
    file.write_all(text.as_bytes())
}

/// Gives up every capability for good: the bounding set, the ambient set and the process's own.
pub(super) fn drop_capabilities() -> Result<(), String> {
    // Refused without CAP_SETPCAP; then there is none to give up, which is looked at below.
    for capability in 0..=CAPABILITIES_MAX {
        if raw::prctl(libc::PR_CAPBSET_DROP, capability).is_err() {
            break;
        }
    }
    let empty = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, empty).map_err(|error| format!("capset: {error}"))?;
    match capabilities(None) {
        Ok(left) if left == empty => Ok(()),
        Ok(left) => Err(format!("left: {:?}", left.permitted)),
        Err(error) => Err(format!("capget: {error}")),
    }
}
